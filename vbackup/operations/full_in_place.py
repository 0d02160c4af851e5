"""Restore disks of a domain that is off in full, in place: where vbackup.operations.rollback cannot write only changes.

The new image is made and checked beside the old one, and takes its place when the images of all disks are complete
(vbackup.images.replacement). What is the only copy of the present content is never written to: so block devices, and
images whose kind a new one could not have, are refused. The images are on this host, or on another one
(vbackup.operations.in_place_host). A journal in the repository tells the next run what to end
(vbackup.operations.in_place_end).
"""

from __future__ import annotations

import logging
import shlex
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vbackup.domain import domain_xml
from vbackup.domain.host import DomainHandle
from vbackup.errors import ChainError, DiskError, NoSpaceError, StorageError, VbackupError
from vbackup.images import restoring
from vbackup.images.replacement import Replacement
from vbackup.model import BlockDriver, Disk, ImageFormat
from vbackup.operations import in_place_end
from vbackup.operations.in_place_host import NewImage, Place, Restore, Status
from vbackup.qemu.backing_chain import Image
from vbackup.repository import in_place_journal, verify
from vbackup.repository.chosen import Chosen
from vbackup.repository.in_place_journal import Replaced, Seen, Step

log = logging.getLogger(__name__)

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
class _Target(NewImage):
    """A disk, and the image that is replaced."""

    reason: str
    has_snapshots: bool  #: the old image has internal snapshots, which the new one has not


class FullRestore:
    """What is restored in full; nothing is written before ``written``, nothing replaced before ``exchange``."""

    def __init__(
        self,
        targets: Sequence[_Target],
        request: FullRequest,
        handle: DomainHandle,
        place: Place,
        what: Restore,
        *,
        is_resumed: bool,
    ) -> None:
        self._targets, self._request, self._handle = targets, request, handle
        self._place, self._what = place, what
        self._directory = what.repository.path / handle.uuid
        self._rolled, self._is_resumed = frozenset[str](), is_resumed
        self._journal = [
            Replaced(
                one.dev,
                one.replacement.path,
                one.replacement.backup,
                request.keep_old or one.has_snapshots,
                self._seen(one.replacement.path),
            )
            for one in targets
        ]

    def _seen(self, path: Path) -> Seen | None:
        with self._place.errors(f"look at {path}"):
            return self._place.seen(path)

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
            self._make()
            self._what.stop.check()
            with self._place.held([one.replacement.new for one in self._targets]):
                self._journal = [
                    replace(recorded, new=self._seen(one.replacement.new))
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
        is_clean = True
        if step is not Step.EXCHANGING:
            for one in self._targets:
                try:
                    one.replacement.discard()
                except (OSError, VbackupError) as err:  # such as a link that is lost: the next run removes it
                    log.debug("%s stays: %s", one.replacement.new, err)
                    is_clean = False
        if step is Step.WRITING:
            with suppress(VbackupError):
                if is_clean:
                    in_place_journal.remove(self._directory)
            return
        self._what.reporter.warning(
            f"The restore of domain {self._handle.name} to backup {self._what.point.backup.id} did not end: some disks"
            " may be as in that backup and others as before. Do not start it. Run the same command again, which ends"
            " it."
        )

    def _make(self) -> None:
        for one in self._targets:
            self._what.reporter.step(f"Disk {one.dev}: restored in full, in place: {one.reason.rstrip('.')}.")
        if self._targets:
            self._place.make(
                self._targets,
                self._what,
                checkpoint=self._request.checkpoint,
                speed_bytes_s=self._request.speed_bytes_s,
            )
        for one in self._targets:
            new, old = one.replacement.new, one.replacement.path
            with self._place.errors(f"give {new} the owner, mode and label of {old}"):
                one.replacement.take_attributes()

    def exchange(self, *, about_to_write: Callable[[Sequence[str]], None] = lambda _devs: None) -> list[RestoredInFull]:
        """Put the new images in their places, and return what was done. Raises StorageError: then run it again.

        ``about_to_write`` is called with the disks (dev) while they are as they were.
        """
        if not self._targets:
            if self._is_resumed:
                in_place_journal.remove(self._directory)
            return []
        sizes_bytes = {one.dev: self._stored_bytes(one.replacement.new) for one in self._targets}
        about_to_write([one.dev for one in self._targets])
        self._record(Step.EXCHANGING)
        in_place_end.finish(self._directory, self._journal, self._place, reporter=self._what.reporter)
        done = []
        for one, recorded in zip(self._targets, self._journal):
            kept = one.replacement.kept if recorded.is_kept and self._seen(one.replacement.kept) is not None else None
            done.append(
                RestoredInFull(one.dev, one.replacement.backup, one.reason, recorded.path, sizes_bytes[one.dev], kept)
            )
            if kept is not None and not self._request.keep_old:
                self._what.reporter.warning(
                    f"Disk {one.dev}: the old image has internal snapshots, which the restored one has not; it is kept:"
                    f" {kept}{self._place.on_host}."
                )
        in_place_journal.remove(self._directory)  # nothing that follows needs the images
        return done

    def _stored_bytes(self, path: Path) -> int:
        with self._place.errors(f"look at {path}"):
            found = self._place.status(path)
        return 0 if found is None else found.stored_bytes

    def _record(self, step: Step) -> None:
        in_place_journal.write(
            self._directory,
            step,
            backup=self._what.point.backup.id,
            disks=self._journal,
            rolled=self._rolled,
            host=self._place.host,
            uri=self._place.uri,
        )


def ended(
    finished: Mapping[str, Replaced], reasons: Mapping[str, str], place: Place, point: Chosen, *, keep_old: bool
) -> list[RestoredInFull]:
    """Return those of the disks in ``reasons`` that need no new image: a dead run has made it, and settle finished it.

    ``finished``: see in_place_end.Settled. Another image would differ in nothing, and with ``keep_old`` its name for
    the old one would be taken.
    """
    found = []
    for dev, reason in reasons.items():
        one = finished.get(dev)
        if one is None or one.backup != point.choice.disks[dev].id:
            continue
        kept = place.replacement(one.path, one.backup).kept
        with place.errors(f"look at {one.path}"):
            status = place.status(one.path)
            is_kept = (one.is_kept or keep_old) and place.seen(kept) is not None
        size_bytes = 0 if status is None else status.stored_bytes
        found.append(RestoredInFull(dev, one.backup, reason, one.path, size_bytes, kept if is_kept else None))
    return found


@contextmanager
def prepared(
    request: FullRequest,
    reasons: Mapping[str, str],
    handle: DomainHandle,
    place: Place,
    what: Restore,
    *,
    is_resumed: bool = False,
) -> Iterator[FullRestore]:
    """Find out whether the disks in ``reasons`` (dev: why it cannot be rolled back) can be restored in full.

    ``is_resumed``: the run finishes one that had begun to change disks (vbackup.operations.in_place_end). During the
    block no QEMU can open their images. Raises DiskError for the first disk that cannot be, NoSpaceError if there is no
    room for a new image, StorageError, BusyError, ChainError if an image of the backup is not as it was, RemoteError,
    LinkLostError; nothing was written then.
    """
    known = {disk.dev: disk for disk in domain_xml.parse(handle.live_xml()).disks}
    targets = []
    for dev, reason in reasons.items():
        try:
            if dev not in known:
                raise _UnfitError("there is no image to replace")
            targets.append(_target(known[dev], reason, request, place, what.point))
        except _UnfitError as err:
            raise DiskError(
                dev,
                f"it cannot be rolled back by writing only what differs ({reason.rstrip('.')}), nor restored in full in"
                f" place{place.on_host}: {err}. Nothing was written."
                f" {place.elsewhere(what.point.backup.id, option=err.option)}",
            ) from err
    _refuse_full(targets, place, what)
    chains = {one.dev: what.point.chains[one.dev] for one in targets}
    verify.check_chains(chains, what.repository, reporter=what.reporter, stop=what.stop)
    old = []
    for one in targets:
        with place.errors(f"look at {one.replacement.path}"):
            if place.status(one.replacement.path) is not None:
                old.append(one.replacement.path)
    with place.held(old):
        if targets:
            in_place_end.refuse_started(handle)
        yield FullRestore(targets, request, handle, place, what, is_resumed=is_resumed)


class _UnfitError(Exception):
    """Why the image of a disk cannot be replaced; ``option``: what the command for another place has in addition."""

    def __init__(self, reason: str, *, option: str = "") -> None:
        super().__init__(reason)
        self.option = option


def _target(disk: Disk, reason: str, request: FullRequest, place: Place, point: Chosen) -> _Target:
    path = _path(disk, place)
    with place.errors(f"look at {path}"):
        status = place.status(path)
        directory = place.status(path.parent)
    if status is not None and stat.S_ISBLK(status.mode):
        raise _UnfitError(
            f"{path} is a block device, on which the old content could not be kept",
            option=f" --disk={shlex.quote(f'{disk.dev}={disk.path or path}')}",
        )
    image_format = _FORMATS.get(disk.format)
    if image_format is None:
        raise _UnfitError(f"its format is {disk.format.name}, and not qcow2 or raw")
    if directory is None or not stat.S_ISDIR(directory.mode):
        raise _UnfitError(f"there is no directory {path.parent}")
    has_snapshots = status is not None and _look_at(path, status, disk, request, place)
    replacement = place.replacement(path, point.choice.disks[disk.dev].id)
    _refuse_taken(replacement, place)
    return _Target(disk.dev, replacement, image_format, reason, has_snapshots)


def _path(disk: Disk, place: Place) -> Path:
    """Return the path of a disk's image. Raises _UnfitError if its definition rules out another image."""
    if len(disk.images) > 1:
        raise _UnfitError("the definition of the domain names the images below it, which would show through")
    path = place.path_of(disk)
    if disk.encrypted or disk.images[0].secret is not None:
        raise _UnfitError("it is encrypted, and the new image would not be")
    if disk.images[0].oddity is not None:
        raise _UnfitError(disk.images[0].oddity)
    if path is None:
        raise _UnfitError("its image is no file" + (" there" if place.on_host else " of this host"))
    return path


def _refuse_taken(replacement: Replacement, place: Place) -> None:
    """Raise _UnfitError if the image can get no other name, StorageError if one that is needed is taken."""
    with place.errors(f"look at {replacement.path}"):
        barrier = replacement.barrier()
        if barrier is not None:
            raise _UnfitError(barrier)
        for taken in (replacement.new, replacement.kept):
            if place.seen(taken) is not None:
                raise StorageError(
                    f"{taken} already exists{place.on_host}, and vbackup never overwrites files; give it another name,"
                    " or remove it."
                )


def _look_at(path: Path, status: Status, disk: Disk, request: FullRequest, place: Place) -> bool:
    """Return whether the old image has internal snapshots. Raises _UnfitError if it must not be replaced."""
    if not stat.S_ISREG(status.mode):
        raise _UnfitError(f"{path} is no regular file")
    why = place.doubt(Image(str(path), disk.format, False, status.identity))
    if why is not None and not request.exclusive:
        raise _UnfitError(f"its image {path} {why}; if this host alone uses it, give --exclusive")
    if disk.format != BlockDriver.QCOW2:
        return False
    try:
        with place.errors(f"read the header of {path}"):  # not read is not the same as "no snapshots"
            header = place.header(path)
    except ChainError:
        return False  # nobody can use it as it is
    if header.encrypted:
        raise _UnfitError("it is encrypted, and the new image would not be")
    if header.has_data_file:
        raise _UnfitError("its content is in an external data file, which the new image would not have")
    return header.snapshots > 0


def _refuse_full(targets: Sequence[_Target], place: Place, what: Restore) -> None:
    """Raise NoSpaceError if the new images do not fit beside the old ones, StorageError if none can be made there."""
    needed: dict[int, int] = {}
    on_host = place.on_host
    for one in targets:
        old = one.replacement.path
        directory = old.parent
        with place.errors(f"make an image in {directory}"):
            device, free_bytes = place.room(directory)
        with place.errors(f"give a new image in {directory} the owner, mode and label of {old}"):
            one.replacement.check_attributes()
        needed[device] = needed.get(device, 0) + restoring.needed_bytes(what.point.chains[one.dev], what.repository)
        if needed[device] > free_bytes:
            raise NoSpaceError(
                f"Disk {one.dev}: its new image is made beside the old one, and {directory}{on_host} has {free_bytes}"
                f" bytes free and needs {needed[device]}. Nothing was written. Free some space, or restore to another"
                " place with --output."
            )
