"""A domain that is shut off just as its session begins is not served by a daemon that ends with vbackup."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import Recorder
from vbackup.domain import source
from vbackup.errors import BusyError
from vbackup.operations import session_begin
from vbackup.operations.session_begin import SessionRequest
from vbackup.stop import Stop


def test_domain_that_has_just_been_shut_off_is_busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @contextmanager
    def open_source(*_: object, **__: object) -> Iterator[object]:
        yield SimpleNamespace(is_running=False)

    monkeypatch.setattr(source, "open_source", open_source)
    handle: Any = SimpleNamespace(name="web", is_active=lambda: True, host=SimpleNamespace(is_local=True))
    request = SessionRequest("web", "acme", tmp_path)
    opened = session_begin._opened(request, handle, None, reporter=Recorder(), stop=Stop())
    with pytest.raises(BusyError, match="has just been shut off"), opened:
        pytest.fail("it is served")
