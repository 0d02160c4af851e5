"""The overlay's file takes every write, is large enough for the whole disk, and its tables are never read again."""

from __future__ import annotations

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit.builders import disk
from vbackup.engine import session_scratch
from vbackup.errors import DiskError, UnsuitableError
from vbackup.qemu import iothreads

MIB, TIB = 1024**2, 1024**4


def test_write_that_fails_in_the_scratch_directory_is_taken_and_cannot_be_read() -> None:
    node = session_scratch.overlay("top", backing="disk", filename="/dev/fdset/7", size_bytes=64 * MIB)
    assert (node["driver"], node["backing"], node["cache-clean-interval"]) == ("qcow2", "disk", 0)
    file = node["file"]
    assert (file["driver"], file["vote-threshold"], file["read-pattern"]) == ("quorum", 1, "fifo")
    outer, nothing = file["children"]
    assert outer["file"]["filename"] == "/dev/fdset/7"
    for unreadable in (outer["backing"], nothing):
        assert (unreadable["driver"], unreadable["image"]["driver"]) == ("blkdebug", "null-co")
        assert unreadable["inject-error"][0]["iotype"] == "read"
        assert unreadable["image"]["size"] == session_scratch.file_bytes(64 * MIB)


@pytest.mark.parametrize("size_bytes", [512, MIB + 512, 64 * MIB, TIB])
def test_file_has_room_for_every_cluster_and_table(size_bytes: int) -> None:
    clusters = -(-size_bytes // 65536)
    tables = -(-clusters * 8 // 65536) + -(-clusters * 2 // 65536)
    assert session_scratch.file_bytes(size_bytes) >= (clusters + tables) * 65536 + MIB
    assert session_scratch.file_bytes(size_bytes) % 65536 == 0
    node = session_scratch.overlay("top", backing="disk", filename="x", size_bytes=size_bytes)
    assert node["l2-cache-size"] >= clusters * 8
    assert node["refcount-cache-size"] >= max(clusters * 2, 4 * 65536)


class Schema:
    """What a QEMU knows."""

    def __init__(self, drivers: str, members: str) -> None:
        self._drivers, self._members = frozenset(drivers.split()), frozenset(members.split())

    def block_drivers(self) -> frozenset[str]:
        return self._drivers

    def members(self, _command: str) -> frozenset[str]:
        return self._members


def refuse(monkeypatch: pytest.MonkeyPatch, known: Schema, *, iothread: str | None = None) -> None:
    monkeypatch.setattr(session_scratch, "schema", lambda _monitor: known)
    monkeypatch.setattr(iothreads, "iothread_of", lambda _monitor, _alias: iothread)
    with FakeQemu([FakeDisk()]) as qemu:
        session_scratch.refuse_unable(qemu, [disk("vda")])


def test_qemu_without_a_driver_of_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsuitableError, match="lacks the block driver blkdebug"):
        refuse(monkeypatch, Schema("quorum null-co", ""))


def test_iothread_is_refused_where_a_client_could_end_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = "quorum null-co blkdebug"
    with pytest.raises(DiskError, match=r"it has an iothread \(io1\)"):
        refuse(monkeypatch, Schema(drivers, "sync"), iothread="io1")
    refuse(monkeypatch, Schema(drivers, "sync"))
    refuse(monkeypatch, Schema(drivers, "sync discard-source"), iothread="io1")
