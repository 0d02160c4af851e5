"""What is written is there for whoever comes next; only one vbackup at a time changes the sessions of a domain."""

from __future__ import annotations

import stat
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import TRACKER, UUID, pull_session, session_checkpoint
from vbackup.errors import BusyError, InterruptedBySignalError, StorageError, UnknownSessionError, UnknownTrackerError
from vbackup.sessions import store as store_
from vbackup.sessions.record import Session, SessionState
from vbackup.sessions.store import Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

OTHER = "22222222-2222-4222-8222-222222222222"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state" / "sessions")


def write(store: Store, session: Session) -> Session:
    with store.locked(session.domain_uuid, stop=Stop()) as domain:
        return domain.write(session)


def ended(session: Session) -> Session:
    assert session.internals is not None
    return replace(
        session,
        state=SessionState.ABORTED,
        ended=session.started,
        internals=replace(session.internals, is_closed=True),
    )


def test_what_is_written_is_found_by_its_id_alone(store: Store) -> None:
    session = write(store, pull_session("vda"))
    other = write(store, pull_session("vda", number=3, domain_uuid=OTHER))
    assert store.session(session.id) == session
    assert store.session(other.id) == other
    assert store.sessions(UUID) == [session]
    assert store.uuids() == sorted([UUID, OTHER])


def test_without_a_directory_there_is_nothing(store: Store) -> None:
    assert store.uuids() == []
    assert store.sessions(UUID) == []
    for unknown in ("20261123T120001Z-000001", "../x", ""):
        with pytest.raises(UnknownSessionError) as raised:
            store.session(unknown)
        assert raised.value.status == 6
    with pytest.raises(UnknownTrackerError, match="it has none"):
        store.tracker(UUID, TRACKER, domain_name="web")


def test_nobody_else_can_read_it(store: Store) -> None:
    session = write(store, pull_session("vda"))
    directory = store.directory / UUID
    for one in (directory, directory.parent, directory.parent.parent):
        assert stat.S_IMODE(one.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / f"session-{session.id}.json").stat().st_mode) == 0o600


def test_session_whose_checkpoint_the_tracker_has_is_committed(store: Store) -> None:
    """vbackup has died after the commit, before it could write that down."""
    session = write(store, pull_session("vda"))
    checkpoint = session_checkpoint(2, "vda")
    with store.locked(UUID, stop=Stop()) as domain:
        domain.write_tracker(Tracker(TRACKER, "web", UUID).with_committed(checkpoint))
        assert [one.state for one in domain.sessions()] == [SessionState.COMMITTED]
    assert store.session(session.id).state is SessionState.COMMITTED
    assert store.session(session.id).ended == checkpoint.time


def test_tracker_is_new_until_it_is_written(store: Store) -> None:
    with store.locked(UUID, stop=Stop()) as domain:
        assert domain.tracker(TRACKER, domain_name="web").base is None
        written = domain.write_tracker(Tracker(TRACKER, "web", UUID).with_committed(session_checkpoint(1, "vda")))
        assert domain.tracker(TRACKER, domain_name="web") == written
        assert store.tracker(UUID, TRACKER, domain_name="web") == written
        with pytest.raises(UnknownTrackerError, match=f"it has {TRACKER}"):
            store.tracker(UUID, "other", domain_name="web")
        domain.forget_tracker(TRACKER)
        assert store.trackers(UUID) == []


def test_another_waits_for_the_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_, "LOCK_S", 0.2)
    monkeypatch.setattr(store_, "TICK_S", 0.01)
    stop = Stop()
    with store.locked(UUID, stop=Stop()):
        with pytest.raises(BusyError, match="domain web for"), store.locked(UUID, stop=stop, name="web"):
            pass
        with store.locked(OTHER, stop=stop):
            pass
        stop.request(15)
        with pytest.raises(InterruptedBySignalError), store.locked(UUID, stop=stop):
            pass
    with store.locked(UUID, stop=Stop()):
        pass


def test_record_of_what_ended_long_ago_is_removed(store: Store) -> None:
    session = pull_session("vda")
    write(store, ended(session))
    left_something = pull_session("vda", number=3, state=SessionState.FAILED, ended=session.started)
    write(store, left_something)
    with store.locked(UUID, stop=Stop()) as domain:
        domain.forget_old(session.started + timedelta(days=6))
        assert len(domain.sessions()) == 2
        domain.forget_old(session.started + timedelta(days=8))
        assert domain.sessions() == [left_something]
        domain.forget(left_something.id)
        assert domain.sessions() == []


def two_trackers(store: Store) -> Path:
    """Two trackers, and an open session of the first; returns the path of the first."""
    with store.locked(UUID, stop=Stop()) as domain:
        domain.write(pull_session("vda"))
        for name in (TRACKER, "other"):
            domain.write_tracker(Tracker(name, "web", UUID).with_committed(session_checkpoint(1, "vda")))
    return store.directory / UUID / f"tracker-{TRACKER}.json"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", "the other"])
def test_damaged_tracker_fails_alone(store: Store, content: bytes | str) -> None:
    path = two_trackers(store)
    path.write_bytes(content if isinstance(content, bytes) else (path.parent / "tracker-other.json").read_bytes())
    with store.locked(UUID, stop=Stop()) as domain:
        assert domain.tracker("other", domain_name="web").checkpoints
        assert [one.state for one in domain.sessions()] == [SessionState.OPEN]
        with pytest.raises(StorageError, match=f"tracker forget {UUID} --tracker {TRACKER}'"):
            domain.tracker(TRACKER, domain_name="web")
    assert store.session(pull_session("vda").id).state is SessionState.OPEN
    assert [one.name for one in store.trackers(UUID)] == ["other"]
    assert [TRACKER in str(one) for one in store.damaged_trackers(UUID)] == [True]
    assert store.tracker_names(UUID) == sorted([TRACKER, "other"])


def test_old_records_are_seen_without_reading_them(store: Store) -> None:
    session = ended(pull_session("vda"))
    write(store, session)
    path = store.directory / UUID / f"session-{session.id}.json"
    written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    assert not store.has_old(UUID, written + timedelta(days=6))
    assert store.has_old(UUID, written + timedelta(days=8))
    path.unlink()
    assert store.has_old(UUID, written), "only the lock is left"
    with store.locked(UUID, stop=Stop()) as domain:
        domain.write_tracker(Tracker(TRACKER, "web", UUID))
    assert not store.has_old(UUID, written + timedelta(days=8)), "trackers are kept"


def test_directory_that_is_removed_while_another_waits_for_its_lock_is_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()
    real = store_._wait

    def wait(*arguments: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            waits.set()
        real(*arguments)

    def begin() -> None:
        with store.locked(UUID, stop=Stop()) as domain:
            domain.write(pull_session("vda"))

    with store.locked(UUID, stop=Stop()) as domain:
        monkeypatch.setattr(store_, "_wait", wait)
        thread = threading.Thread(target=begin)
        thread.start()
        assert waits.wait(10)
        domain.remove_if_empty()
        assert store.uuids() == []
    thread.join(10)
    assert [one.id for one in store.sessions(UUID)] == [pull_session("vda").id]


def test_directory_with_a_tracker_or_a_session_is_not_removed(store: Store) -> None:
    two_trackers(store)
    with store.locked(UUID, stop=Stop()) as domain:
        domain.remove_if_empty()
        domain.forget(pull_session("vda").id)
        domain.remove_if_empty()
        assert len(store.trackers(UUID)) == 2


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_what_is_no_json_is_refused(store: Store, content: bytes) -> None:
    session = write(store, pull_session("vda"))
    (store.directory / UUID / f"session-{session.id}.json").write_bytes(content)
    with pytest.raises(StorageError):
        store.session(session.id)


def test_directory_is_root_s_or_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("VBACKUP_SESSIONS", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert store_.default_directory() == tmp_path / "vbackup" / "sessions"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert store_.default_directory() == Path("/var/lib/vbackup/sessions")
    monkeypatch.setenv("VBACKUP_SESSIONS", "/x")
    assert store_.default_directory() == Path("/x")


def test_domain_without_a_directory_has_no_sessions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VBACKUP_SESSIONS", str(tmp_path))
    assert not store_.may_have(UUID)
    (tmp_path / UUID).mkdir()
    assert store_.may_have(UUID)
