"""Restore disks of a domain that is off in full, in place: where vbackup.operations.rollback cannot write only changes.

The new image is made and checked beside the old one, and takes its place when the images of all disks are complete
(vbackup.images.replacement). What is the only copy of the present content is never written to: so block devices, and
images whose kind a new one could not have, are refused. A journal in the repository tells the next run what to end
(vbackup.operations.in_place_end).
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vbackup.domain import domain_xml
from vbackup.domain.access import doubt
from vbackup.domain.host import DomainHandle
from vbackup.engine import restored_checkpoint
from vbackup.engine.restored_checkpoint import RestoredImage
from vbackup.errors import (
    ChainError,
    DiskError,
    NoSpaceError,
    VbackupError,
    domain_argument,
)
from vbackup.files import storage_errors
from vbackup.images import destination, device, restoring
from vbackup.images.replacement import Replacement
from vbackup.images.restoring import Restoring
from vbackup.model import BlockDriver, Disk, ImageFormat
from vbackup.operations import in_place_end
from vbackup.qemu import image_lock, qcow2
from vbackup.qemu.backing_chain import Image
from vbackup.report import Reporter
from vbackup.repository import in_place_journal
from vbackup.repository.chosen import Chosen
from vbackup.repository.in_place_journal import Replaced, Seen, Step
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

_FORMATS = {BlockDriver(one.value): one for one in ImageFormat}


@dataclass(frozen=True)
class RestoredInFull:
    """A disk whose image was replaced."""

    dev: str
    backup: str  #: id of the backup that it is like now
    reason: str  #: why it could not be rolled back
    path: Path
    written_bytes: int  #: what the new image takes on storage
    kept: Path | None  #: the old image, if it was kept


@dataclass(frozen=True)
class FullRequest:
    """How disks are restored in full."""

    exclusive: bool = False  #: no other host uses the images of the domain while it is off
    checkpoint: bool = True  #: the next backup starts from the point
    keep_old: bool = False
    speed_bytes_s: int | None = None  #: of each disk


@dataclass(frozen=True)
class _Target:
    """A disk, and the image that is replaced."""

    dev: str
    replacement: Replacement
    image_format: ImageFormat
    reason: str
    has_snapshots: bool  #: the old image has internal snapshots, which the new one has not


class FullRestore:
    """What is restored in full; nothing is written before ``written``, nothing replaced before ``exchange``."""

    def __init__(
        self,
        targets: Sequence[_Target],
        request: FullRequest,
        handle: DomainHandle,
        point: Chosen,
        *,
        repository: Repository,
        reporter: Reporter,
        stop: Stop,
        is_resumed: bool,
    ) -> None:
        self._targets, self._request, self._point, self._handle = targets, request, point, handle
        self._repository, self._reporter, self._stop = repository, reporter, stop
        self._directory = repository.path / handle.uuid
        self._rolled, self._is_resumed = frozenset[str](), is_resumed
        self._journal = [
            Replaced(
                one.dev,
                one.replacement.path,
                one.replacement.backup,
                request.keep_old or one.has_snapshots,
                Seen.of(one.replacement.path),
            )
            for one in targets
        ]

    @contextmanager
    def written(self, rolled: Collection[str]) -> Iterator[None]:
        """Make the new images, beside the old ones, and check them; they are removed if the block fails.

        During the block the disks in ``rolled`` (dev) are rolled back. From its begin on the restore has to be
        finished, and the journal stays until it is. Raises what Restoring.write raises, BusyError.
        """
        if not self._targets and not self._is_resumed:
            yield
            return
        self._rolled = frozenset(rolled)
        self._record(Step.ROLLING if self._is_resumed else Step.WRITING)
        try:
            self._write()
            self._stop.check()
            with image_lock.held([one.replacement.new for one in self._targets]):
                self._journal = [
                    replace(recorded, new=Seen.of(one.replacement.new))
                    for one, recorded in zip(self._targets, self._journal)
                ]
                if rolled:
                    self._record(Step.ROLLING)
                yield
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        """Undo what can be undone after an error, which a further one must not hide."""
        step = Step.EXCHANGING
        with suppress(VbackupError):
            entry = in_place_journal.read(self._directory)
            step = step if entry is None else entry.step  # as the next run will find it
        if step is not Step.EXCHANGING:
            for one in self._targets:
                with suppress(OSError):
                    one.replacement.discard()
        if step is Step.WRITING:
            with suppress(VbackupError):
                in_place_journal.remove(self._directory)
            return
        self._reporter.warning(
            f"The restore of domain {self._handle.name} to backup {self._point.backup.id} did not end: some disks may"
            " be as in that backup and others as before. Do not start it. Run the same command again, which ends it."
        )

    def _write(self) -> None:
        with tempfile.TemporaryDirectory(prefix="vbackup-") as scratch:
            write = Restoring(
                self._repository, self._reporter, self._stop, Path(scratch), speed_bytes_s=self._request.speed_bytes_s
            ).write
            for one in self._targets:
                self._reporter.step(f"Disk {one.dev}: restored in full, in place: {one.reason.rstrip('.')}.")
                write(self._point.chains[one.dev], one.replacement.new, one.image_format)
        if self._request.checkpoint:
            restored_checkpoint.add(
                [
                    RestoredImage(one.dev, self._point.choice.disks[one.dev], one.replacement.new, one.replacement.path)
                    for one in self._targets
                    if one.image_format is ImageFormat.QCOW2
                ],
                uuid=self._handle.uuid,
                repository=self._repository,
                reporter=self._reporter,
                stop=self._stop,
            )
        for one in self._targets:
            with storage_errors(f"give {one.replacement.new} the owner, mode and label of {one.replacement.path}"):
                one.replacement.take_attributes()

    def exchange(self, *, about_to_write: Callable[[Sequence[str]], None] = lambda _devs: None) -> list[RestoredInFull]:
        """Put the new images in their places, and return what was done. Raises StorageError: then run it again.

        ``about_to_write`` is called with the disks (dev) while they are as they were.
        """
        if not self._targets:
            if self._is_resumed:
                in_place_journal.remove(self._directory)
            return []
        sizes_bytes = {one.dev: one.replacement.new.stat().st_blocks * 512 for one in self._targets}
        about_to_write([one.dev for one in self._targets])
        self._record(Step.EXCHANGING)
        in_place_end.finish(self._directory, self._journal, reporter=self._reporter)
        done = []
        for one, recorded in zip(self._targets, self._journal):
            kept = one.replacement.kept if recorded.is_kept and os.path.lexists(one.replacement.kept) else None
            done.append(
                RestoredInFull(one.dev, one.replacement.backup, one.reason, recorded.path, sizes_bytes[one.dev], kept)
            )
            if kept is not None and not self._request.keep_old:
                self._reporter.warning(
                    f"Disk {one.dev}: the old image has internal snapshots, which the restored one has not; it is kept:"
                    f" {kept}."
                )
        return done

    def _record(self, step: Step) -> None:
        in_place_journal.write(
            self._directory, step, backup=self._point.backup.id, disks=self._journal, rolled=self._rolled
        )


@contextmanager
def prepared(
    request: FullRequest,
    reasons: Mapping[str, str],
    handle: DomainHandle,
    point: Chosen,
    *,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    is_resumed: bool = False,
) -> Iterator[FullRestore]:
    """Find out whether the disks in ``reasons`` (dev: why it cannot be rolled back) can be restored in full.

    ``is_resumed``: the run finishes one that had begun to change disks (vbackup.operations.in_place_end). During the
    block no QEMU can open their images. Raises DiskError for the first disk that cannot be, NoSpaceError if there is no
    room for a new image, StorageError, BusyError; nothing was written then.
    """
    known = {disk.dev: disk for disk in domain_xml.parse(handle.live_xml()).disks}
    targets = []
    for dev, reason in reasons.items():
        try:
            if dev not in known:
                raise _UnfitError("there is no image to replace")
            targets.append(_target(known[dev], reason, request, handle, point))
        except _UnfitError as err:
            raise DiskError(
                dev,
                f"it cannot be rolled back by writing only what differs ({reason.rstrip('.')}), nor restored in full in"
                f" place: {err}. Nothing was written. Restore it to another place: vbackup restore"
                f" {domain_argument(handle.name)} --backup={point.backup.id} --output=DIR{err.option}.",
            ) from err
    _refuse_full(targets, point, repository)
    old = [one.replacement.path for one in targets if os.path.lexists(one.replacement.path)]
    with image_lock.held(old):
        if targets:
            in_place_end.refuse_started(handle)
        yield FullRestore(
            targets,
            request,
            handle,
            point,
            repository=repository,
            reporter=reporter,
            stop=stop,
            is_resumed=is_resumed,
        )


class _UnfitError(Exception):
    """Why the image of a disk cannot be replaced; ``option``: what the command for another place has in addition."""

    def __init__(self, reason: str, *, option: str = "") -> None:
        super().__init__(reason)
        self.option = option


def _target(disk: Disk, reason: str, request: FullRequest, handle: DomainHandle, point: Chosen) -> _Target:
    dev = disk.dev
    if len(disk.images) > 1:
        raise _UnfitError("the definition of the domain names the images below it, which would show through")
    image_format, path = _FORMATS.get(disk.format), in_place_end.image_path(disk, handle)
    if disk.encrypted or disk.images[0].secret is not None:
        raise _UnfitError("it is encrypted, and the new image would not be")
    if disk.images[0].oddity is not None:
        raise _UnfitError(disk.images[0].oddity)
    if path is None:
        raise _UnfitError("its image is no file of this host")
    if device.is_block_device(path):
        raise _UnfitError(
            f"{path} is a block device, on which the old content could not be kept",
            option=f" --disk={shlex.quote(f'{dev}={disk.path or path}')}",
        )
    if image_format is None:
        raise _UnfitError(f"its format is {disk.format.name}, and not qcow2 or raw")
    replacement = Replacement(path, point.choice.disks[dev].id)
    has_snapshots = False
    if os.path.lexists(path):
        has_snapshots = _look_at(path, disk, request)
    elif not path.parent.is_dir():
        raise _UnfitError(f"there is no directory {path.parent}")
    barrier = replacement.barrier()
    if barrier is not None:
        raise _UnfitError(barrier)
    destination.refuse_existing([replacement.new, replacement.kept], instead="it another name, or remove it")
    return _Target(dev, replacement, image_format, reason, has_snapshots)


def _look_at(path: Path, disk: Disk, request: FullRequest) -> bool:
    """Return whether the old image has internal snapshots. Raises _UnfitError if it must not be replaced."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise _UnfitError(f"{path} is no regular file")
    why = doubt(Image(str(path), disk.format, False, (status.st_dev, status.st_ino)))
    if why is not None and not request.exclusive:
        raise _UnfitError(f"its image {path} {why}; if this host alone uses it, give --exclusive")
    if disk.format != BlockDriver.QCOW2:
        return False
    try:
        header = qcow2.header_of_source(path)
    except ChainError:
        return False  # nobody can use it as it is
    if header.encrypted:
        raise _UnfitError("it is encrypted, and the new image would not be")
    if header.has_data_file:
        raise _UnfitError("its content is in an external data file, which the new image would not have")
    return header.snapshots > 0


def _refuse_full(targets: Sequence[_Target], point: Chosen, repository: Repository) -> None:
    """Raise NoSpaceError if the new images do not fit beside the old ones, StorageError if none can be made there."""
    needed: dict[int, int] = {}
    for one in targets:
        directory = one.replacement.path.parent
        with storage_errors(f"make an image in {directory}"):
            status, room = directory.stat(), os.statvfs(directory)
            if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
                raise PermissionError(13, os.strerror(13), os.fspath(one.replacement.new))
        with storage_errors(f"give a new image in {directory} the owner, mode and label of {one.replacement.path}"):
            try:
                one.replacement.check_attributes()
            except PermissionError as err:
                if os.geteuid() == 0:
                    raise
                raise PermissionError(errno.EACCES, err.strerror) from err
        image_bytes = restoring.needed_bytes(point.chains[one.dev], repository)
        needed[status.st_dev] = needed.get(status.st_dev, 0) + image_bytes
        free_bytes = room.f_bavail * room.f_frsize
        if needed[status.st_dev] > free_bytes:
            raise NoSpaceError(
                f"Disk {one.dev}: its new image is made beside the old one, and {directory} has {free_bytes} bytes free"
                f" and needs {needed[status.st_dev]}. Nothing was written. Free some space, or restore to another place"
                " with --output."
            )
