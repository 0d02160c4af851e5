"""Verify backups: read the images of a domain and compare every block with the block lists. ``vbackup verify``.

Each image is read once, however many backups depend on it; vbackup.repository.image_check reads it. What was found is
kept with each backup (vbackup.repository.verification), but only there: nothing else in the repository changes, apart
from the block lists that backups of an older vbackup get.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from vbackup.errors import BusyError, ChainError, DiskError, StorageError
from vbackup.model import Backup
from vbackup.report import Reporter
from vbackup.repository import image_check, late_lists, readers, verify
from vbackup.repository.catalogue import Broken, Catalogue
from vbackup.repository.findings import Findings, Found
from vbackup.repository.history import Link
from vbackup.repository.image_check import ImageCheck
from vbackup.repository.late_lists import Made
from vbackup.repository.read_progress import ReadProgress
from vbackup.repository.read_rate import ReadRate
from vbackup.repository.repository import Repository
from vbackup.repository.verdicts import Key, Verdicts
from vbackup.repository.verification import Verification
from vbackup.stop import Stop

#: How many images are read at a time by default. Each is read by as many threads as there are processors.
PARALLEL = min(4, os.cpu_count() or 1)
_ALL_PERCENT = 100.0


@dataclass(frozen=True)
class VerifyRequest:
    """The options of ``vbackup verify``, for one domain."""

    backup_id: str | None = None  #: None: all backups
    disks: tuple[str, ...] = ()  #: only these; empty: all
    percent: float = 100.0  #: of the blocks of each image
    parallel: int = PARALLEL  #: number of images
    bytes_s: int | None = None  #: limit of the reading
    is_forced: bool = False  #: what a verify that was stopped has read is read again

    @property
    def is_sample(self) -> bool:
        """True if only a part of each image is read."""
        return self.percent < _ALL_PERCENT


@dataclass(frozen=True)
class Verified:
    """What was found in the backups of one domain."""

    uuid: str
    name: str
    results: Mapping[str, Verification]  #: of each backup that was asked for, by id
    damage: tuple[Found, ...]
    broken: tuple[Broken, ...]  #: those of the backups that were asked for that cannot be restored
    images: int  #: number that was read
    skipped: int  #: number that a verify which was stopped had read
    read_bytes: int
    lists: int  #: number of block lists made for backups that had none
    is_kept: bool  #: False if the results could not be written, as in a read-only repository

    @property
    def damaged(self) -> list[str]:
        """Ids of the backups that cannot be restored as they were."""
        ids = [backup_id for backup_id, one in self.results.items() if one.damage]
        return ids + [one.id for one in self.broken if one.id not in self.results]


@dataclass(frozen=True)
class _Selected:
    """The backups to verify, and the images that they depend on."""

    backups: tuple[Backup, ...]
    links: Mapping[Key, Link]
    broken: tuple[Broken, ...]
    merging: tuple[str, ...]  #: ids of backups on which they depend, into whose images others are being merged
    catalogue: Catalogue = field(compare=False)

    def directories(self, repository: Repository) -> list[Path]:
        """Return the directories that must stay as they are."""
        needed = {backup_id for backup_id, _ in self.links} | {backup.id for backup in self.backups}
        needed.update(self.merging)
        return [repository.directory(self.catalogue.uuid, backup_id) for backup_id in needed]


def run(request: VerifyRequest, uuid: str, *, repository: Repository, reporter: Reporter, stop: Stop) -> Verified:
    """Verify backups of a domain and keep the results. Damage is a result, and a warning as soon as it is found.

    Raises ChainError if there is no such backup, DiskError if no backup has such a disk, StorageError,
    InterruptedBySignalError after keeping what was verified: the next verify goes on there, unless it is of a sample.
    """
    with readers.unchanged(
        lambda: _select(request, repository.catalogue(uuid)),
        lambda selected: selected.directories(repository),
        stop=stop,
    ) as selected:
        return _Work(request, selected, repository=repository, reporter=reporter, stop=stop).run()


def _select(request: VerifyRequest, catalogue: Catalogue) -> _Selected:
    history = catalogue.history
    backups = (catalogue.find(request.backup_id),) if request.backup_id is not None else history.backups
    for dev in request.disks:
        if not any(backup.image(dev) for backup in backups):
            known = sorted({image.dev for backup in backups for image in backup.disks})
            what = f"backup {request.backup_id} has" if request.backup_id is not None else "the backups have"
            raise DiskError(dev, f"no backup has such a disk; {what} {', '.join(known) or 'none'}.")
    found = [
        link
        for backup in backups
        for image in backup.disks
        if not request.disks or image.dev in request.disks
        for link in history.present(backup.id, image.dev)
    ]
    links = {(link.backup.id, link.image.dev): link for link in found if not link.is_merging}
    merging = tuple(sorted({link.backup.id for link in found if link.is_merging}))
    ids = {backup.id for backup in backups}
    broken = tuple(one for one in catalogue.incomplete if one.id in ids)
    if request.backup_id is None:
        broken = catalogue.unreadable + broken
    return _Selected(tuple(backups), links, broken, merging, catalogue)


class _Work:
    """The verify of one domain."""

    def __init__(
        self, request: VerifyRequest, selected: _Selected, *, repository: Repository, reporter: Reporter, stop: Stop
    ) -> None:
        self._request, self._selected = request, selected
        self._repository, self._reporter, self._stop = repository, reporter, stop
        self._findings = Findings(repository, selected.catalogue)
        self._verdicts = Verdicts(
            repository,
            selected.catalogue,
            is_whole=not request.is_sample,
            is_new=request.is_forced,
        )
        self._rate = ReadRate(request.bytes_s, check=stop.check)
        self._lists = 0

    def run(self) -> Verified:
        """Do it."""
        with ExitStack() as stack:
            stack.callback(self._findings.close)
            for broken in self._selected.broken:
                self._reporter.warning(broken.sentence)
            for backup_id in self._selected.merging:
                self._reporter.warning(
                    f"The images of backup {backup_id}, which is being removed, are not verified: others are being"
                    " merged into them in place. If no vbackup does that now, it was interrupted: run 'vbackup"
                    " recover', and then verify again."
                )
            self._check_further_files()
            order = self._verdicts.order(self._selected.links)
            progress = ReadProgress(
                self._reporter, [self._selected.links[key] for key in order], percent=self._request.percent
            )
            try:
                self._read(order, progress)
            except BaseException:
                if self._save(is_complete=False):
                    # A sample is random: the next one takes another.
                    next_run = "" if self._request.is_sample else "; the next verify goes on there"
                    self._reporter.step(f"What was verified is kept{next_run}.")
                raise
            is_kept = self._save(is_complete=True)
        return self._result(order, progress, is_kept=is_kept)

    def _result(self, order: Sequence[Key], progress: ReadProgress, *, is_kept: bool) -> Verified:
        catalogue = self._selected.catalogue
        return Verified(
            catalogue.uuid,
            catalogue.names[-1],
            results={
                backup.id: self._verdicts.of(backup, self._findings, is_complete=True)
                for backup in self._selected.backups
            },
            damage=tuple(self._findings.found),
            broken=self._selected.broken,
            images=len(order),
            skipped=len(self._selected.links) - len(order),
            read_bytes=progress.read_bytes,
            lists=self._lists,
            is_kept=is_kept,
        )

    def _check_further_files(self) -> None:
        for backup in self._selected.backups:
            for name in backup.digests:
                try:
                    verify.check_file(self._repository, backup, name, stop=self._stop.check)
                except ChainError as err:
                    self._warn(self._findings.add_file(backup, name, str(err)))
            self._verdicts.files_checked(backup)

    def _read(self, order: Sequence[Key], progress: ReadProgress) -> None:
        """Read the images; what is found in one is reported at once."""
        pool = ThreadPoolExecutor(max_workers=self._request.parallel, thread_name_prefix="verify")
        futures: dict[Future[tuple[ImageCheck, Made | None]], Key] = {
            pool.submit(self._read_image, self._selected.links[key], progress): key for key in order
        }
        try:
            for future in as_completed(futures):
                key = futures[future]
                check, made = future.result()
                self._verdicts.add(key, check)
                for finding in check.findings:
                    self._warn(self._findings.add(self._selected.links[key], finding))
                if made is not None:
                    self._publish(made)
                if self._verdicts.is_save_due:
                    self._save(is_complete=False)
        finally:
            pool.shutdown(cancel_futures=True)
            for future in futures:
                if future.done() and not future.cancelled() and future.exception() is None:
                    _, left = future.result()
                    if left is not None:
                        left.discard()

    def _read_image(self, link: Link, progress: ReadProgress) -> tuple[ImageCheck, Made | None]:
        path = verify.image_path(self._repository, link)

        def before(size_bytes: int) -> None:
            self._rate.take(size_bytes)
            progress.add(link.image.dev, size_bytes)

        self._stop.check()
        check = image_check.check(path, link, image_check.Watch(before, self._request.percent))
        made = None
        if link.image.blocks is None and not check.findings:
            try:
                made = late_lists.make(path, link, check=self._stop.check)
            except StorageError as err:
                self._reporter.step(f"No block list of {path} was made: {err}")
        progress.done(link.image.dev)
        return check, made

    def _publish(self, made: Made) -> None:
        try:
            late_lists.publish(made, self._repository)
        except (BusyError, ChainError, StorageError) as err:
            self._reporter.step(f"Backup {made.link.backup.id} got no block list of disk {made.link.image.dev}: {err}")
        else:
            self._lists += 1

    def _warn(self, found: Found) -> None:
        self._reporter.warning(found.sentence)

    def _save(self, *, is_complete: bool) -> bool:
        """Keep the results; return False if they cannot be written, which is no reason to stop."""
        try:
            self._verdicts.save(self._selected.backups, self._findings, is_complete=is_complete)
        except StorageError as err:
            if is_complete:
                self._reporter.warning(f"The result is not kept with the backups: {err}")
            return False
        return True
