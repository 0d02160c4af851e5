"""Short ways to the facts of vbackup.model, with values nobody cares about filled in."""

from __future__ import annotations

import contextlib
import json
import signal
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from vbackup import names
from vbackup.api.hosts import Hosts
from vbackup.model import (
    Backup,
    Bitmap,
    BlockDriver,
    Consistency,
    Disk,
    DiskImage,
    DiskNode,
    Domain,
    Layer,
    LeftOut,
    Level,
)
from vbackup.process import Process
from vbackup.qemu.backing_chain import Image
from vbackup.qemu.block_graph import BlockGraph
from vbackup.report import Phase, Reporter
from vbackup.repository.live_state import LiveDisk, LiveState
from vbackup.repository.repository import Repository
from vbackup.sessions.checkpoint import Checkpoint, TrackedDisk
from vbackup.sessions.record import Internals, Session, SessionDisk, SessionState

FIXTURES = Path(__file__).parent.parent / "fixtures"
REPOSITORY, FOREIGN = "0123456789ab", "ba9876543210"
TOKEN, OTHER_TOKEN = "fedcba987654", "456789abcdef"
UUID = "f0000000-0000-4000-8000-000000000001"
MIB = 1024 * 1024
SIZE_BYTES = 16 * MIB
NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=timezone.utc)


def backup_id(number: int, level: Level = Level.FULL) -> str:
    """The id of the ``number``-th backup."""
    return names.backup_id(NOON + timedelta(hours=number), level)


def image(dev: str = "vda", *, level: Level = Level.FULL, base: str | None = None, **changes: Any) -> DiskImage:
    values: dict[str, Any] = {
        "dev": dev,
        "level": level,
        "base": base,
        "reason": "asked for",
        "file": f"{dev}.qcow2",
        "virtual_size_bytes": SIZE_BYTES,
        "file_size_bytes": 200704,
        "copied_bytes": SIZE_BYTES,
        "digest": "sha256:" + "0" * 64,
        "bitmap": "",  # filled in by backup()
        "node_name": "libvirt-1-format",
        "source": f"/images/{dev}.qcow2",
        "source_format": BlockDriver.QCOW2,
    }
    return DiskImage(**{**values, **changes})


def backup(number: int, *images: DiskImage, level: Level = Level.FULL, **changes: Any) -> Backup:
    """The ``number``-th backup of a domain; its disks default to a full of vda."""
    disks = images or (image(level=level),)
    own_id = changes.get("id", backup_id(number, level))
    disks = tuple(
        replace(one, bitmap=names.Naming(REPOSITORY).bitmap(own_id, one.dev, TOKEN)) if one.bitmap == "" else one
        for one in disks
    )
    bases = [one.base for one in disks if one.base is not None]
    values: dict[str, Any] = {
        "id": backup_id(number, level),
        "sequence": number,
        "level": level,
        "parent": max(bases) if bases else None,
        "time": NOON + timedelta(hours=number),
        "domain_name": "web",
        "domain_uuid": UUID,
        "disks": disks,
        "left_out": (LeftOut("hda", "cdrom"),),
        "consistency": Consistency.CRASH,
        "frozen_ms": 0,
        "duration_s": 1.5,
        "files": {"domain.xml": "sha256:" + "1" * 64},
        "versions": {"vbackup": "0.1.0", "qemu": "7.2.22", "libvirt": "9.0.0"},
    }
    return Backup(**{**values, **changes})


def bitmap_of(one: Backup, dev: str = "vda") -> str:
    """The bitmap of its checkpoint on that disk."""
    found = one.image(dev)
    assert found is not None
    assert found.bitmap is not None
    return found.bitmap


def incremental(number: int, base: Backup, *devs: str) -> Backup:
    """The ``number``-th backup, whose disks stand on those of ``base``."""
    images = (image(dev, level=Level.INCREMENTAL, base=base.id) for dev in devs or ("vda",))
    return backup(number, *images, level=Level.INCREMENTAL)


def copy(number: int) -> Backup:
    return backup(number, image(level=Level.COPY, bitmap=None), level=Level.COPY)


def disk(dev: str = "vda", **changes: Any) -> Disk:
    number = ord(dev[2]) - ord("a")
    values: dict[str, Any] = {
        "dev": dev,
        "alias": f"virtio-disk{number}",
        "path": f"/images/{dev}.qcow2",
        "format": BlockDriver.QCOW2,
    }
    return Disk(**{**values, **changes})


def bitmap(name: str, **changes: Any) -> Bitmap:
    values: dict[str, Any] = {
        "name": name,
        "recording": True,
        "busy": False,
        "persistent": True,
        "inconsistent": False,
        "granularity_bytes": 65536,
        "dirty_bytes": 0,
    }
    return Bitmap(**{**values, **changes})


def end_mark(dev: str = "vda", size_bytes: int = SIZE_BYTES, **changes: Any) -> Bitmap:
    """One that vouches, unless it is changed."""
    name = names.Naming(REPOSITORY).end_mark(dev, size_bytes)
    return bitmap(name, **{"recording": False, "dirty_bytes": 65536, **changes})


def layer(*bitmaps: Bitmap, **changes: Any) -> Layer:
    values: dict[str, Any] = {
        "node_name": "libvirt-1-format",
        "driver": BlockDriver.QCOW2,
        "read_only": False,
        "virtual_size_bytes": SIZE_BYTES,
        "filename": "/images/vda.qcow2",
        "stores_bitmaps": changes.get("driver", BlockDriver.QCOW2) == BlockDriver.QCOW2,
        "cluster_bytes": 65536 if changes.get("driver", BlockDriver.QCOW2) == BlockDriver.QCOW2 else None,
        "bitmaps": {one.name: one for one in bitmaps},
    }
    return Layer(**{**values, **changes})


def node(*layers: Layer, dev: str = "vda") -> DiskNode:
    return DiskNode(disk(dev), layers or (layer(),))


def image_file(disk: Disk) -> Image:
    """The image of a disk as vbackup.qemu.backing_chain finds it."""
    assert disk.path is not None
    return Image(disk.path, disk.format, is_block_device=False, identity=(1, sum(disk.path.encode())))


def domain(*devs: str, left_out: Iterable[LeftOut] = (), **changes: Any) -> Domain:
    values: dict[str, Any] = {
        "name": "web",
        "uuid": UUID,
        "disks": tuple(disk(dev) for dev in devs or ("vda",)),
        "left_out": tuple(left_out),
        "agent_connected": False,
    }
    return Domain(**{**values, **changes})


def commit(repository: Repository, one: Backup, *, name: str | None = None) -> Path:
    """Put a backup into a repository, with images as large as recorded; returns its directory."""
    with repository.lock(one.domain_uuid), repository.stage(one.domain_uuid, one.id) as stage:
        for disk_image in one.disks:
            with (stage.path / disk_image.file).open("wb") as file:
                file.truncate(disk_image.file_size_bytes)
        repository.remember_name(one.domain_uuid, name or one.domain_name)
        stage.commit(one)
    return repository.directory(one.domain_uuid, one.id)


def qcow2_image(size_bytes: int, *, backing: str | None = None, **changes: bytes) -> bytes:
    """A qcow2 image (version 3, clusters of 64 KiB) without data. ``offset_N``: what is at that offset instead."""
    data = bytearray(65536)
    struct.pack_into(">4sIQIIQI", data, 0, b"QFI\xfb", 3, 0, 0, 16, size_bytes, 0)
    struct.pack_into(">I", data, 100, 104)
    if backing is not None:
        name = backing.encode()
        struct.pack_into(">QI", data, 8, 1024, len(name))
        data[1024 : 1024 + len(name)] = name
        struct.pack_into(">II5s", data, 104, 0xE2792ACA, 5, b"qcow2")
    for where, piece in changes.items():
        offset = int(where.removeprefix("offset_"))
        data[offset : offset + len(piece)] = piece
    return bytes(data)


# fixtures captured by tests.capture


def fixture_xml(name: str) -> str:
    return (FIXTURES / name / "domain.xml").read_text()


def fixture_replies(name: str) -> tuple[Any, Any, Any]:
    """What QEMU answered: query-block, query-blockstats, query-named-block-nodes."""
    query_block, query_blockstats, nodes = (
        json.loads((FIXTURES / name / f"{query}.json").read_text())
        for query in ("query-block", "query-blockstats", "query-named-block-nodes")
    )
    return query_block, query_blockstats, nodes


def fixture_graph(name: str) -> BlockGraph:
    return BlockGraph(*fixture_replies(name))


def use_libvirt(monkeypatch: pytest.MonkeyPatch, host: Any) -> None:
    """Let every connection of vbackup.api be to that libvirt."""
    monkeypatch.setattr(Hosts, "one", lambda _hosts: contextlib.nullcontext(host))


def tell(reporter: Reporter) -> None:
    """One of everything, over two disks and two stages."""
    reporter.step("Disk vda: full, asked for.")
    reporter.warning("The disk [bold]vdb[/bold] is käse.")
    for done in (0, 512, 1024):
        reporter.progress("vda", Phase.COPY, done, 1024)
        reporter.progress("vdb", Phase.COPY, done, 2048)
    reporter.step("Disk vda: 1 image checked.")
    reporter.progress("vda", Phase.CHECK, 7, 7)


class Recorder:
    """A Reporter that remembers everything; ``on_progress`` may do something meanwhile."""

    def __init__(self, on_progress: Callable[[], None] = lambda: None) -> None:
        self.steps: list[str] = []
        self.warnings: list[str] = []
        self.told: dict[str, list[tuple[int, int]]] = {}
        self.phases: set[Phase] = set()
        self._on_progress = on_progress

    def step(self, message: str) -> None:
        self.steps.append(message)

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        self.told.setdefault(dev, []).append((done_bytes, total_bytes))
        self.phases.add(phase)
        self._on_progress()


#: Longer than any command takes; one that waits for a FIFO never ends.
PATIENCE_S = 30


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Fail if the block still waits for something after PATIENCE_S seconds."""

    def lose(_signum: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"it still waits after {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, lose)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def live_state_in(output: Path, *devs: str) -> LiveState:
    """A live restore to that directory; without ``devs`` of a domain with the disk vda."""
    disks = devs or ("vda",)
    return LiveState(
        output=output,
        repository_id=REPOSITORY,
        original=UUID,
        uuid=UUID,
        name="web",
        backup=backup_id(1),
        disks={dev: LiveDisk(dev, backup_id(1), output / f"{dev}.qcow2") for dev in disks},
        files=("domain.xml",),
        later=("serial0.log",),
        protected=(backup_id(1),),
    )


#: The tracker of the sessions below, and the id that it has in QEMU.
TRACKER = "acme:web"
TRACKER_ID = names.tracker_id(TRACKER)


def session_checkpoint(number: int, *devs: str, level: Level = Level.FULL) -> Checkpoint:
    """The ``number``-th checkpoint of the tracker TRACKER."""
    time = NOON + timedelta(seconds=number)
    id_ = names.backup_id(time, level)
    naming = names.Naming(TRACKER_ID)
    disks = [
        TrackedDisk(dev, level, SIZE_BYTES, naming.bitmap(id_, dev, f"{number:012x}"), "libvirt-1-format")
        for dev in devs
    ]
    return Checkpoint(
        id_, number, time, f"{names.stamp(time)}-{number:06x}", level, disks={disk.dev: disk for disk in disks}
    )


def pull_session(*devs: str, number: int = 2, **changes: Any) -> Session:
    """An open session that is incremental since the first checkpoint of TRACKER."""
    base = session_checkpoint(1, *devs)
    checkpoint = session_checkpoint(number, *devs, level=Level.INCREMENTAL)
    context = f"qemu:dirty-bitmap:{base.id}"
    disks = [
        SessionDisk(
            dev=dev,
            size_bytes=SIZE_BYTES,
            export=f"{checkpoint.session}-{dev}",
            uri=f"nbd+unix:///{checkpoint.session}-{dev}?socket=/run/x/nbd.sock",
            level_asked=Level.AUTO,
            level=Level.INCREMENTAL,
            reason_code="base-trusted",
            reason=f"changes since {base.id}",
            base_checkpoint=base.id,
            base_context=context,
            contexts={base.id: context},
            dirty_bytes=65536,
        )
        for dev in devs
    ]
    values: dict[str, Any] = {
        "id": checkpoint.session,
        "tracker": TRACKER,
        "domain_name": "web",
        "domain_uuid": UUID,
        "state": SessionState.OPEN,
        "level": Level.AUTO,
        "base_asked": None,
        "checkpoint": checkpoint.id,
        "base_checkpoint": base.id,
        "started": checkpoint.time,
        "expires": checkpoint.time + timedelta(hours=2),
        "socket": "/run/x/nbd.sock",
        "disks": tuple(disks),
        "internals": Internals(Process(4711, 1, "boot"), "/var/tmp", checkpoint=checkpoint),
    }
    return Session(**{**values, **changes})
