"""Make a repository out of a target: on an empty machine, or after the storage of the repository is lost.

Points come oldest first, each with its manifest last: one that is there can be restored, and the next run goes on with
the others. One that is damaged at the target does not come, nor those that depend on it; all others do. The repository
has an id of its own and knows that of the one whose points these are, so it can go on with copies to the same target.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vbackup.copies import download
from vbackup.copies import point as points
from vbackup.copies import view as views
from vbackup.copies.download import Wanted
from vbackup.copies.point import Point
from vbackup.copies.view import View
from vbackup.errors import ChainError, IdentityNeededError, StorageError
from vbackup.files import fsync, replace_text, storage_errors
from vbackup.operations.copy import going_on
from vbackup.repository.manifest import NAME
from vbackup.repository.repository import MARKER, PARTIAL, Repository

#: The member of a marker that has the ids of the repositories whose points these are.
_FORMER = "former_ids"


@dataclass(frozen=True)
class FetchRequest:
    """The options of ``vbackup fetch``."""

    path: Path  #: of the repository: an empty or new directory, or one that an interrupted fetch has left
    uuids: tuple[str, ...] = ()  #: only these domains; empty: all
    parallel: int = download.PARALLEL_OBJECTS  #: objects of a point at a time
    bytes_s: int | None = None


@dataclass(frozen=True)
class Fetched:
    """What is in the repository now."""

    path: Path
    repository_id: str
    points: dict[str, tuple[str, ...]]  #: ids of the points that were fetched, by the UUID of their domain
    there: dict[str, tuple[str, ...]]  #: the same of those that an earlier fetch had brought
    fetched_bytes: int
    names: dict[str, str]  #: that the domains had last, by UUID
    unreadable: dict[str, dict[str, str]]  #: why other points were not fetched, by UUID and id


def run(request: FetchRequest, view: View) -> Fetched:
    """Fetch the points. One of which an object is missing or damaged is a warning, and in the answer.

    Raises StorageError, NoSpaceError, IdentityNeededError, InterruptedBySignalError; the next run goes on.
    """
    repository = _repository(request.path, view)
    fetched: dict[str, tuple[str, ...]] = {}
    there: dict[str, tuple[str, ...]] = {}
    unreadable: dict[str, dict[str, str]] = {}
    fetched_bytes = 0
    for uuid in request.uuids or tuple(view.there):
        found = view.there[uuid].points
        brought, failed = list[str](), {one: str(err) for one, err in view.there[uuid].unreadable.items()}
        with going_on("what was fetched is kept, and the same command goes on"), repository.lock(uuid):
            had = [one for one in found if (repository.directory(uuid, one) / NAME).exists()]
            for point in [point for one, point in found.items() if one not in had]:
                view.stop.check()
                try:
                    _refuse_incomplete(point, {*had, *brought}, failed)
                    fetched_bytes += _fetch(point, repository, view, request)
                except IdentityNeededError:  # as for all others
                    raise
                except ChainError as err:
                    failed[point.backup.id] = str(err)
                    view.reporter.warning(
                        f"Backup {point.backup.id} of {point.backup.domain_name} was not fetched: {err}"
                    )
                else:
                    brought.append(point.backup.id)
                    view.reporter.step(f"Fetched backup {point.backup.id} of {point.backup.domain_name}.")
            if found:
                views.remember(repository, uuid, (point.backup for point in found.values()))
        fetched[uuid], there[uuid], unreadable[uuid] = tuple(brought), tuple(had), failed
    names = {uuid: view.repository.name_of(uuid) for uuid in fetched}
    return Fetched(repository.path, repository.id, fetched, there, fetched_bytes, names, unreadable)


def _repository(path: Path, view: View) -> Repository:
    """Return the new repository, or the one that an interrupted fetch from the same target has left."""
    if os.path.lexists(path / MARKER):
        repository = Repository.open(path)
        if view.target.repository_id == repository.id:
            raise StorageError(
                f"{path} is the repository whose backups were copied to {view.target.name}, and not one that a fetch"
                " has made. Nothing was fetched: give a new or empty directory."
            )
        if view.target.repository_id not in repository.ids:
            raise StorageError(
                f"{path} is another repository, {repository.id}, and the points at {view.target.name} are of"
                f" {view.target.repository_id}. Give a new or empty directory."
            )
        return repository
    made = Repository.create(path)
    with storage_errors(f"write {made.path / MARKER}"):
        marker = {"schema": "vbackup.repository/1", "version": 1, "id": made.id, _FORMER: [view.target.repository_id]}
        replace_text(made.path / MARKER, json.dumps(marker, indent=2) + "\n")
    return Repository(made.path, made.id, former_ids=[view.target.repository_id])


def _refuse_incomplete(point: Point, present: Collection[str], failed: Collection[str]) -> None:
    """Raise ChainError if the point depends on one that is not in the repository."""
    for image in point.backup.disks:
        if image.base is not None and image.base not in present:
            which = "which was not fetched" if image.base in failed else "which is missing at the target"
            raise ChainError(f"Disk {image.dev}: it depends on backup {image.base}, {which}.")


def _fetch(point: Point, repository: Repository, view: View, request: FetchRequest) -> int:
    uuid, backup_id = point.backup.domain_uuid, point.backup.id
    final = repository.directory(uuid, backup_id)
    stage = final.with_name(backup_id + PARTIAL)
    objects = [
        Wanted(f"{uuid}/{backup_id}/{name}", record, points.dev_of(point.backup, name), stage / name)
        for name, record in point.objects.items()
        if name in points.names_of(point.backup)
    ]
    try:
        fetched_bytes = download.fetch(objects, view.means(bytes_s=request.bytes_s, parallel=request.parallel))
    except ChainError:
        shutil.rmtree(stage, ignore_errors=True)  # no run makes a backup of it
        raise
    with storage_errors(f"write to {stage}"):
        replace_text(stage / NAME, points.dump(point))
        fsync(stage)
        stage.rename(final)
        fsync(final.parent)
    return fetched_bytes
