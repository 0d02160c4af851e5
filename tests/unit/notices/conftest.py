"""A server on loopback, and a clock that nobody waits for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.web import Web, web
from vbackup.notices import attempts


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as made:
        yield made


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pause is short, and no proxy of this machine is in the way."""
    monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 0.02)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
