"""What the stores have in common: keys, prefixes and the words about a source that was changed."""

from __future__ import annotations

import pytest

from vbackup.errors import StorageError
from vbackup.stores.store import refuse_prefix, wrong_size


@pytest.mark.parametrize("prefix", ["a", "/", "../", "a/../", ".a/"])
def test_bad_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(StorageError, match="not a prefix"):
        refuse_prefix(prefix)


@pytest.mark.parametrize("prefix", ["", "a/", "a/b.c/"])
def test_good_prefixes(prefix: str) -> None:
    refuse_prefix(prefix)


def test_wrong_size_says_what_there_was() -> None:
    assert "only 9 bytes instead of 10" in str(wrong_size("k", 10, 9))
    assert "more than 10 bytes instead of 10" in str(wrong_size("k", 10, 11))
