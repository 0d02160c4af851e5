"""Check the file systems of a backup: ``vbackup verify --fsck``.

libguestfs's appliance gets the disks as read-only NBD exports of a storage daemon, so neither the host's kernel nor the
repository has to do with what is in them (vbackup.images.fsck). The result is kept with the backup.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from vbackup.errors import StorageError, UnsuitableError
from vbackup.images import appliance, fsck, scratch
from vbackup.images.appliance import Drive
from vbackup.images.flatten import layers_of
from vbackup.images.fsck import FileSystem, State
from vbackup.images.opened_point import OpenedPoint
from vbackup.model import Backup
from vbackup.report import Reporter
from vbackup.repository import chosen, fsck_result
from vbackup.repository.choice import Wanted
from vbackup.repository.chosen import Chosen
from vbackup.repository.fsck_result import CheckedFileSystem, FsckResult
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class FsckRequest:
    """The options of ``vbackup verify --fsck``, for one domain."""

    backup_id: str | None = None  #: None: the newest
    disks: tuple[str, ...] = ()  #: only these; empty: all


@dataclass(frozen=True)
class Checked:
    """What the check of a backup has found."""

    uuid: str
    name: str
    backup: Backup
    result: FsckResult
    is_kept: bool  #: False if the result could not be written, as in a read-only repository


def run(request: FsckRequest, uuid: str, *, repository: Repository, reporter: Reporter, stop: Stop) -> Checked:
    """Check the file systems of a backup of a domain and keep the result. Damage is a result.

    Raises what vbackup.repository.chosen.shown raises; UnsuitableError if guestfish or the storage daemon is not
    installed, or if there is nothing that can be checked; ApplianceError if the appliance does not start;
    StorageDaemonGoneError if an image cannot be opened; InterruptedBySignalError. Nothing is kept then.
    """
    appliance.refuse_missing()
    began = time.monotonic()
    wanted = Wanted(request.backup_id, disks=request.disks)
    with chosen.shown(repository, uuid, wanted, reporter=reporter, stop=stop) as found:
        systems = _check(found, repository=repository, reporter=reporter, stop=stop)
        backup, devs = found.backup, tuple(found.chains)
        if all(one.state is State.UNCHECKED for one in systems):
            what = "; ".join(f"{one.name} ({one.type}): {one.detail}" for one in systems) or "there is no file system"
            raise UnsuitableError(f"Nothing in backup {backup.id} can be checked: {what}.")
        result = FsckResult(
            datetime.now(timezone.utc),
            devs,
            tuple(CheckedFileSystem(one.name, one.type, one.state.value, one.detail) for one in systems),
            round(time.monotonic() - began, 3),
        )
        try:
            fsck_result.write(repository.directory(uuid, backup.id), result)
            is_kept = True
        except StorageError as err:
            reporter.warning(f"The result of the check is not kept with the backup: {err}")
            is_kept = False
    return Checked(uuid, backup.domain_name, backup, result, is_kept)


def _check(found: Chosen, *, repository: Repository, reporter: Reporter, stop: Stop) -> list[FileSystem]:
    layers = {dev: layers_of(found.paths(repository, dev), repository.served) for dev in found.chains}
    with ExitStack() as stack:
        # Not in TMPDIR: the path of a socket has to be short.
        directory = stack.enter_context(scratch.directory(Path("/tmp")))  # noqa: S108 - mkdtemp is safe there
        point = stack.enter_context(OpenedPoint(layers, reporter=reporter))
        point.listen(directory / "nbd")
        for dev in layers:
            point.export_nbd(dev)
        drives = [Drive(directory / "nbd", dev) for dev in layers]
        session = stack.enter_context(appliance.session(drives, stop=stop, step=reporter.step))
        return fsck.check(session, list(layers), step=reporter.step)
