"""Pull sessions by the library: they need no repository, and what only reads their record needs no libvirt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import NOON, TRACKER, UUID, Recorder, pull_session, session_checkpoint, use_libvirt
from vbackup import api
from vbackup.api import ChangesRequest, Connection, ServeSessionRequest, SessionRequest, SessionState, Tracker
from vbackup.api.hosts import Hosts
from vbackup.errors import StorageError, UnknownSessionError, UnknownTrackerError
from vbackup.operations import (
    checkpoint,
    serve_session,
    session_begin,
    session_changes,
    session_end,
    session_status,
    tracker,
)
from vbackup.sessions.store import Store
from vbackup.stop import Stop

ID = pull_session("vda").id


@pytest.fixture
def vb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Connection:
    monkeypatch.setenv("VBACKUP_SESSIONS", str(tmp_path / "state"))
    monkeypatch.setenv("VBACKUP_SOCKETS", str(tmp_path / "sockets"))
    monkeypatch.setattr(Hosts, "one", lambda _hosts: pytest.fail("libvirt was asked"))
    return api.connect()


@pytest.fixture
def store(vb: Connection, tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


def test_session_is_begun_with_the_places_of_the_command(
    vb: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    got: list[Any] = []
    use_libvirt(monkeypatch, "libvirt")
    monkeypatch.setattr(session_begin, "begin", lambda request, **named: got.append((request, named)))
    recorder, request = Recorder(), SessionRequest("web", "acme", tmp_path)
    vb.begin_session(request, reporter=recorder)
    [(asked, named)] = got
    assert (asked, named["host"], named["reporter"]) == (request, "libvirt", recorder)
    assert (named["store"], named["socket_directory"]) == (Store(tmp_path / "state"), tmp_path / "sockets")


@pytest.mark.parametrize(
    ("module", "name", "call", "arguments"),
    [
        (session_status, "status", lambda vb: vb.session(ID), (ID,)),
        (session_status, "renew", lambda vb: vb.renew_session(ID, 60.0), (ID, 60.0)),
        (session_end, "commit", lambda vb: vb.commit_session(ID), (ID,)),
        (session_end, "abort", lambda vb: vb.abort_session(ID), (ID,)),
        (tracker, "forget", lambda vb: vb.forget_tracker("web", "acme", exclusive=True), ("web", "acme")),
        (checkpoint, "delete", lambda vb: vb.delete_checkpoints("web", "acme", "c1"), ("web", "acme", ["c1"])),
    ],
)
def test_steps_reach_their_operation(
    vb: Connection,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    call: Callable[[Connection], Any],
    arguments: tuple[object, ...],
) -> None:
    got: list[Any] = []

    def take(*given: object, **named: Any) -> str:
        got.append((given, named["host"], named.get("exclusive")))
        return "done"

    with store.locked(UUID, stop=Stop()) as domain:
        domain.write(pull_session("vda"))
    use_libvirt(monkeypatch, "libvirt")
    monkeypatch.setattr(module, name, take)
    assert call(vb) == "done"
    assert got == [(arguments, "libvirt", {"forget": True, "delete": False}.get(name))]


@pytest.mark.parametrize("call", ["session", "commit_session", "abort_session"])
def test_session_that_is_unknown_is_refused_without_libvirt(vb: Connection, call: str) -> None:
    with pytest.raises(UnknownSessionError):
        getattr(vb, call)(ID)
    with pytest.raises(UnknownSessionError):
        vb.renew_session(ID, 60.0)


def test_sessions_are_those_of_the_record(vb: Connection, store: Store) -> None:
    assert vb.sessions() == []
    old = replace(pull_session("vda"), expires=NOON - timedelta(days=1))
    fresh = replace(pull_session("vda", number=3), expires=NOON + timedelta(days=36500))
    with store.locked(UUID, stop=Stop()) as domain:
        domain.write(fresh)
        domain.write(old)
    assert [(one.id, one.state) for one in vb.sessions()] == [
        (old.id, SessionState.EXPIRED),
        (fresh.id, SessionState.OPEN),
    ]
    assert [one.id for one in vb.sessions("web")] == [one.id for one in vb.sessions(UUID)] == [old.id, fresh.id]
    assert vb.sessions("db") == []


def test_tracker_is_listed_and_found(vb: Connection, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Tracker(TRACKER, "web", UUID).with_committed(session_checkpoint(1, "vda"))
    with store.locked(UUID, stop=Stop()) as domain:
        domain.write_tracker(made)
    assert vb.trackers() == vb.trackers("web") == vb.trackers(UUID) == [made]
    assert vb.trackers("db") == []
    use_libvirt(monkeypatch, SimpleNamespace(domain=lambda _name: SimpleNamespace(uuid=UUID, name="renamed")))
    assert vb.tracker("renamed", TRACKER).checkpoints == made.checkpoints
    with pytest.raises(UnknownTrackerError):
        vb.tracker("renamed", "other")


def test_changes_and_the_server_need_no_libvirt(
    vb: Connection, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    got: list[Any] = []
    monkeypatch.setattr(session_changes, "run", lambda request, **named: got.append((request, named)))
    monkeypatch.setattr(serve_session, "run", lambda request, **named: got.append((request, named)))
    stop, changes = Stop(), ChangesRequest("id", "vda")
    serve = ServeSessionRequest("id", "localhost", 0, tmp_path, tmp_path / "token")
    vb.session_changes(changes)
    vb.serve_session(serve, print, stop=stop)
    assert got == [(changes, {"store": store}), (serve, {"store": store, "stop": stop, "on_ready": print})]


def test_trackers_of_bitmaps_are_as_far_as_they_can_be_read(
    vb: Connection, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbackup.api import attached

    with store.locked(UUID, stop=Stop()) as domain:
        domain.write_tracker(Tracker(TRACKER, "web", UUID))
    assert attached._trackers(UUID) == [TRACKER]
    assert attached._trackers(None) == []
    path = store.directory / UUID / f"tracker-{TRACKER}.json"
    path.write_text("{")
    assert store.trackers(UUID) == []
    assert attached._trackers(UUID) == [TRACKER]

    def unreadable(*_anything: object) -> None:
        raise StorageError("Cannot read it.")

    monkeypatch.setattr(Store, "tracker_names", unreadable)
    assert attached._trackers(UUID) == []
