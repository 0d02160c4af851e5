"""End a live restore for good: the domain, and all that has been restored and written since, is gone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vbackup.domain import defining, pools
from vbackup.domain.host import Host
from vbackup.errors import UnsuitableError, UsageError
from vbackup.operations import live_place, live_restore, live_resume
from vbackup.report import Reporter
from vbackup.repository.repository import Repository


@dataclass(frozen=True)
class AbortRequest:
    """The options of ``vbackup restore --live --abort``."""

    domain: str  #: name or UUID
    output: Path
    is_confirmed: bool = False


@dataclass(frozen=True)
class Aborted:
    """A live restore that was aborted."""

    backup_id: str
    name: str
    uuid: str
    removed: tuple[Path, ...]


def run(request: AbortRequest, *, host: Host, repository: Repository, reporter: Reporter) -> Aborted:
    """End the domain, undefine it, and remove its files.

    Raises UsageError, which says what would be lost, without the confirmation; UnsuitableError if all data is at home,
    or the domain of this UUID is another one; and what vbackup.operations.live_resume.run raises of the record.
    """
    place = live_place.of(host)
    with place.locked(place.absolute(request.output)) as state:
        live_resume.refuse_other(state, request.domain, repository)
        handle = live_resume.domain_of(host, state)
        images = [state.image(dev) for dev in state.disks]
        if not state.away:
            raise UnsuitableError(
                f"All data of domain {state.name} is at home, so there is nothing to abort; 'vbackup restore --live"
                " --resume' finishes the restore."
            )
        if not request.is_confirmed:
            raise UsageError(
                f"This would end domain {state.name}, undefine it, and remove its disks"
                f" ({', '.join(map(str, images))}) with all that the guest has written since the restore began; the"
                " backup stays. Add --yes to do it."
            )
        if handle is not None:
            handle.destroy()
            defining.undefine(handle)
        place.end_earlier(state)
        live_restore.unprotect(state, repository, reporter)
        place.remove(state)
        place.allow_start(state.uuid, is_undone=True)
        pools.refresh_of(host, images)
    return Aborted(state.backup, state.name, state.uuid, state.paths)
