"""What the steps of a repair (vbackup.operations.repair) have in common."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vbackup import files
from vbackup.errors import StorageError
from vbackup.files import fsync, storage_errors
from vbackup.report import Reporter
from vbackup.repository import inspection, quarantine
from vbackup.repository.block_sources import BlockSources
from vbackup.repository.inspection import REPAIRED, Inspected
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class Repair:
    """Something that was repaired, would be, or could not be."""

    what: str  #: a sentence
    uuid: str
    is_done: bool = True  #: False: it could not be repaired


class Work:
    """The repair of one domain, and what its steps have found out."""

    def __init__(
        self,
        uuid: str,
        repository: Repository,
        copies: Sequence[Repository],
        *,
        reporter: Reporter,
        stop: Stop,
        is_dry: bool,
    ) -> None:
        self.uuid, self.repository, self.is_dry = uuid, repository, is_dry
        self.reporter, self.stop = reporter, stop
        self.directory = repository.path / uuid
        self.copies = copies
        self.sources = BlockSources(repository, copies, uuid, check=stop.check)
        self.done: list[Repair] = []
        self.is_merging = False  #: a merge or removal is half done, so what its backups are is not known
        self.is_incomplete = False  #: a dry run: what backups would be brought back, on which others depend
        self.lost_journal: str | None = None  #: why the journal of an interrupted merge cannot be read
        self.good: set[str] = set()  #: images that were read and are good now, as verified.json names them

    def inspect(self) -> Inspected:
        """Return what is there now."""
        return inspection.inspect(self.repository, self.uuid, check=self.stop.check)

    def note(self, done: str, would: str) -> None:
        """Report a repair: what was done, or in a dry run what would be."""
        repair = Repair(would if self.is_dry else done, self.uuid)
        self.done.append(repair)
        self.reporter.step(repair.what)

    def fail(self, what: str) -> None:
        """Report what cannot be repaired."""
        self.done.append(Repair(what, self.uuid, is_done=False))

    def digest_of(self, path: Path) -> str | None:
        """Return the digest of a file, None if it cannot be read."""
        try:
            return files.digest(path, check=self.stop.check)
        except StorageError:
            return None

    def take(self, path: Path, source: Path) -> None:
        """Put a copy of the source in the place of a file."""
        staged = path.with_name(f"{REPAIRED}{path.name}")
        with storage_errors(f"write {staged}"):
            staged.unlink(missing_ok=True)
            with os.fdopen(files.open_regular(source), "rb") as given, _created(staged) as file:
                shutil.copyfileobj(given, file)
            fsync(staged)
        quarantine.replace(self.repository, path, staged)

    def replace(self, path: Path, data: bytes) -> None:
        """Put data in the place of a file. Raises StorageError."""
        staged = path.with_name(f"{REPAIRED}{path.name}")
        with storage_errors(f"write {staged}"):
            staged.unlink(missing_ok=True)
            with _created(staged) as file:
                file.write(data)
            fsync(staged)
        quarantine.replace(self.repository, path, staged)


def _created(path: Path) -> BinaryIO:
    """Create a file that nobody else can read, and return it open for writing."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return os.fdopen(fd, "wb")
