"""A session that has ended leaves alone what another one of its tracker has in QEMU by then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit.builders import TRACKER_ID, UUID, Recorder, pull_session
from vbackup.engine import session_close
from vbackup.names import Naming
from vbackup.operations import session_recovery
from vbackup.operations.session_recovery import SessionQemu
from vbackup.sessions.record import Session, SessionState
from vbackup.sessions.store import Store
from vbackup.stop import Stop


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
