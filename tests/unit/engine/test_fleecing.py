"""Fleecing areas: what QEMU must have for them, the files in them, and when they are full."""

from __future__ import annotations

import copy
import errno
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests import qapi
from tests.fake_qemu import FakeQemu
from tests.unit import builders
from vbackup.engine import fleecing
from vbackup.engine.disk_plan import FleecingPlan
from vbackup.engine.fleecing_area import LocalArea
from vbackup.engine.plan import FleecingAbilities
from vbackup.errors import DiskError, JobError, NoSpaceError, UnsuitableError
from vbackup.files import nameless
from vbackup.qapi.actions import OnCbwError
from vbackup.qemu import jobs


class Asked(FakeQemu):
    """Answers with another schema."""

    def __init__(self, schema: list[dict[str, Any]]) -> None:
        super().__init__()
        self._schema = schema

    def execute(self, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        if command == "query-qmp-schema":
            return self._schema
        assert command in ("query-version", "query-commands")
        return [str(uuid.uuid4())]  # of a QEMU that was not met yet


def with_members(*names: str) -> list[dict[str, Any]]:
    """The captured schema, with further members of blockdev-backup."""
    schema = copy.deepcopy(qapi.schema())
    types = {entry["name"]: entry for entry in schema}
    members = types[types["blockdev-backup"]["arg-type"]]["members"]
    members += [{"name": name, "default": None, "type": "bool"} for name in names]
    return schema


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ((), FleecingAbilities(spares_guest=False, tells_zeros=False)),
        (("discard-source",), FleecingAbilities(spares_guest=False, tells_zeros=True)),
        (("discard-source", "on-cbw-error"), FleecingAbilities(spares_guest=True, tells_zeros=True)),
    ],
    ids=["7.2", "10.0", "11.1"],
)
def test_abilities_are_read_off_the_schema(members: tuple[str, ...], expected: FleecingAbilities) -> None:
    assert fleecing.abilities(Asked(with_members(*members))) == expected


def test_qemu_without_views_is_unsuitable() -> None:
    schema = copy.deepcopy(qapi.schema())
    drivers = next(one for one in schema if "snapshot-access" in one.get("values", ()))
    drivers["members"] = [one for one in drivers["members"] if one["name"] != "snapshot-access"]
    with pytest.raises(UnsuitableError, match="lacks snapshot-access"):
        fleecing.abilities(Asked(schema))


def test_file_has_no_name(tmp_path: Path) -> None:
    fd = nameless(tmp_path)
    assert list(tmp_path.iterdir()) == []
    os.close(fd)


def test_file_loses_its_name_where_it_must_have_one_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_TMPFILE is not for every filesystem."""
    real = os.open

    def without(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", without)
    fd = nameless(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    os.close(fd)


def test_qemu_that_cannot_keep_errors_from_the_guest_is_unsuitable() -> None:
    def without_quorum(schema: list[dict[str, Any]]) -> list[dict[str, Any]]:
        drivers = next(one for one in schema if "quorum" in one.get("values", ()))
        drivers["values"] = [one for one in drivers["values"] if one != "quorum"]
        drivers["members"] = [one for one in drivers["members"] if one["name"] != "quorum"]
        return schema

    with pytest.raises(UnsuitableError, match=r"neither on-cbw-error.* nor the block driver quorum"):
        fleecing.abilities(Asked(without_quorum(with_members())))
    assert fleecing.abilities(Asked(without_quorum(with_members("on-cbw-error")))).spares_guest


def planned(on_cbw_error: OnCbwError | None) -> FleecingPlan:
    return FleecingPlan("job", "area", "filter", "view", on_cbw_error, tells_zeros=True, max_workers=1)


def test_area_is_a_plain_image_where_qemu_spares_the_guest() -> None:
    area = fleecing._area(planned(OnCbwError.BREAK_SNAPSHOT), "/dev/fdset/1", 1 << 20)
    assert (area["driver"], area["node-name"], area["backing"]) == ("qcow2", "area", None)


def test_area_takes_every_write_and_gives_back_only_what_it_has() -> None:
    area = fleecing._area(planned(None), "/dev/fdset/1", 1 << 20)
    assert (area["driver"], area["node-name"], area["vote-threshold"]) == ("quorum", "area", 1)
    image, nothing = area["children"]
    assert "node-name" not in image
    assert image["backing"] == nothing
    assert nothing["image"] == {"driver": "null-co", "size": 1 << 20, "read-zeroes": False}
    assert nothing["inject-error"] == [{"event": "none", "iotype": "read", "errno": errno.EACCES}]


@pytest.mark.parametrize(("tells_zeros", "refused"), [(False, True), (True, False)])
def test_disk_with_an_iothread_is_refused_where_qemu_would_abort(tells_zeros: bool, refused: bool) -> None:
    qemu = FakeQemu()
    qemu.links["/machine/peripheral/virtio-disk1", "iothread"] = "/objects/iothread1"
    disks = [builders.disk("vda", alias="virtio-disk0"), builders.disk("vdb", alias="virtio-disk1")]
    can = FleecingAbilities(spares_guest=False, tells_zeros=tells_zeros)
    if not refused:
        fleecing.refuse_iothreads(qemu, disks, can)
        return
    with pytest.raises(DiskError, match=r"Disk vdb: it has an iothread \(iothread1\).*without --fleecing"):
        fleecing.refuse_iothreads(qemu, disks, can)
    fleecing.refuse_iothreads(qemu, disks[:1], can)


def test_area_is_full_before_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [4000]
    monkeypatch.setattr(LocalArea, "free_bytes", lambda _area: free[0])
    watch = fleecing.SpaceWatch.over(LocalArea(tmp_path))
    free[0] = 1000
    watch.check()
    free[0] = 999
    with pytest.raises(NoSpaceError, match="is too small for what the guest overwrites"):
        watch.check()


def test_events_of_a_job_do_not_each_ask_for_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, now = [4000], [100.0]
    monkeypatch.setattr(LocalArea, "free_bytes", lambda _area: free[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    check = fleecing.SpaceWatch.over(LocalArea(tmp_path)).paced()
    free[0] = 0
    check()
    now[0] += jobs.TICK_S - 0.01
    check()
    now[0] += 0.01
    with pytest.raises(NoSpaceError):
        check()


def test_only_a_view_that_broke_is_the_areas_fault(tmp_path: Path) -> None:
    watch = fleecing.SpaceWatch(LocalArea(tmp_path), 0)
    assert watch.explain(JobError("vda", "Input/output error")) is None
    broken = watch.explain(JobError("vda", "Permission denied"))
    assert f"could not save in the fleecing area {tmp_path} what the guest was about to overwrite. " in str(broken)
    assert list(tmp_path.iterdir()) == []


def test_area_that_only_root_has_space_in_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalArea, "free_bytes", lambda _area: 0)
    broken = fleecing.SpaceWatch(LocalArea(tmp_path), 1).explain(JobError("vda", "Permission denied"))
    assert isinstance(broken, NoSpaceError)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "is too small for what the guest overwrites"),
        (errno.EDQUOT, "is too small for what the guest overwrites"),
        (errno.EIO, "about to overwrite: Input/output error"),
        (errno.EROFS, "about to overwrite: Read-only file system"),
    ],
)
@pytest.mark.parametrize("reason", ["Permission denied", "Input/output error while reading the disk"])
def test_area_that_fails_here_too_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str, reason: str
) -> None:
    def fail(_fd: int, _data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    watch = fleecing.SpaceWatch(LocalArea(tmp_path), 0)
    monkeypatch.setattr(os, "write", fail)
    assert message in str(watch.explain(JobError("vda", reason)))
