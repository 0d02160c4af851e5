"""Restore over the disks of a domain that is off: ``vbackup restore --in-place``.

vbackup.operations.rollback writes only what differs. A disk where that cannot be trusted gets a new image in full
(vbackup.operations.full_in_place). If one of the disks can have neither, none is written. The new images are made
first, then the others are rolled back, and last the new ones take their places: what takes long loses nothing. A run
that ends between the two is ended by the next one (vbackup.operations.in_place_end).
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from vbackup.domain.host import DomainHandle, Host
from vbackup.errors import DomainNotFoundError, LinkLostError, command, domain_argument
from vbackup.files import refuse_link
from vbackup.hooks import half_restored
from vbackup.model import Backup, MachineKind
from vbackup.operations import full_in_place, in_place_end, restore_scripts
from vbackup.operations.full_in_place import FullRequest, RestoredInFull
from vbackup.operations.in_place_host import Here, Place, Restore
from vbackup.operations.restore_scripts import Way
from vbackup.operations.rollback import RollbackRequest, RolledBack
from vbackup.report import Reporter
from vbackup.repository import chosen
from vbackup.repository.choice import Wanted
from vbackup.repository.chosen import Chosen
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.scripts import runner
from vbackup.scripts.runner import DomainScripts
from vbackup.stop import Stop

#: What a machine writes beside its disks, in words.
_STATE = {
    MachineKind.NVRAM: "UEFI variables",
    MachineKind.VARSTORE: "UEFI variables",
    MachineKind.TPM: "state of the TPM",
}


@dataclass(frozen=True)
class InPlaceRequest:
    """The options of ``vbackup restore --in-place``."""

    domain: str  #: name or UUID of a domain of the host
    wanted: Wanted = field(default_factory=Wanted)
    checkpoint: bool = True  #: the next backup starts from the restored one
    exclusive: bool = False  #: no other host uses the images of the domain while it is off
    speed_bytes_s: int | None = None  #: of each disk
    wait_lock_s: float = 0.0  #: for another vbackup that works on the domain
    keep_old: bool = False  #: images that are replaced are kept under another name


@dataclass(frozen=True)
class RestoredInPlace:
    """What was restored."""

    backup_id: str
    domain_name: str
    domain_uuid: str
    disks: tuple[RolledBack, ...]
    in_full: tuple[RestoredInFull, ...] = ()  #: disks that could not be rolled back
    machine_untouched: tuple[MachineKind, ...] = ()  #: what the backup has of the machine's state, and stays as it is


def run(
    request: InPlaceRequest,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    scripts: DomainScripts | None = None,
) -> RestoredInPlace:
    """Restore the domain's disks, and return what was written. Its definition stays as it is.

    ``scripts`` are the user's, of which those before a restore are run; one of them may shut the domain off.
    Raises DomainNotFoundError, UnsuitableError if the domain runs or has saved memory, DiskError if a disk cannot be
    restored in place (restore to a directory then), NoSpaceError, BusyError, ChainError, StorageError, ScriptError.
    Nothing was written then, unless a warning says that a disk is in the middle.
    """
    handle = host.domain(request.domain)
    refuse_link(repository.path / handle.uuid)
    if handle.uuid not in repository.uuids():  # and the lock would create its directory
        raise _not_there(handle, repository)
    scripts = scripts or runner.none(reporter=reporter, stop=stop, work="restore", domain=request.domain)
    wait = LockWait(request.wait_lock_s, reporter, stop, name=handle.name)
    with (
        repository.lock(handle.uuid, wait=wait),
        chosen.held(repository, handle.uuid, request.wanted, stop=stop) as point,
    ):
        restore_scripts.know(scripts, point.backup, repository=repository, uri=host.real_uri, output=None)
        restore_scripts.before(scripts, point, Way.IN_PLACE)
        place = _place_of(host, handle, stop=stop)
        with place.marked():
            what = Restore(point, repository, reporter, stop)
            return _restored(request, handle, place, what)


def _place_of(host: Host, handle: DomainHandle, *, stop: Stop) -> Place:
    """Return the host with the images of a domain. Raises SshError, HelperError."""
    if not host.has_link:
        return Here(handle)
    from vbackup.operations.in_place_there import There  # most domains are of this host

    return There(handle, stop=stop)


def _restored(request: InPlaceRequest, handle: DomainHandle, place: Place, what: Restore) -> RestoredInPlace:
    """Restore the disks of a domain that is locked."""
    point, repository, reporter = what.point, what.repository, what.reporter
    how = RollbackRequest(request.exclusive, checkpoint=request.checkpoint, speed_bytes_s=request.speed_bytes_s)
    in_full = FullRequest(
        request.exclusive,
        checkpoint=request.checkpoint,
        keep_old=request.keep_old,
        speed_bytes_s=request.speed_bytes_s,
    )

    def half_written(devs: Sequence[str]) -> None:
        again = _command(request, handle, point.backup, repository, uri=place.uri or handle.host.uri)
        place.half_restored(devs, command=again, reporter=reporter)

    settled = in_place_end.settle(
        handle, point.chains, place, keep_old=request.keep_old, repository=repository, reporter=reporter
    )
    with place.rollback(how, what) as ready:
        replaced = full_in_place.ended(settled.finished, ready.reasons, place, point, keep_old=request.keep_old)
        ended = {one.dev for one in replaced}
        reasons = {dev: reason for dev, reason in ready.reasons.items() if dev not in ended}
        with full_in_place.prepared(in_full, reasons, handle, place, what, is_resumed=settled.is_resumed) as full:
            _warn(point, ready.untouched, handle, reporter, is_asked=bool(request.wanted.disks))
            with full.written(ready.devs):
                done = ready.run(about_to_write=half_written)
                replaced += full.exchange(about_to_write=half_written)
    _whole([*(one.dev for one in done), *(one.dev for one in replaced)], handle, place, reporter)
    return RestoredInPlace(
        point.backup.id, handle.name, handle.uuid, tuple(done), tuple(replaced), machine_untouched(point.backup)
    )


def _whole(devs: Sequence[str], handle: DomainHandle, place: Place, reporter: Reporter) -> None:
    """Record that all disks are restored, or warn if the link is lost, which changes nothing in that."""
    try:
        place.whole(devs)
    except LinkLostError as err:
        reporter.warning(
            f"All disks are restored, but then the SSH connection to {err.host} {err.how}: libvirt's hook script there"
            f" may still refuse to start domain {handle.name}. Remove {half_restored.DIRECTORY / handle.uuid}"
            f"{place.on_host}, unless it names other disks than {', '.join(devs)}."
        )


def _not_there(handle: DomainHandle, repository: Repository) -> DomainNotFoundError:
    """Return the error that says that there are no backups of the domain, and whether there are of a namesake."""
    where = shlex.quote(str(repository.path))
    try:
        namesakes = repository.find_all(handle.name)
    except DomainNotFoundError:
        hint = f"'vbackup list -r {where}' lists the domains that have backups"
    else:
        restore = handle.host.command(f"vbackup restore {namesakes[0]} -r {where} --output=DIR --define --name=NEW")
        hint = (
            f"it has backups of another domain of that name, with the UUID {' or '.join(namesakes)}, and in place only"
            f" a domain's own disks are restored. '{restore}' restores the other one as a new domain"
        )
    return DomainNotFoundError(f"{handle.name} ({handle.uuid})", f"in {repository.path}", hint)


def _command(
    request: InPlaceRequest, handle: DomainHandle, backup: Backup, repository: Repository, *, uri: str | None
) -> str:
    """Return the command that runs this restore again."""
    words = [f"--backup={backup.id}", "--in-place", "-r", str(repository.path.absolute())]
    words += ["--mixed"] if request.wanted.is_mixed else []
    words += [f"--disk={','.join(request.wanted.disks)}"] if request.wanted.disks else []
    return command(f"vbackup restore {domain_argument(handle.name)} {shlex.join(words)}", uri)


def machine_untouched(backup: Backup) -> tuple[MachineKind, ...]:
    """Return what a backup has of the state that a machine keeps beside its disks: a restore in place leaves it."""
    return tuple(one.kind for one in backup.machine_files if one.kind in _STATE)


def _warn(
    point: Chosen, untouched: Collection[str], handle: DomainHandle, reporter: Reporter, *, is_asked: bool
) -> None:
    """Say what may not fit together."""
    if untouched and not is_asked:
        reporter.warning(
            f"Domain {handle.name} has disks that backup {point.backup.id} does not have; they stay as they are:"
            f" {', '.join(untouched)}."
        )
    state = machine_untouched(point.backup)
    if state:
        kept = " and ".join(_STATE[one] for one in state)
        reporter.warning(
            f"Only the disks are restored in place: domain {handle.name} keeps its {kept} as now,"
            f" which may not fit them. 'vbackup restore {domain_argument(handle.name)} {point.backup.id} --output=DIR'"
            " gives those of the backup."
        )
    for remark in point.choice.remarks:
        reporter.warning(remark)
