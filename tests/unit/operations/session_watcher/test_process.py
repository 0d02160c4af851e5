"""The watcher waits until a session's time is up or its scratch directory nearly full, and ends with the session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.unit.builders import pull_session
from vbackup.operations.session_watcher import process
from vbackup.operations.session_watcher.process import FULL, Due
from vbackup.process import Process
from vbackup.sessions.record import Session, SessionState
from vbackup.sessions.store import Store
from vbackup.stop import Stop

HOUR = timedelta(hours=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


def write(store: Store, session: Session) -> None:
    with store.locked(session.domain_uuid, stop=Stop()) as domain:
        domain.write(session)


def open_session(scratch: Path, *, left: timedelta = HOUR) -> Session:
    session = pull_session("vda", expires=datetime.now(timezone.utc) + left)
    assert session.internals is not None
    return replace(session, internals=replace(session.internals, scratch=str(scratch)))


def closed(session: Session) -> Session:
    assert session.internals is not None
    return replace(session, state=SessionState.ABORTED, internals=replace(session.internals, is_closed=True))


def watch(session: Session, store: Store, then: Callable[[], None], *, reserve_bytes: int = 0) -> Due | None:
    """Watch, and do something after the first look."""
    waits = []

    def wait(_seconds: float) -> None:
        waits.append(_seconds)
        assert len(waits) == 1, "it goes on waiting"
        then()

    return process.watch(session.id, store, reserve_bytes=reserve_bytes, wait=wait)


def test_session_ends_when_its_time_is_up_and_not_before(store: Store, tmp_path: Path) -> None:
    session = open_session(tmp_path)
    write(store, session)
    late = replace(session, expires=datetime.now(timezone.utc))
    assert watch(session, store, lambda: write(store, late)) == Due(SessionState.EXPIRED)


def test_watcher_ends_with_the_session(store: Store, tmp_path: Path) -> None:
    session = open_session(tmp_path)
    write(store, session)
    assert watch(session, store, lambda: write(store, closed(session))) is None
    path = store.directory / session.domain_uuid / f"session-{session.id}.json"
    write(store, session)
    assert watch(session, store, path.unlink) is None


def test_nearly_full_scratch_directory_ends_the_session(store: Store, tmp_path: Path) -> None:
    session = open_session(tmp_path)
    write(store, session)
    due = watch(session, store, lambda: pytest.fail("it waits"), reserve_bytes=2**62)
    assert due == Due(SessionState.FAILED, FULL)


def test_domain_that_is_off_needs_no_scratch_directory(store: Store, tmp_path: Path) -> None:
    session = open_session(tmp_path)
    assert session.internals is not None
    off = replace(session, internals=replace(session.internals, daemon=Process.this()))
    write(store, off)
    assert watch(session, store, lambda: write(store, closed(session)), reserve_bytes=2**62) is None


def test_record_that_cannot_be_read_now_is_read_again(store: Store, tmp_path: Path) -> None:
    session = open_session(tmp_path)
    write(store, session)
    path = store.directory / session.domain_uuid / f"session-{session.id}.json"
    path.write_text("{")
    assert watch(session, store, lambda: write(store, closed(session))) is None
