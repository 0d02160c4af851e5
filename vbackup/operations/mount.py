"""Show the disks of a backup as raw files in a directory, read-only: ``vbackup mount``.

One storage daemon shows all of them by FUSE (vbackup.images.opened_point), for as long as this process lives. What the
disks depend on is kept as it is meanwhile. The headers of the chains are checked, and no data: whoever reads the files
gets what the images have, which ``vbackup verify`` compares with the block lists.
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vbackup.images import mount_place, mount_points
from vbackup.images.flatten import layers_of
from vbackup.images.opened_point import OpenedPoint
from vbackup.model import Backup
from vbackup.report import Reporter
from vbackup.repository import chosen
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class MountRequest:
    """The options of ``vbackup mount``."""

    domain: str  #: name or UUID
    directory: Path
    wanted: Wanted


@dataclass(frozen=True)
class Shown:
    """A disk that can be read."""

    dev: str
    backup_id: str  #: of the backup that it is of
    size_bytes: int
    file: Path


class Mounted:
    """A backup that is mounted."""

    def __init__(
        self,
        backup: Backup,
        directory: Path,
        disks: Mapping[str, Shown],
        point: OpenedPoint,
        exports: Mapping[str, str],
    ) -> None:
        self.backup = backup
        self.directory = directory
        self.disks = disks
        self._point = point
        self._exports = dict(exports)

    def wait(self, stop: Stop) -> None:
        """Return when a stop is requested, or when all disks were unmounted by somebody.

        Raises StorageDaemonGoneError if the daemon ends before.
        """
        with mount_points.MOUNTINFO.open("rb", buffering=0) as mounts:
            # The kernel reports a change of the mounts as an error of the descriptor (proc(5)).
            self._point.wait(stop, watched=[(mounts.fileno(), select.POLLPRI)], is_over=self._is_over)

    def _is_over(self) -> bool:
        present = mount_points.mounted_in(self.directory)
        for dev in [dev for dev in self._exports if self.disks[dev].file not in present]:
            self._point.remove_export(self._exports.pop(dev))  # or QEMU is busy with an end that it has not noticed
        return not self._exports


@contextmanager
def mounted(request: MountRequest, *, repository: Repository, reporter: Reporter, stop: Stop) -> Iterator[Mounted]:
    """Mount the backup during the block.

    Raises what vbackup.repository.chosen.shown raises,
    UnsuitableError if this host has no FUSE or no storage daemon, StorageError if the directory cannot be used,
    BusyError if a backup is mounted there, StorageDaemonGoneError if an image cannot be opened.
    """
    repository.refuse_inside(request.directory)
    mount_points.refuse_without_fuse()
    uuid = repository.find(request.domain)
    with chosen.shown(repository, uuid, request.wanted, reporter=reporter, stop=stop) as found:
        layers = {dev: layers_of(found.paths(repository, dev), repository.served) for dev in found.chains}
        with (
            mount_place.prepared(request.directory, reporter=reporter) as directory,
            OpenedPoint(layers, reporter=reporter) as point,
        ):
            disks, exports = {}, {}
            for dev, one in found.choice.disks.items():
                stop.check()
                with mount_place.created(directory, dev) as file:
                    exports[dev] = point.export_fuse(dev, file)
                mount_points.read_ahead(file)
                disks[dev] = Shown(dev, one.id, point.size_bytes(dev), file)
            yield Mounted(found.backup, directory, disks, point, exports)
