"""Give restored disks the bitmap of the checkpoint they were restored to, so that the next backup is an incremental.

A disk that was restored is as it was at that backup. With an empty bitmap that records from now on, as the backup's own
did, the next backup starts from there, whatever newer backups the repository has. The bitmap is in the image before
anybody can write to it, and QEMU then records every write, whichever of its programs makes it: that of the domain,
qemu-nbd, qemu-io. vbackup.repository.restored has the other half of the proof: which image got which bitmap.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbackup import names
from vbackup.engine import scratch
from vbackup.engine.endmark import NewMark
from vbackup.errors import InterruptedBySignalError, VbackupError
from vbackup.files import fsync, storage_errors
from vbackup.layers import ChainState, FileState, LayerState
from vbackup.model import GRANULARITY_BYTES, Backup, Level, NodeBitmap
from vbackup.names import Naming
from vbackup.process import Process
from vbackup.qapi.actions import Action, BlockDirtyBitmapAdd
from vbackup.qemu.monitor import Monitor
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Reporter
from vbackup.repository import restored
from vbackup.repository.history import RestoredDisk, image_of
from vbackup.repository.repository import Repository
from vbackup.stop import Stop
from vbackup.undo import Undo


@dataclass(frozen=True)
class RestoredImage:
    """A qcow2 image that a restore has written, and that nothing was written to since."""

    dev: str
    backup: Backup  #: that the disk is of
    path: Path  #: of a file, or of a block device
    final: Path  #: where it will be when the restore is complete; a file is only renamed


def add(
    images: Sequence[RestoredImage], *, uuid: str, repository: Repository, reporter: Reporter, stop: Stop
) -> list[str]:
    """Add the bitmaps to the images, and store them; return the disks (dev) that have one now.

    The restore is as good without, so what goes wrong is a warning: the next backup is a full then. Raises
    InterruptedBySignalError.
    """
    chosen = [one for one in images if can_start(one.backup, one.dev, reporter)]
    if not chosen:
        return []
    try:
        recorded = record([(one.dev, one.backup, _state(one)) for one in chosen], uuid=uuid, repository=repository)
        _write(chosen, recorded, repository.naming, reporter=reporter, stop=stop)
    except InterruptedBySignalError:
        raise
    except VbackupError as err:  # such as no storage daemon here, or a repository that is only read
        reporter.warning(
            f"The restored disks got no bitmap of the restored checkpoint, so their next backup is a full: {err} If"
            " that is wanted, --no-checkpoint does without it."
        )
        return []
    return [one.dev for one in chosen]


def record(
    disks: Sequence[tuple[str, Backup, ChainState]], *, uuid: str, repository: Repository, is_in_place: bool = False
) -> list[RestoredDisk]:
    """Record disks (dev, the backup restored, their layers) with a new name of a bitmap each, and return the records.

    Raises StorageError, NoSpaceError. A record of a bitmap that is never made does no harm.
    """
    naming = repository.naming
    history = repository.catalogue(uuid).history
    after = history.next_sequence - 1
    after_id = next((one.id for one in history.backups if one.sequence == after), None)
    made = [
        RestoredDisk(
            dev,
            backup.id,
            naming.bitmap(backup.id, dev, names.new_token(naming.place)),
            image_of(backup, dev).virtual_size_bytes,
            after,
            chain,
            after_id,
            is_in_place,
        )
        for dev, backup, chain in disks
    ]
    restored.add(repository.path / uuid, made)
    return made


def can_start(backup: Backup, dev: str, reporter: Reporter) -> bool:
    """Return True if a backup of the restored disk can start from the backup; say so if not."""
    if image_of(backup, dev).level is Level.COPY:
        reporter.step(f"Disk {dev}: {backup.id} is a copy, from which no backup starts: its next backup is a full.")
        return False
    return True


def _state(one: RestoredImage) -> ChainState:
    """Return the layer of a restored image, as it will be found by its next backup."""
    path = os.fspath(one.final.absolute())
    with storage_errors(f"read {one.path}"):
        status = one.path.stat()
    file = FileState(path)
    if stat.S_ISREG(status.st_mode):
        file = FileState(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return ChainState((LayerState("", file),), boot_id=Process.this().boot_id)


def _write(
    images: Sequence[RestoredImage],
    recorded: Sequence[RestoredDisk],
    naming: Naming,
    *,
    reporter: Reporter,
    stop: Stop,
) -> None:
    nodes = [_node(number, one.path) for number, one in enumerate(images)]
    with StorageDaemon(reporter, nodes=nodes) as daemon:
        write_bitmaps(daemon, nodes, recorded, naming=naming, reporter=reporter, stop=stop)
    for image in images:
        with storage_errors(f"write {image.path}"):
            fsync(image.path)


def write_bitmaps(
    monitor: Monitor,
    nodes: Sequence[Mapping[str, Any]],
    recorded: Sequence[RestoredDisk],
    *,
    naming: Naming,
    reporter: Reporter,
    stop: Stop,
) -> None:
    """Add the bitmaps of the records to images that are open, one record each, and store them in the images.

    ``nodes``: the options that each was opened with (QAPI BlockdevOptions); they are read-only afterwards. Raises
    QmpError, UnsuitableError, InterruptedBySignalError.
    """
    sizes = sorted({one.size_bytes for one in recorded if one.size_bytes})
    scratch_nodes = {size_bytes: naming.scratch_node(number) for number, size_bytes in enumerate(sizes)}
    with Undo(reporter) as undo:
        sizes_of = {name: size_bytes for size_bytes, name in scratch_nodes.items()}
        scratch.prepare(monitor, sizes_of, naming=naming, undo=undo, stop=stop)
        actions: list[Action] = []
        for node, one in zip(nodes, recorded):
            name = node["node-name"]
            if one.size_bytes:
                mark = NodeBitmap(name, naming.end_mark(one.dev, one.size_bytes))
                actions += NewMark(
                    mark,
                    persistent=True,
                    scratch=NodeBitmap(scratch_nodes[one.size_bytes], naming.scratch_job),
                    is_there=False,
                    distrusted=(),
                ).actions()
            actions.append(BlockDirtyBitmapAdd(name, one.bitmap, granularity=GRANULARITY_BYTES, persistent=True))
        monitor.execute("transaction", {"actions": [action.document() for action in actions]})
        # Reopening stores the bitmaps and reports an error, which closing does not.
        monitor.execute("blockdev-reopen", {"options": [{**node, "read-only": True} for node in nodes]})


def _node(number: int, path: Path) -> dict[str, Any]:
    with storage_errors(f"read {path}"):
        driver = "host_device" if stat.S_ISBLK(path.stat().st_mode) else "file"
    file = {"driver": driver, "filename": os.fspath(path.absolute())}
    return {"driver": "qcow2", "node-name": f"restored-{number}", "file": file, "backing": None}
