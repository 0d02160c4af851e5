"""The report: the state of everything, with the backups of each domain as pictures. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import tzinfo

from vbackup.errors import StorageError
from vbackup.model import Backup
from vbackup.overview import page
from vbackup.overview.points import DomainPoints, Point
from vbackup.overview.state import Overview
from vbackup.repository import condition
from vbackup.repository.condition import Condition
from vbackup.repository.repository import Repository


def html(overview: Overview, repositories: Iterable[Repository], *, zone: tzinfo | None = None) -> str:
    """Return the page for the state of everything, with the backups in the repositories, those that can be read.

    ``zone``: of the times that are shown; None: the system's.
    """
    known = {uuid: points for one in repositories for uuid, points in points_in(one).items()}
    return page.render(overview, known, zone)


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
