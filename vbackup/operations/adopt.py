"""Make a copy of a repository a separate repository: ``vbackup recover --adopt``.

A copy has the id of the original, and with it the names of everything that QEMU has for that one (vbackup.names). With
a new id it has no claim to any of it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from vbackup.errors import ChainError
from vbackup.operations import recovery
from vbackup.report import Reporter
from vbackup.repository.repository import Repository


@dataclass(frozen=True)
class Adopted:
    """A copy that has become a separate repository."""

    repository_id: str
    former_id: str
    discarded: tuple[tuple[str, str], ...]  #: the unfinished backups that were copied, as (domain UUID, backup id)


def run(repository: Repository, *, reporter: Reporter) -> Adopted:
    """Make a copy of a repository a separate one, with a new id; what QEMU has of the original is not touched.

    Unfinished backups that were copied are discarded. The next backup of each disk is a full. Raises BusyError if a
    backup into it is being made, ChainError if an unfinished one was begun here: that has to be recovered first;
    StorageError if the directory of a domain is a symbolic link.
    """
    with ExitStack() as stack:
        copies = []
        for uuid in [*repository.uuids(), *repository.linked()]:
            stack.enter_context(repository.lock(uuid))
            for backup_id in repository.unfinished(uuid):
                entry, reason = recovery.read(repository, uuid, backup_id)
                if entry is not None and entry.is_of(repository.stage_path(uuid, backup_id)):
                    raise ChainError(
                        f"The unfinished backup {backup_id} of domain {uuid} was begun in this repository, so it is no"
                        f" copy; 'vbackup recover {uuid}' deals with it. Nothing was changed."
                    )
                copies.append(
                    (
                        uuid,
                        recovery.Recovered(
                            backup_id, recovery.Remedy.UNDO, reason if entry is None else recovery.COPIES
                        ),
                    )
                )
        adopted = repository.adopt()
        for uuid, verdict in copies:
            recovery.discard(verdict, repository, uuid=uuid, reporter=reporter)
    discarded = tuple((uuid, verdict.id) for uuid, verdict in copies)
    return Adopted(adopted.id, former_id=repository.id, discarded=discarded)
