"""When a session has to end, and that a session which cannot be closed is not tried without a pause."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import pull_session
from vbackup.errors import BusyError
from vbackup.operations.session_watcher import process
from vbackup.operations.session_watcher.process import FULL, Due
from vbackup.process import Process
from vbackup.sessions import sockets
from vbackup.sessions.record import KILLED, QEMU_ENDED, Session, SessionState
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


def test_session_whose_qemu_ends_is_due_at_once(store: Store, tmp_path: Path) -> None:
    session = open_session(tmp_path)
    assert session.internals is not None
    with tempfile.TemporaryDirectory(prefix="vbs-", dir="/tmp") as short:
        served = sockets.listen_unix(Path(short) / "nbd.sock")
        write(store, replace(session, internals=replace(session.internals, server=f"{short}/nbd.sock")))
        assert watch(session, store, served.close) == Due(SessionState.FAILED, QEMU_ENDED)
    served = sockets.listen_tcp("127.0.0.1:10979")
    write(store, replace(session, listen="127.0.0.1:10979"))
    assert watch(session, store, served.close) == Due(SessionState.FAILED, QEMU_ENDED)


def test_session_whose_storage_daemon_ends_is_due_at_once(store: Store, tmp_path: Path) -> None:
    session = open_session(tmp_path)
    assert session.internals is not None
    gone = replace(Process.this(), start_ticks=1)
    write(store, replace(session, internals=replace(session.internals, daemon=Process.this())))
    dead = replace(session, internals=replace(session.internals, daemon=gone))
    assert watch(session, store, lambda: write(store, dead)) == Due(SessionState.FAILED, QEMU_ENDED)


def test_record_that_cannot_be_read_now_is_read_again(store: Store, tmp_path: Path) -> None:
    session = open_session(tmp_path)
    write(store, session)
    path = store.directory / session.domain_uuid / f"session-{session.id}.json"
    path.write_text("{")
    assert watch(session, store, lambda: write(store, closed(session))) is None


class Waiter:
    """Counts the pauses, and ends the test after some."""

    def __init__(self) -> None:
        self.pauses_s: list[float] = []

    def __call__(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        if len(self.pauses_s) > 3:
            raise TimeoutError


def watched(tmp_path: Path, session: Session, **changes: Any) -> Due | None:
    store = Store(tmp_path)
    with store.locked(session.domain_uuid, stop=Stop()) as domain:
        domain.write(replace(session, **changes))
    return process.watch(session.id, store, reserve_bytes=0, wait=Waiter())


def test_open_session_is_due_when_its_time_is_up(tmp_path: Path) -> None:
    now = datetime.now(timezone.utc)
    with pytest.raises(TimeoutError):
        watched(tmp_path, pull_session("vda"), expires=now + HOUR)
    assert watched(tmp_path, pull_session("vda"), expires=now) == Due(SessionState.EXPIRED)


def test_session_that_was_ended_and_not_closed_is_due_after_a_while(tmp_path: Path) -> None:
    """A commit that was killed: its overlays would take space until the session expires."""
    now = datetime.now(timezone.utc)
    committed = replace(pull_session("vda"), state=SessionState.COMMITTED, expires=now + HOUR)
    with pytest.raises(TimeoutError):
        watched(tmp_path, committed, ended=now)
    assert watched(tmp_path, committed, ended=now - process.CLOSING_TIME) == Due(SessionState.COMMITTED)
    assert committed.internals is not None
    closed = replace(committed.internals, is_closed=True)
    assert watched(tmp_path, committed, ended=now - process.CLOSING_TIME, internals=closed) is None


def test_session_whose_begin_was_killed_is_due_at_once(tmp_path: Path) -> None:
    session = replace(pull_session("vda"), state=SessionState.BEGINNING)
    assert watched(tmp_path, session) == Due(SessionState.FAILED, KILLED)
    assert session.internals is not None
    with pytest.raises(TimeoutError):
        watched(tmp_path, session, internals=replace(session.internals, writer=Process.this()))


def test_what_cannot_be_closed_is_tried_again_after_a_pause() -> None:
    wait = Waiter()
    due: list[Due | None] = [Due(SessionState.EXPIRED), Due(SessionState.EXPIRED), Due(SessionState.EXPIRED), None]
    answers: list[bool | Exception] = [False, BusyError("libvirt is away"), True]

    def end() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    process.until_closed(lambda: due.pop(0), end, wait=wait)
    assert (wait.pauses_s, due, answers) == ([process.AGAIN_S, process.AGAIN_S], [], [])
