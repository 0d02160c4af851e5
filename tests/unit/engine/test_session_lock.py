"""A storage daemon that cannot lock images serves none; that the locks hold is shown end to end (test_sessions)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import TRACKER_ID
from vbackup.engine import session_lock
from vbackup.errors import UnsuitableError
from vbackup.names import Naming


class Daemon:
    """Takes every command."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, Any]] = []

    def execute(self, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        self.commands.append((command, arguments))

    def next_event(self, timeout_s: float) -> None:
        raise AssertionError


def lock(monkeypatch: pytest.MonkeyPatch, *drivers: str) -> Daemon:
    known = SimpleNamespace(block_drivers=lambda: frozenset(drivers))
    monkeypatch.setattr(session_lock, "schema", lambda _monitor: known)
    daemon = Daemon()
    disks: list[Any] = [SimpleNamespace(exported="one"), SimpleNamespace(exported="other")]
    session_lock.lock(daemon, disks, Naming(TRACKER_ID))
    return daemon


def test_each_disk_has_a_node_above_it_that_shares_no_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [arguments for _, arguments in lock(monkeypatch, "quorum", "raw").commands]
    assert [one["children"] for one in nodes] == [["one"], ["other"]]
    assert [one["driver"] for one in nodes] == ["quorum", "quorum"]
    assert len({one["node-name"] for one in nodes}) == 2
    assert all(one["read-only"] and len(one["node-name"]) <= 31 for one in nodes)


def test_daemon_without_the_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsuitableError, match="lacks the block driver quorum"):
        lock(monkeypatch, "raw")
