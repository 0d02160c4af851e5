"""Pages of the extents of a session's disk, and the sessions, disks and ranges that there are not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.fake_nbd import FakeNbd
from tests.unit.builders import TRACKER, UUID, pull_session, session_checkpoint
from vbackup.errors import (
    DiskError,
    MalformedError,
    SessionEndedError,
    UnknownCheckpointError,
    UnknownSessionError,
    UsageError,
    VbackupError,
)
from vbackup.operations import session_changes
from vbackup.operations.session_changes import Changes, ChangesRequest, Kind
from vbackup.qemu.nbd_client import ALLOCATION, DIRTY, HOLE, ZERO
from vbackup.sessions.record import Session, SessionState
from vbackup.sessions.store import Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

KIB = 1024
SIZE = 1024 * KIB
#: What changed since the checkpoint before, which is the base, and since the one before that.
BASE, EARLIER = session_checkpoint(1, "vda"), session_checkpoint(0, "vda")
CONTEXTS = {BASE.id: "qemu:dirty-bitmap:base", EARLIER.id: "qemu:dirty-bitmap:earlier"}
BLOCKS = {
    CONTEXTS[BASE.id]: [(64 * KIB, DIRTY), (192 * KIB, 0), (128 * KIB, DIRTY), (640 * KIB, 0)],
    CONTEXTS[EARLIER.id]: [(512 * KIB, DIRTY), (512 * KIB, 0)],
    ALLOCATION: [(320 * KIB, 0), (704 * KIB, HOLE | ZERO)],
}


@dataclass
class Served:
    """An open session of disk vda, and its store."""

    store: Store
    nbd: FakeNbd
    session: Session

    def write(self, **changes: Any) -> None:
        self.session = replace(self.session, **changes)
        with self.store.locked(UUID, stop=Stop()) as domain:
            domain.write(self.session)

    def write_tracker(self, *, base_bytes: int = SIZE) -> None:
        disks = {"vda": replace(BASE.disks["vda"], size_bytes=base_bytes)}
        tracker = Tracker(TRACKER, "web", UUID, (replace(EARLIER, disks=disks), replace(BASE, disks=disks)))
        with self.store.locked(UUID, stop=Stop()) as domain:
            domain.write_tracker(tracker)

    def changes(self, dev: str = "vda", **more: Any) -> Changes:
        return session_changes.run(ChangesRequest(self.session.id, dev, **more), store=self.store)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    session = pull_session("vda")
    with FakeNbd(tmp_path / "nbd", bytes(SIZE), BLOCKS) as nbd:
        [disk] = session.disks
        disk = replace(
            disk,
            size_bytes=SIZE,
            uri=nbd.address.uri,
            base_checkpoint=BASE.id,
            base_context=CONTEXTS[BASE.id],
            contexts=CONTEXTS,
        )
        one = Served(Store(tmp_path / "sessions"), nbd, session)
        one.write_tracker()
        one.write(disks=(disk,), expires=datetime.now(timezone.utc) + timedelta(hours=1))
        yield one


def in_kib(changes: Changes) -> list[tuple[float, float, bool, bool]]:
    return [(one[0] / KIB, one[1] / KIB, one[2], one[3]) for one in changes.extents]


DELTA = [(0, 64, True, False), (256, 64, True, False), (320, 64, True, True)]


def test_delta_is_what_changed_since_the_base(served: Served) -> None:
    changes = served.changes()
    assert in_kib(changes) == DELTA
    assert changes.next_offset_bytes is None
    document = changes.document()
    assert document["extents"][2] == {"start": 320 * KIB, "length": 64 * KIB, "dirty": True, "zero": True}
    assert {name: value for name, value in document.items() if name != "extents"} == {
        "session": served.session.id,
        "disk": "vda",
        "volume_capacity_bytes": SIZE,
        "block_metadata_type": "VARIABLE_LENGTH",
        "kind": "delta",
        "checkpoint": served.session.checkpoint,
        "base_checkpoint": BASE.id,
        "next_offset": None,
    }


def test_delta_of_a_full_is_the_whole_disk(served: Served) -> None:
    [disk] = served.session.disks
    served.write(disks=(replace(disk, base_checkpoint=None, base_context=None, contexts={}),))
    changes = served.changes()
    assert in_kib(changes) == [(0, 320, True, False), (320, 704, True, True)]
    assert changes.base_checkpoint is None


def test_allocated_is_what_holds_data(served: Served) -> None:
    changes = served.changes(kind=Kind.ALLOCATED)
    assert in_kib(changes) == [(0, 64, True, False), (64, 192, False, False), (256, 64, True, False)]


def test_between_is_what_changed_since_another_checkpoint(served: Served) -> None:
    changes = served.changes(kind=Kind.BETWEEN, checkpoint=EARLIER.id)
    assert in_kib(changes) == [(0, 320, True, False), (320, 192, True, True)]
    assert changes.base_checkpoint == EARLIER.id


def test_what_the_disk_has_grown_by_is_dirty(served: Served) -> None:
    served.write_tracker(base_bytes=512 * KIB)
    assert in_kib(served.changes()) == [*DELTA, (512, 512, True, True)]


@pytest.mark.parametrize("max_results", [1, 2, 3, 4])
def test_pages_together_are_the_whole(served: Served, max_results: int) -> None:
    found, offset = [], 0
    while True:
        page = served.changes(offset_bytes=offset, max_results=max_results)
        assert len(page.extents) <= max_results
        found += in_kib(page)
        if page.next_offset_bytes is None:
            break
        assert page.next_offset_bytes > offset
        offset = page.next_offset_bytes
    assert found == DELTA


def test_range_is_cut_and_can_be_empty(served: Served) -> None:
    assert in_kib(served.changes(offset_bytes=32 * KIB, length_bytes=240 * KIB)) == [
        (32, 32, True, False),
        (256, 16, True, False),
    ]
    assert served.changes(offset_bytes=SIZE).extents == ()
    assert served.changes(length_bytes=0).extents == ()


@pytest.mark.parametrize(
    "more",
    [
        {"offset_bytes": SIZE + 1},
        {"offset_bytes": -1},
        {"length_bytes": SIZE + 1},
        {"offset_bytes": SIZE, "length_bytes": 1},
        {"max_results": 0},
        {"kind": Kind.BETWEEN},
        {"checkpoint": BASE.id},
    ],
)
def test_what_cannot_be_asked_for_is_status_two(served: Served, more: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        served.changes(**more)
    assert served.nbd.asked == []


def test_what_is_not_there_is_named(served: Served) -> None:
    with pytest.raises(DiskError, match=r"session .* does not have it; it has vda"):
        served.changes("vdb")
    with pytest.raises(UnknownCheckpointError, match=r"Disk vda .* has no checkpoint 'other'; it has .*[^.]\.$"):
        served.changes(kind=Kind.BETWEEN, checkpoint="other")
    with pytest.raises(UnknownSessionError):
        session_changes.run(ChangesRequest("20010101T000000Z-abcdef", "vda"), store=served.store)


@pytest.mark.parametrize(
    ("state", "retry"),
    [
        (SessionState.COMMITTED, "never"),
        (SessionState.ABORTED, "begin"),
        (SessionState.EXPIRED, "begin"),
        (SessionState.FAILED, "begin"),
        (SessionState.BEGINNING, "later"),
    ],
)
def test_session_that_is_not_open_has_no_changes(served: Served, state: SessionState, retry: str) -> None:
    served.write(state=state)
    with pytest.raises(SessionEndedError) as caught:
        served.changes()
    assert caught.value.retry == retry
    assert served.nbd.asked == []


def test_session_whose_time_is_up_has_no_changes(served: Served) -> None:
    served.write(expires=datetime.now(timezone.utc) - timedelta(seconds=1))
    with pytest.raises(SessionEndedError, match="expired"):
        served.changes()


def test_session_that_ends_while_it_is_asked_says_so(served: Served) -> None:
    def ends(*_: int) -> bytes:
        served.write(state=SessionState.ABORTED)
        served.nbd.drop()
        return b""

    served.nbd.blocks = ends
    with pytest.raises(SessionEndedError, match="aborted"):
        served.changes()


def test_server_that_has_gone_has_ended_the_session(served: Served) -> None:
    served.nbd.path.unlink()
    with pytest.raises(SessionEndedError, match="failed: the QEMU that served it has ended") as caught:
        served.changes()
    assert caught.value.retry == "begin"
    with socket.socket(socket.AF_UNIX) as left:  # by a QEMU that was killed: nobody listens at it
        left.bind(str(served.nbd.path))
        with pytest.raises(SessionEndedError):
            served.changes()


def test_server_that_answers_wrongly_has_not_ended_the_session(served: Served) -> None:
    [disk] = served.session.disks
    served.write(disks=(replace(disk, base_context="qemu:dirty-bitmap:removed"),))
    with pytest.raises(VbackupError) as caught:
        served.changes()
    assert not isinstance(caught.value, SessionEndedError)


def test_export_of_another_size_is_an_error(served: Served) -> None:
    served.nbd.content = bytes(SIZE + 512)
    with pytest.raises(MalformedError, match="served with 1049088 bytes, not 1048576"):
        served.changes()


def test_session_with_tls_needs_certificates(served: Served, tmp_path: Path) -> None:
    [disk] = served.session.disks
    served.write(disks=(replace(disk, uri="nbds://localhost:1/vda"),))
    with pytest.raises(UsageError, match="--tls-creds"):
        served.changes()
    with pytest.raises(VbackupError, match="credentials in"):
        served.changes(tls_creds=tmp_path)
