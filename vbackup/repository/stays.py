"""What of a domain stays in the repository, whatever rules say, and why: read from the directories of its backups.

Protected and immutable backups, those that are being read or that a standby is like, the bases of the next backups, and
what a broken or an unfinished backup depends on. Needs the domain's lock, except for a look. vbackup.operations.prune
heeds it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vbackup import names
from vbackup.errors import ChainError, NewerJournalError
from vbackup.files import storage_errors
from vbackup.qemu import qcow2
from vbackup.repository import immutability, journal, protection, readers, retention, standbys, verification
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Verdict

PROTECTED = "protected"
IN_USE = "in use: another vbackup is reading it"
DAMAGED = "'vbackup verify' found damage in what it needs, which 'vbackup show' lists"
#: The backing file of a backup's image, as vbackup.repository.manifest has it.
_BACKING_FILE = re.compile(rf"\.\./({names.BACKUP_ID.pattern})/[^/]+")


@dataclass(frozen=True)
class Facts:
    """What is known of the backups of a domain, whatever is to be removed. All by id."""

    catalogue: Catalogue
    broken: Mapping[str, str]  #: why; also those in which a verify found damage
    protected: Mapping[str, str]  #: a text for people
    immutable: Mapping[str, str]  #: a text for people
    in_use: Collection[str]
    bases: Mapping[str, Sequence[str]]  #: what starts from it next
    needed_by: Mapping[str, Mapping[str, str]]  #: the broken and unfinished backups that depend on it, with the word

    def reasons_to_stay(self, backup_id: str, *, but: Collection[str] = ()) -> list[str]:
        """Return why the backup is not removed; nothing if it may be. ``but``: ids of others that are removed."""
        reasons = [self.protected[backup_id]] if backup_id in self.protected else []
        reasons += [self.immutable[backup_id]] if backup_id in self.immutable else []
        reasons += [IN_USE] if backup_id in self.in_use else []
        reasons += self.bases.get(backup_id, ())
        needed_by = self.needed_by.get(backup_id, {}).items()
        return [*reasons, *(f"{by}, which is {word}, depends on it" for by, word in needed_by if by not in but)]


def read(repository: Repository, uuid: str) -> Facts:
    """Return what is known of the domain's backups. Raises StorageError, NewerJournalError, ChainError of standbys."""
    catalogue = repository.catalogue(uuid)
    broken = {one.id: one.reason_alone.rstrip(".") for one in catalogue.broken}
    protected: dict[str, str] = {}
    in_use: set[str] = set()
    ids = [*(one.id for one in catalogue.unreadable), *(one.id for one in catalogue.history.backups)]
    held = ((backup_id, immutability.reason(repository.directory(uuid, backup_id))) for backup_id in ids)
    immutable = {backup_id: reason for backup_id, reason in held if reason is not None}
    for backup_id in ids:
        directory = repository.directory(uuid, backup_id)
        found = protection.read(directory)
        if found is not None:
            protected[backup_id] = PROTECTED if found.reason is None else f"{PROTECTED} ({found.reason})"
        verified = verification.read(directory)
        if verified is not None and verified.verdict is Verdict.DAMAGED:
            broken.setdefault(backup_id, DAMAGED)
        with storage_errors(f"read {directory}"):
            if readers.is_in_use(directory):
                in_use.add(backup_id)
    needed_by: dict[str, dict[str, str]] = {}
    for base, by in _bases_of_broken(repository, catalogue, broken):
        needed_by.setdefault(base, {})[by] = "broken"
    for base, by in _bases_of_unfinished(repository, uuid):
        needed_by.setdefault(base, {})[by] = "unfinished"
    bases = retention.bases_of_next(catalogue.history)
    for backup_id, reason in _of_standbys(repository.path / uuid):
        bases.setdefault(backup_id, []).append(reason)
    return Facts(
        catalogue, broken, protected=protected, immutable=immutable, in_use=in_use, bases=bases, needed_by=needed_by
    )


def _of_standbys(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield the backups that standbys are like, or that an original still has to get, and the reason to keep them."""
    for standby in standbys.read(directory):
        for backup_id in {standby.backup, standby.failback}:
            if backup_id is not None:
                yield backup_id, f"the standby at {standby.uri} is like it"


def _bases_of_broken(
    repository: Repository, catalogue: Catalogue, broken_ids: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield what broken backups depend on, with their ids.

    A file that is brought back from a copy makes them whole again. Without a manifest, the headers of the images tell.
    """
    for backup in catalogue.history.backups:
        if backup.id in broken_ids:
            for image in backup.disks:
                if image.base is not None:
                    yield image.base, backup.id
    for broken in catalogue.unreadable:
        for path in sorted(repository.directory(catalogue.uuid, broken.id).glob("*.qcow2")):
            base = _base_of_image(path)
            if base is not None:
                yield base, broken.id


def _base_of_image(path: Path) -> str | None:
    """Return the id of the backup whose image is the backing file, None if there is none or it cannot be read."""
    with suppress(ChainError):
        backing_file = qcow2.header(path).backing_file
        match = _BACKING_FILE.fullmatch(backing_file or "")
        if match is not None:
            return match[1]
    return None


def _bases_of_unfinished(repository: Repository, uuid: str) -> Iterator[tuple[str, str]]:
    """Yield what the backups of dead runs depend on, with their ids: 'vbackup recover' may still finish them.

    Raises NewerJournalError.
    """
    for backup_id in repository.unfinished(uuid):
        try:
            entry = journal.read(repository.stage_path(uuid, backup_id), backup_id=backup_id, domain_uuid=uuid)
        except NewerJournalError:
            raise
        except ChainError:
            continue  # what has no journal is discarded
        for image in entry.draft.disks if entry is not None else ():
            if image.base is not None:
                yield image.base, backup_id
