"""Go on with a live restore after the death of vbackup, of the storage daemon, of QEMU or of the host."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vbackup.domain import defining, lifecycle, live_xml
from vbackup.domain.host import DomainHandle, Host
from vbackup.errors import DomainNotFoundError, UsageError
from vbackup.images.flatten import layers_of
from vbackup.model import Backup
from vbackup.operations import (
    live_place,
    live_pull,
    live_restore,
    restore_scripts,
    restored_domain,
    restored_machine,
)
from vbackup.operations.live_place import Place
from vbackup.operations.live_restore import LiveRestored
from vbackup.report import Reporter
from vbackup.repository import readers, verify
from vbackup.repository.history import Link
from vbackup.repository.live_state import LiveState
from vbackup.repository.repository import Repository
from vbackup.scripts.runner import DomainScripts
from vbackup.stop import Stop


@dataclass(frozen=True)
class ResumeRequest:
    """The options of ``vbackup restore --live --resume``."""

    domain: str  #: name or UUID
    output: Path
    speed_bytes_s: int | None = None  #: of the pull of each disk; None: no limit


def run(
    request: ResumeRequest,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    scripts: DomainScripts | None = None,
) -> LiveRestored:
    """Serve the backup again, start the domain if it is off, and return when all data is at home.

    ``scripts`` are the user's; those before the restore were run when it began, and the caller runs the later ones.
    The guest runs on whoever has paused it. Raises StorageError if no live restore to this directory is unfinished,
    UsageError if it is of another domain or repository, UnsuitableError if the domain does not use its images,
    BusyError if another vbackup works on it, and what vbackup.operations.live_restore.run raises.
    """
    place = live_place.of(host, stop=stop)
    with place.locked(place.absolute(request.output)) as state:
        refuse_other(state, request.domain, repository)
        backup = repository.catalogue(state.original).history.get(state.backup)
        if scripts is not None:
            restore_scripts.know(scripts, backup, repository=repository, uri=host.real_uri, output=request.output)
        handle = _domain(host, state, backup, place)
        if state.away:
            _go_on(handle, state, request, place=place, repository=repository, reporter=reporter, stop=stop)
        else:
            place.end_earlier(state)
        live_pull.make_plain(handle, state, place)
        checkpoints = live_restore.finish(handle, state, backup, place=place, repository=repository, reporter=reporter)
    return live_restore.restored(state, checkpoints)


def refuse_other(state: LiveState, domain: str, repository: Repository) -> None:
    """Raise UsageError if the live restore is of another repository or domain."""
    if state.repository_id != repository.id:
        raise UsageError(f"The live restore to {state.output} is from another repository than {repository.path}.")
    if domain not in (state.uuid, state.name):
        raise UsageError(f"The live restore to {state.output} is of domain {state.name} ({state.uuid}), not {domain}.")


def domain_of(host: Host, state: LiveState) -> DomainHandle | None:
    """Return the domain that is being restored, None if the host has none of this UUID.

    Raises UnsuitableError if a domain of this UUID does not use the restore's images.
    """
    try:
        handle = host.domain(state.uuid)
    except DomainNotFoundError:
        return None
    live_pull.refuse_strange(handle.name, handle.definition_xml(), state, tuple(state.disks))
    return handle


def _domain(host: Host, state: LiveState, backup: Backup, place: Place) -> DomainHandle:
    """Return the domain. If it is off, it is defined as it has to be, whoever has changed that meanwhile."""
    handle = domain_of(host, state)
    if handle is not None and handle.is_active():
        return handle
    xml = place.domain_xml(state) if handle is None else handle.definition_xml()
    text = live_xml.live(xml, state.away, os.fspath(state.socket))
    if handle is not None:
        return defining.define(host, text)
    machine = restored_machine.placed(backup, state.output) if state.uri is None else ()
    return restored_domain.define_again(host, text, machine)


def _go_on(
    handle: DomainHandle,
    state: LiveState,
    request: ResumeRequest,
    *,
    place: Place,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> None:
    user = live_restore.user_of(place, handle.host, handle.definition_xml())

    def read() -> Mapping[str, Sequence[Link]]:
        history = repository.catalogue(state.original).history
        return {dev: history.links(one.backup, dev) for dev, one in state.disks.items()}

    def directories(chains: Mapping[str, Sequence[Link]]) -> list[Path]:
        needed = {link.backup.id for links in chains.values() for link in links}
        return [repository.directory(state.original, one) for one in sorted(needed)]

    with readers.unchanged(read, directories, stop=stop) as chains:
        verify.check_headers(chains, repository, stop=stop)
        layers = {
            dev: layers_of([(link, verify.image_path(repository, link)) for link in links])
            for dev, links in chains.items()
        }
        place.end_earlier(state)  # nothing that can refuse comes after it
        with (
            live_restore.served(place, layers, state, user, backups=directories(chains), reporter=reporter) as point,
            live_pull.guarded(handle, state, point, reporter, is_resumed=True),
        ):
            live_restore.refuse_start_by_others(place, state, repository, reporter)
            is_on = handle.is_active()
            overlays = _taken_over(handle, state) if is_on else live_pull.start(handle, state)
            reporter.step(f"Domain {handle.name} runs; its data comes home meanwhile.")
            live_pull.home(
                handle,
                state,
                overlays,
                speed_bytes_s=request.speed_bytes_s,
                boots=not is_on,
                place=place,
                reporter=reporter,
                stop=stop,
            )


def _taken_over(handle: DomainHandle, state: LiveState) -> live_pull.Overlays:
    """Let the guest of a dead run go on; its pulls have ended then, and begin where they were."""
    for dev in state.away:
        lifecycle.end_pull(handle, dev)
    overlays = live_pull.secure(handle, state)
    if handle.halted() is not None:
        handle.resume()
    return overlays
