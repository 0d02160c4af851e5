"""The search for cycles is as it was afterwards, whatever happens."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from vbackup.cli.collector import without_cycles


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    yield
    gc.enable()


def test_search_is_off_in_the_block_and_on_after_it() -> None:
    gc.enable()
    with without_cycles():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_error_lets_it_be_on_again() -> None:
    gc.enable()
    with pytest.raises(KeyError), without_cycles():
        raise KeyError
    assert gc.isenabled()


def test_who_has_turned_it_off_finds_it_so() -> None:
    gc.disable()
    with without_cycles():
        pass
    assert not gc.isenabled()
