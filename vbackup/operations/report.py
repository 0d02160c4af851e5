"""The report: the state of everything, with the backups of each domain as pictures."""

from __future__ import annotations

from contextlib import suppress
from datetime import tzinfo
from pathlib import Path

from vbackup.errors import StorageError
from vbackup.files import replace_text, storage_errors
from vbackup.model import Backup
from vbackup.overview import page, text_page
from vbackup.overview.points import DomainPoints, Point
from vbackup.overview.state import Overview
from vbackup.repository import condition
from vbackup.repository.condition import Condition
from vbackup.repository.repository import Repository


def html(overview: Overview, *, zone: tzinfo | None = None) -> str:
    """Return the page for the state of everything, with the backups in its repositories that can be read.

    ``zone``: of the times that are shown; None: the system's.
    """
    known: dict[tuple[str, str], DomainPoints] = {}
    for one in overview.repositories:
        if one.fault is None:
            with suppress(StorageError):  # it was there a moment ago; the next report says so
                found = points_in(Repository.open(Path(one.path)))
                known.update({(one.name, uuid): points for uuid, points in found.items()})
    return page.render(overview, known, zone)


def text(overview: Overview, *, zone: tzinfo | None = None) -> str:
    """Return the same as text, without pictures."""
    return text_page.render(overview, zone)


def write(path: Path, content: str) -> None:
    """Write a report; a reader sees the one before or this one. Only the user can read it.

    It has the names of domains, and why they are not backed up. Raises StorageError, NoSpaceError.
    """
    with storage_errors(f"write {path}"):
        replace_text(path, content)


def points_in(repository: Repository) -> dict[str, DomainPoints]:
    """Return the backups of each domain, by UUID. A domain that cannot be read is left out: the state says so."""
    found = {}
    for uuid in repository.uuids():
        try:
            catalogue = repository.catalogue(uuid, with_chains=False)
            conditions = condition.read(catalogue, repository.path / uuid)
        except StorageError:
            continue
        points = tuple(_point(backup, conditions[backup.id]) for backup in catalogue.history.backups)
        found[uuid] = DomainPoints(uuid, points)
    return found


def _point(backup: Backup, known: Condition) -> Point:
    changes = [image.change for image in backup.disks if image.base is not None and image.change is not None]
    return Point(
        backup.id,
        backup.time,
        backup.level.value,
        backup.parent,
        backup.size_bytes,
        sum(change.data_bytes + change.zero_bytes for change in changes) if changes else None,
        known.state.value,
        known.protection is not None,
        known.note,
    )
