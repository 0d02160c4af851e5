"""Look through a repository, without reading data: ``vbackup check``. vbackup.operations.repair repairs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from vbackup import names
from vbackup.errors import Status, StorageError, VbackupError
from vbackup.fields import parse_json
from vbackup.files import is_directory, of_link
from vbackup.report import Reporter
from vbackup.repository import inspection, merge_journal, place, quarantine
from vbackup.repository.catalogue import read_text
from vbackup.repository.inspection import Inspected, Kind, Severity, Trouble
from vbackup.repository.place import Place
from vbackup.repository.repository import COPIES, MARKER, Repository
from vbackup.stop import Stop

#: If less than this part of the filesystem is free, that is reported.
_LITTLE_ROOM = 0.05
_NO_ROOM_BYTES = 64 * 1024 * 1024
#: What filesystems and their snapshots have in their topmost directory.
_OF_FILESYSTEMS = frozenset(("lost+found", ".snapshot", ".snapshots", ".zfs"))


@dataclass(frozen=True)
class Checked:
    """What was found in a repository."""

    place: Place
    troubles: tuple[Trouble, ...]
    domains: tuple[Inspected, ...]

    @property
    def status(self) -> Status:
        """The exit status: that of the worst trouble; warnings have none."""
        severities = {trouble.severity for trouble in self.troubles}
        if Severity.DAMAGE in severities:
            return Status.CHAIN
        return Status.STORAGE if Severity.STORAGE in severities else Status.DONE

    @property
    def affected(self) -> set[tuple[str | None, str]]:
        """The backups that cannot be restored as they were, as (UUID of the domain, id)."""
        return {(trouble.uuid, one) for trouble in self.troubles for one in trouble.affected}


def run(uuids: Sequence[str] | None, *, repository: Repository, reporter: Reporter, stop: Stop) -> Checked:
    """Look through these domains, or through all and the repository itself. Raises StorageError."""
    at = place.look(repository)
    troubles = [*_place(at, repository)]
    if uuids is None:
        troubles += _layout(repository)
    inspected = []
    for uuid in domains(repository) if uuids is None else uuids:
        one = _inspected(repository, uuid, check=stop.check)
        reporter.step(
            f"Domain {repository.name_of(uuid)}: {one.backups} backup{'s' * (one.backups != 1)}, {one.images}"
            f" image{'s' * (one.images != 1)}, {len(one.troubles) or 'no'} finding{'s' * (len(one.troubles) != 1)}."
        )
        inspected.append(one)
        troubles += one.troubles
    return Checked(at, tuple(troubles), tuple(inspected))


def domains(repository: Repository) -> list[str]:
    """Return the UUIDs of all domains, also of those whose backups were all put away. Raises StorageError."""
    return sorted({*repository.uuids(), *quarantine.uuids(repository)})


def _inspected(repository: Repository, uuid: str, *, check: Callable[[], None]) -> Inspected:
    """Look through a domain. There is no lock: what is found while another vbackup changes it is looked at again."""
    found = inspection.inspect(repository, uuid, check=check)
    if not any(trouble.severity is Severity.DAMAGE for trouble in found.troubles):
        return found
    again = inspection.inspect(repository, uuid, check=check)
    return replace(again, troubles=tuple(trouble for trouble in again.troubles if trouble in found.troubles))


def _place(at: Place, repository: Repository) -> Iterator[Trouble]:
    if at.locks is False:
        yield Trouble(
            Severity.WARNING,
            Kind.LOCKS,
            f"The filesystem of {repository.path} does not lock files: it lets two have a lock at once.",
            "See vbackup-recovery(7) for what that means; a mount with locks is safer.",
        )
    if at.free_bytes < _NO_ROOM_BYTES:
        yield Trouble(
            Severity.STORAGE,
            Kind.SPACE,
            f"The filesystem of {repository.path} is full: {at.free_bytes >> 20} MiB are free.",
            "The next backup will fail. Make room with 'vbackup prune', or enlarge it.",
        )
    elif at.size_bytes and at.free_bytes < at.size_bytes * _LITTLE_ROOM:
        yield Trouble(
            Severity.WARNING,
            Kind.SPACE,
            f"The filesystem of {repository.path} is nearly full: {at.free_bytes >> 20} of {at.size_bytes >> 20} MiB"
            " are free.",
            "Make room with 'vbackup prune', or enlarge it.",
        )


def _layout(repository: Repository) -> Iterator[Trouble]:
    """Yield what is wrong at the top of the repository."""
    status = repository.path.stat()
    if status.st_mode & 0o077:
        yield Trouble(
            Severity.WARNING,
            Kind.MODE,
            f"Other users than the owner may enter {repository.path} (mode {status.st_mode & 0o7777:04o}).",
            "'vbackup check --repair' sets mode 0700.",
            path=repository.path,
        )
    for entry in sorted(repository.path.iterdir()):
        if entry.name.startswith(merge_journal.PROBE):
            yield Trouble(
                Severity.WARNING,
                Kind.LEFTOVER,
                f"{entry} was left by a run that was killed.",
                "'vbackup check --repair' removes it.",
                path=entry,
            )
            continue
        if names.UUID.fullmatch(entry.name) and entry.is_symlink():
            yield Trouble(Severity.STORAGE, Kind.UNKNOWN, *of_link(entry), path=entry)
            continue
        known = entry.name in (MARKER, COPIES, quarantine.NAME) or entry.name in _OF_FILESYSTEMS
        if not known and not (names.UUID.fullmatch(entry.name) and is_directory(entry)):
            yield Trouble(
                Severity.WARNING,
                Kind.UNKNOWN,
                f"{entry} is nothing that this vbackup writes.",
                "Move it away if you do not need it here; vbackup leaves it alone.",
                path=entry,
            )
    try:
        marker = parse_json(read_text(repository.path / MARKER))
        schema = marker.get("schema") if isinstance(marker, dict) else None
    except (OSError, ValueError, json.JSONDecodeError, VbackupError) as err:  # it was read a moment ago
        raise StorageError(f"{repository.path / MARKER} cannot be read: {err}.") from err
    if schema != "vbackup.repository/1":
        yield Trouble(
            Severity.WARNING,
            Kind.UNKNOWN,
            f"{repository.path / MARKER} has the schema {str(schema)[:50]!r}.",
            "Restore the file from a copy of the repository.",
            path=repository.path / MARKER,
        )
