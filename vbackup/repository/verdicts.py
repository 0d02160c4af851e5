"""Make the verdict on each backup from what was found in the images that it depends on, and keep it with the backup.

A backup is good when all images that it depends on are, whoever read them: each image that was read as a whole is
recorded with the backup that it belongs to. So a verify that was stopped goes on where it was, and the images that were
not read for longest come first.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from vbackup.errors import StorageError
from vbackup.files import MAX_FSYNCS
from vbackup.model import Backup, DiskImage
from vbackup.repository import verification
from vbackup.repository.block_list import BLOCK_BYTES
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.findings import Findings
from vbackup.repository.history import Link
from vbackup.repository.image_check import ImageCheck
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Damage, Kind, Verdict, Verification, VerifiedImage

#: An image: id of its backup, and the disk.
Key = tuple[str, str]
#: A verify that was stopped longer ago begins again.
RESUME = timedelta(days=7)
#: Seconds between two times that results are kept while the work goes on.
SAVE_S = 60.0
_NEVER = datetime.min.replace(tzinfo=timezone.utc)
_ALL_PERCENT = 100.0


class Verdicts:
    """The verdicts on the backups of a domain."""

    def __init__(
        self,
        repository: Repository,
        catalogue: Catalogue,
        *,
        is_whole: bool,
        is_new: bool,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        """``is_whole``: images are read as a whole, not a part of them; ``is_new``: a stopped run is not continued."""
        self._repository, self._history, self._is_whole, self._now = repository, catalogue.history, is_whole, now
        self._begin = now()
        self._earlier = {
            backup.id: verification.read(repository.directory(backup.domain_uuid, backup.id))
            for backup in (*self._history.backups, *self._history.merging)
        }
        self._seen = dict(self._earlier)  # what this run has last seen in the files
        self._by_others: dict[str, frozenset[Damage]] = {}
        self._checks: dict[Key, ImageCheck] = {}
        self._times: dict[Key, datetime] = {}
        self._with_files: set[str] = set()
        self._unsaved: set[str] = set()
        self._next_save_s = time.monotonic() + SAVE_S
        self._skipped: set[Key] = set()
        if is_whole and not is_new:
            self._resume()

    def order(self, links: Mapping[Key, Link]) -> list[Key]:
        """Return the images to read, those that were not read for longest first."""
        self._skipped &= links.keys()

        def age(key: Key) -> tuple[datetime, int, str]:
            record = self._record(key[0], links[key].image)
            return (record.time if record is not None else _NEVER, links[key].backup.sequence, key[1])

        return sorted(links.keys() - self._skipped, key=age)

    def add(self, key: Key, check: ImageCheck) -> None:
        """Add what was found in an image."""
        self._checks[key] = check
        self._times[key] = self._now()
        self._unsaved.add(key[0])

    def files_checked(self, backup: Backup) -> None:
        """Note that the further files of a backup were read."""
        self._with_files.add(backup.id)

    @property
    def is_save_due(self) -> bool:
        """True if it is time to keep what was found so far."""
        return bool(self._unsaved) and time.monotonic() >= self._next_save_s

    def save(self, selected: Sequence[Backup], findings: Findings, *, is_complete: bool) -> None:
        """Keep the verdicts with the backups whose images were read, or that damage affects; all at the end.

        Raises StorageError if one cannot be written, after writing the others.
        """
        self._next_save_s = time.monotonic() + SAVE_S
        ids = self._unsaved | findings.affected
        if is_complete:
            ids |= {backup.id for backup in selected} | {one.id for one in self._history.backups if self._knows(one)}
        backups = [backup for backup in self._history.backups if backup.id in ids]
        held = {backup.id for backup in selected} | {backup_id for backup_id, _ in self._checks}

        def write(backup: Backup) -> StorageError | None:
            directory = self._repository.directory(backup.domain_uuid, backup.id)
            self._look_again(backup, directory)
            result = self.of(backup, findings, is_complete=is_complete)
            try:
                verification.write(directory, result)
                self._seen[backup.id] = result
            except StorageError as err:
                # One that is affected, but is not read itself, can be removed meanwhile: a prune does not wait.
                is_gone = isinstance(err.__cause__, OSError) and err.__cause__.errno == errno.ENOENT
                return None if is_gone and backup.id not in held else err
            return None

        with ThreadPoolExecutor(max_workers=MAX_FSYNCS) as pool:
            errors = [err for err in pool.map(write, backups) if err is not None]
        if errors:
            raise errors[0]
        self._unsaved.clear()

    def _look_again(self, backup: Backup, directory: Path) -> None:
        """Take over what another verify has kept with the backup since this one looked, as one of other disks."""
        kept, seen = verification.read(directory), self._seen[backup.id]
        if kept is None or kept == seen:
            return
        new = frozenset(kept.damage).difference(seen.damage if seen is not None else ())
        self._by_others[backup.id] = new | self._by_others.get(backup.id, frozenset())
        self._earlier[backup.id] = self._seen[backup.id] = kept

    def of(self, backup: Backup, findings: Findings, *, is_complete: bool) -> Verification:
        """Return the verdict on a backup; ``is_complete``: the run was not stopped."""
        keys = self._keys(backup)
        total = sum(_data_blocks(link.image) for link in keys.values())
        read = sum(self._read_blocks(key, link.image) for key, link in keys.items())
        is_known = all(key in self._checks or key in self._skipped for key in keys)
        is_all = is_known and all(key in self._skipped or self._checks[key].is_whole for key in keys)
        damage = tuple(dict.fromkeys([*findings.of(backup.id), *self._carried(backup, keys)]))
        broken = self._history.gap(backup)
        if broken is not None:
            dev, base = broken
            damage += (Damage(dev, f"{base}/{dev}.qcow2", 0, 0, Kind.IMAGE.value),)
        earlier = self._earlier[backup.id]
        wrong = {one.file for one in damage}
        read_well = (self._image(backup, one) for one in backup.disks if f"{backup.id}/{one.file}" not in wrong)
        images = tuple(image for image in read_well if image is not None)
        unfinished = self._begin if self._is_whole and not is_complete else None
        if earlier is not None and not damage and not is_known and earlier.verdict is not Verdict.DAMAGED:
            return replace(earlier, images=images, unfinished=unfinished)
        verdict = Verdict.DAMAGED if damage else Verdict.GOOD if is_known else Verdict.PARTIAL
        percent = _ALL_PERCENT if is_all else min(99.99, round(_ALL_PERCENT * read / total, 2)) if total else 0.0
        return Verification(
            self._now(),
            verdict,
            percent,
            read * BLOCK_BYTES,
            damage=damage[: verification.MAX_DAMAGE],
            images=images,
            unfinished=unfinished,
        )

    def _resume(self) -> None:
        """Go on with a run that was stopped: skip the images that it has read."""
        begins = [one.unfinished for one in self._earlier.values() if one is not None and one.unfinished is not None]
        begin = max(begins, default=_NEVER)
        if not self._begin - RESUME <= begin <= self._begin:
            return
        self._begin = begin
        for backup in self._history.backups:
            for image in backup.disks:
                record = self._record(backup.id, image)
                if record is not None and begin <= record.time:
                    self._skipped.add((backup.id, image.dev))

    def _record(self, backup_id: str, image: DiskImage) -> VerifiedImage | None:
        """Return when an image was last read as a whole and found good."""
        earlier = self._earlier[backup_id]
        record = earlier.image(image.dev) if earlier is not None else None
        return record if record is not None and record.digest == _digest(image) else None

    def _image(self, backup: Backup, image: DiskImage) -> VerifiedImage | None:
        check = self._checks.get((backup.id, image.dev))
        if check is not None and check.findings:
            return None
        if check is not None and check.is_whole:
            return VerifiedImage(image.dev, self._times[backup.id, image.dev], _digest(image))
        return self._record(backup.id, image)

    def _keys(self, backup: Backup) -> dict[Key, Link]:
        """Return the images that a backup depends on."""
        return {
            (link.backup.id, link.image.dev): link
            for image in backup.disks
            for link in self._history.present(backup.id, image.dev)
        }

    def _knows(self, backup: Backup) -> bool:
        """Return True if all images that a backup depends on were read."""
        return all(key in self._checks or key in self._skipped for key in self._keys(backup))

    def _read_blocks(self, key: Key, image: DiskImage) -> int:
        if key in self._checks:
            return self._checks[key].read_blocks
        return _data_blocks(image) if key in self._skipped else 0

    def _carried(self, backup: Backup, keys: Collection[Key]) -> list[Damage]:
        """Return the damage that an earlier verify found, where this one has not looked at all of it.

        What another one found at the same time stays: it may have read the image later than this one.
        """
        earlier = self._earlier[backup.id]
        if earlier is None:
            return []
        new = self._by_others.get(backup.id, frozenset())
        files = {f"{backup_id}/{dev}.qcow2": (backup_id, dev) for backup_id, dev in keys}
        carried = []
        for damage in earlier.damage:
            key = files.get(damage.file)
            check = self._checks.get(key) if key is not None else None
            # Damaged blocks that a sample found tell nothing of those that it did not read; other damage is of all.
            is_read = key in self._skipped or (
                check is not None and (check.is_whole or any(not one.blocks for one in check.findings))
            )
            if (key is not None and (damage in new or not is_read)) or (
                damage.kind == Kind.FILE.value and (damage in new or backup.id not in self._with_files)
            ):
                carried.append(damage)
        return carried


def _data_blocks(image: DiskImage) -> int:
    if image.blocks is not None:
        return image.blocks.data_blocks
    return max(1, image.file_size_bytes // BLOCK_BYTES)


def _digest(image: DiskImage) -> str:
    """Return the digest that tells the image from others; a list that it gets later does not change it."""
    return image.digest or (image.blocks.digest if image.blocks is not None else "")
