"""Sessions that have ended leave others of their tracker alone, and are forgotten after a week."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import cast

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit.builders import TRACKER, TRACKER_ID, UUID, Recorder, pull_session
from vbackup.domain.host import DomainHandle, Host
from vbackup.engine import session_close
from vbackup.errors import DomainNotFoundError
from vbackup.names import Naming
from vbackup.operations import session_recovery
from vbackup.operations.session_recovery import SessionQemu
from vbackup.sessions.record import Session, SessionState
from vbackup.sessions.store import Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

OTHER_UUID = UUID[:-1] + ("0" if UUID[-1] != "0" else "1")


def end(tmp_path: Path, session: Session, *others: Session) -> Session:
    with FakeQemu([FakeDisk()]) as qemu, Store(tmp_path).locked(UUID, stop=Stop()) as domain:
        for other in others:
            domain.write(other)
        return session_recovery.end(
            domain, session, SessionQemu(qemu, Naming(TRACKER_ID)), state=SessionState.FAILED, reporter=Recorder()
        )


def test_exports_of_the_tracker_s_next_session_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    def in_qemu(session: Session, *_: object, **__: object) -> bool:
        ended.append(session.id)
        return True

    monkeypatch.setattr(session_close, "in_qemu", in_qemu)
    dead, following = pull_session("vda"), pull_session("vda", number=3)
    assert end(tmp_path, dead, following).is_closed
    assert ended == []
    assert end(tmp_path, dead, replace(following, tracker="another")).is_closed
    assert end(tmp_path, dead, replace(following, state=SessionState.ABORTED)).is_closed
    assert ended == [dead.id, dead.id]


class Empty:
    """A libvirt without domains."""

    is_local = True

    def domain(self, name: str) -> DomainHandle:
        raise DomainNotFoundError(name, "qemu:///system", "x")


def test_old_sessions_of_domains_that_are_gone_are_forgotten_but_no_trackers(tmp_path: Path) -> None:
    """Also one that nobody has ended: its watcher was killed."""
    store, host = Store(tmp_path), cast(Host, Empty())
    never_ended = pull_session("vda")
    for uuid in (UUID, OTHER_UUID):
        with store.locked(uuid, stop=Stop()) as domain:
            domain.write(replace(never_ended, domain_uuid=uuid))
    with store.locked(OTHER_UUID, stop=Stop()) as domain:
        domain.write_tracker(Tracker(TRACKER, "web", OTHER_UUID))
    now = datetime.now(timezone.utc)
    session_recovery.forget_old(store, host, now=now + timedelta(days=6), stop=Stop())
    assert [one.state for one in store.sessions(UUID)] == [SessionState.OPEN], "it is not even looked at"
    session_recovery.forget_old(store, host, now=now + timedelta(days=8), stop=Stop())
    assert store.uuids() == [OTHER_UUID]
    assert store.sessions(OTHER_UUID) == []
    assert store.tracker_names(OTHER_UUID) == [TRACKER]


def test_what_is_busy_or_damaged_is_left_for_the_next_time(tmp_path: Path) -> None:
    store, host = Store(tmp_path), cast(Host, Empty())
    for uuid in (UUID, OTHER_UUID):
        with store.locked(uuid, stop=Stop()) as domain:
            domain.write(replace(pull_session("vda"), domain_uuid=uuid))
    (tmp_path / OTHER_UUID / f"session-{pull_session('vda').id}.json").write_text("{")
    later = datetime.now(timezone.utc) + timedelta(days=8)
    with store.locked(UUID, stop=Stop()):
        session_recovery.forget_old(store, host, now=later, stop=Stop())
    assert len(store.sessions(UUID)) == 1
    session_recovery.forget_old(store, host, now=later, stop=Stop())
    assert store.uuids() == [OTHER_UUID]
