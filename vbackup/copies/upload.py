"""Bring one point to a target: its objects, several at a time, then its manifest.

While an image is sent, it is read a second time and compared with its block list: the manifest is stored only if all of
it is as it was recorded. The digest of the bytes that were sent is in the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any

from vbackup.copies import composing, outgoing
from vbackup.copies import point as points
from vbackup.copies.ledger import Known
from vbackup.copies.outgoing import Outgoing
from vbackup.copies.planning import DiskCopy, Form, PointCopy
from vbackup.copies.point import ObjectRecord, Point
from vbackup.copies.staging import Staging, kept_by
from vbackup.copies.target import MANIFEST
from vbackup.errors import ChainError, StorageError
from vbackup.model import Backup, BlocksRecord, DiskImage, Level
from vbackup.report import Phase, Reporter
from vbackup.repository import block_list, image_check, manifest, readers, verify
from vbackup.repository.catalogue import read_text
from vbackup.repository.history import Link
from vbackup.repository.image_check import Watch
from vbackup.repository.read_rate import ReadRate
from vbackup.repository.repository import Repository
from vbackup.stop import Stop
from vbackup.stores.store import Deletion, StoredObject


@dataclass(frozen=True)
class Means:
    """What all points of a copy are brought with."""

    repository: Repository
    known: Known  #: the target
    rate: ReadRate  #: of all objects together
    parallel: int  #: number of objects at a time
    reporter: Reporter
    stop: Stop


@dataclass(frozen=True)
class Sent:
    """What was brought to the target for a point."""

    objects: int  #: that were stored now, without the manifest
    sent_bytes: int  #: of these
    found_objects: int  #: that an interrupted run had stored


@dataclass(frozen=True)
class _File:
    """A file that becomes an object."""

    name: str
    path: Path
    dev: str | None  #: the disk that its progress is of; None: none is shown, because it is not part of a disk
    check: Callable[[Callable[[], None]], None] | None = None  #: compares it with what is recorded of it


def upload(copy: PointCopy, unfinished: Mapping[str, StoredObject], means: Means) -> Sent:
    """Bring a point to the target, and return what was sent; ``unfinished``: objects of the point that are there.

    The claim of the domain is held. Raises ChainError if what is to be copied is damaged, BusyError, StorageError,
    InterruptedBySignalError: the next run goes on with what is there. Raises ReplanError before anything is sent.
    """
    backup, repository = copy.backup, means.repository
    prefix = f"{backup.domain_uuid}/{backup.id}/"
    staging = Staging(means.known.ledger.directory_of(backup.domain_uuid), copy)
    directories = [repository.directory(backup.domain_uuid, one) for one in copy.directories]
    with _unchanged(copy, repository, directories, means.stop):
        for disk in copy.disks:
            composing.refuse_merging(disk.layers)
        kept = staging.begin(means.known.target, prefix, unfinished)
        images: list[DiskImage] = []
        files = [_further(copy, name, means) for name in backup.digests]
        for disk in copy.disks:
            image, of_disk = _prepare(copy, disk, staging, means)
            images.append(image)
            files += of_disk
        records, sent = _send(files, prefix, kept, staging=staging, means=means)
    point = Point(
        _at_target(backup, images),
        records,
        {image.dev: points.origin_of(image) for image in backup.disks},
    )
    text = points.dump(point)
    means.stop.check()
    key = prefix + MANIFEST
    # Before the manifest, which nobody here may be able to read: else a run that is killed in between would know
    # nothing of the point. What is not listed does not count.
    means.known.ledger.put(backup.domain_uuid, backup.id, text)
    if not means.known.target.put_small(key, text.encode()):
        means.known.ledger.drop(backup.domain_uuid, backup.id)
        raise StorageError(
            f"{means.known.target.name} has got {key} from another vbackup meanwhile, which has taken over this one's"
            " claim. Run the same command again."
        )
    staging.end(means.known.target, prefix)
    return sent


class ReplanError(Exception):
    """Backups were merged or removed since the plan was made: the rest has to be planned again. No user sees it."""


@contextmanager
def _unchanged(copy: PointCopy, repository: Repository, directories: Sequence[Path], stop: Stop) -> Iterator[None]:
    """Keep what is read as it is during the block. Raises ReplanError if a merge was quicker."""
    with ExitStack() as stack:
        try:
            stack.enter_context(readers.reading(directories, stop=stop))
        except ChainError as err:  # a directory is gone
            raise ReplanError from err
        _refuse_changed(copy, repository)
        yield


def _refuse_changed(copy: PointCopy, repository: Repository) -> None:
    """Raise ReplanError if a merge has changed what the plan was made from before it was locked."""
    for disk in copy.disks:
        for link in disk.layers:
            path = repository.directory(link.backup.domain_uuid, link.backup.id) / MANIFEST
            try:
                text = read_text(path)
            except (OSError, ValueError) as err:
                raise ReplanError from err
            now = manifest.load(text, backup_id=link.backup.id, domain_uuid=link.backup.domain_uuid)
            if now.image(disk.dev) != link.image:
                raise ReplanError


def _prepare(copy: PointCopy, disk: DiskCopy, staging: Staging, means: Means) -> tuple[DiskImage, list[_File]]:
    """Return the image as it will be at the target, and the files of it and its list."""
    link = disk.layers[0]
    if disk.form is Form.AS_IT_IS:
        path = verify.image_path(means.repository, link)
        files = [_File(link.image.file, path, disk.dev, lambda check: _check_image(path, link, check))]
        if link.image.blocks is not None:
            list_path = path.with_suffix(block_list.SUFFIX)
            files.append(_File(points.list_name(link.image), list_path, disk.dev, lambda _: _check_list(path, link)))
        return link.image, files
    path, blocks = composing.composed(
        disk, staging, repository=means.repository, reporter=means.reporter, stop=means.stop
    )
    image = _composed_image(link.image, disk, blocks, path.stat().st_size)
    list_path = path.with_suffix(block_list.SUFFIX)
    return image, [_File(image.file, path, disk.dev), _File(points.list_name(image), list_path, disk.dev)]


def _composed_image(image: DiskImage, disk: DiskCopy, blocks: BlocksRecord, size_bytes: int) -> DiskImage:
    others = ", ".join(link.backup.id for link in disk.layers[1:])
    changed = replace(
        image,
        base=disk.base,
        blocks=blocks,
        digest=None,
        file_size_bytes=size_bytes,
        reason=f"copied together with {others}",
    )
    # A full has a checkpoint from which a differential starts; this one's bitmap is that of an increment.
    return changed if disk.base is not None else replace(changed, level=Level.FULL, bitmap=None, checkpoint=None)


def _at_target(backup: Backup, images: Sequence[DiskImage]) -> Backup:
    bases = [image.base for image in images if image.base is not None]
    parent = max(bases, default=None)  # an id begins with its time
    level = Level.FULL if parent is None and backup.level is not Level.COPY else backup.level
    return replace(backup, disks=tuple(images), parent=parent, level=level)


def _further(copy: PointCopy, name: str, means: Means) -> _File:
    """Return a file of a backup that is neither image nor list."""
    backup, repository = copy.backup, means.repository
    path = repository.directory(backup.domain_uuid, backup.id) / name
    return _File(name, path, None, lambda check: verify.check_file(repository, backup, name, stop=check))


def _check_image(path: Path, link: Link, check: Callable[[], None]) -> None:
    """Raise ChainError if an image is not what was recorded of it."""

    def before(_size_bytes: int) -> None:
        check()

    for finding in image_check.check(path, link, Watch(before)).findings:
        raise ChainError(finding.reason)


def _check_list(path: Path, link: Link) -> None:
    verify.opened_list(path, link).close()


def _send(
    files: Sequence[_File],
    prefix: str,
    kept: Mapping[str, StoredObject],
    *,
    staging: Staging,
    means: Means,
) -> tuple[dict[str, ObjectRecord], Sent]:
    """Store the files, and compare them meanwhile; return what the manifest records of each, and what was sent.

    The first that fails ends all others.
    """
    ended = Event()

    def check() -> None:
        means.stop.check()
        if ended.is_set():
            raise StorageError("Another object could not be copied.")  # only ends this thread; nobody sees it

    progress = _Progress(means.reporter)
    with ThreadPoolExecutor(max_workers=means.parallel) as sending, ThreadPoolExecutor(max_workers=2) as checking:
        futures: dict[str, Future[tuple[ObjectRecord, bool]]] = {
            each.name: sending.submit(
                _put, each, kept.get(each.name), staging=staging, means=means, key=prefix + each.name, follow=follow
            )
            for each in sorted(files, key=lambda file: file.path.stat().st_size, reverse=True)
            for follow in (progress.of_file(each.dev, each.path.stat().st_size, check),)
        }
        checks: list[Future[None]] = [checking.submit(each.check, check) for each in files if each.check is not None]
        everything: list[Future[Any]] = [*futures.values(), *checks]
        try:
            done, _ = wait(everything, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            ended.set()
            raise
    records = {name: future.result()[0] for name, future in futures.items()}
    stored = [name for name, future in futures.items() if future.result()[1]]
    return records, Sent(len(stored), sum(records[name].size_bytes for name in stored), len(files) - len(stored))


def _put(
    file: _File,
    there: StoredObject | None,
    *,
    key: str,
    staging: Staging,
    means: Means,
    follow: Callable[[int], None],
) -> tuple[ObjectRecord, bool]:
    """Store a file, unless an interrupted run has; return what the manifest records, and whether it was stored now.

    An object counts as stored if what was sent is known, and is what the file has now.
    """
    store = means.known.target.store
    algorithm = block_list.best_algorithm()
    with outgoing.opened(file.path) as (opened, size_bytes):
        if there is not None:
            again = Outgoing(opened, algorithm, rate=ReadRate(None, check=means.stop.check), progress=follow)
            again.rest()
            # The size: without fsync, a target that has lost its power can have the name and no content.
            if again.digest == staging.sent(file.name) and there.size_bytes == size_bytes:
                return ObjectRecord(size_bytes, again.digest), False
            _make_room(key, means)
            opened.seek(0)
        follow(0)
        source = Outgoing(opened, algorithm, rate=means.rate, progress=follow)
        if not outgoing.put(store, key, source, size_bytes):
            _make_room(key, means)
            opened.seek(0)
            follow(0)
            source = Outgoing(opened, algorithm, rate=means.rate, progress=follow)
            if not outgoing.put(store, key, source, size_bytes):
                raise StorageError(f"Another process stores {key} at {store.name}: end it, and run this command again.")
    staging.note_sent(file.name, source.digest)
    return ObjectRecord(size_bytes, source.digest), True


def _make_room(key: str, means: Means) -> None:
    """Delete what another attempt has stored under a key."""
    if means.known.target.store.delete(key) is Deletion.KEPT:
        raise kept_by(means.known.target, key)


class _Progress:
    """Adds up the progress of the files of each disk, of which several threads report."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._lock = Lock()
        self._done: dict[str, int] = {}
        self._totals: dict[str, int] = {}

    def of_file(self, dev: str | None, size_bytes: int, check: Callable[[], None]) -> Callable[[int], None]:
        """Return what gets the number of bytes of a file that were read so far; ``check`` may raise then."""
        if dev is None:
            return lambda _done_bytes: check()
        with self._lock:
            self._totals[dev] = self._totals.get(dev, 0) + size_bytes
        previous_bytes = 0

        def progress(done_bytes: int) -> None:
            nonlocal previous_bytes
            check()
            with self._lock:
                self._done[dev] = self._done.get(dev, 0) + done_bytes - previous_bytes
                previous_bytes = done_bytes
                self._reporter.progress(dev, Phase.COPY, self._done[dev], self._totals[dev])

        return progress
