"""Run a domain from a backup at once, while its data comes home: ``vbackup restore --live``.

Each disk is an overlay in its final place, in the output directory or elsewhere; its backing file is the backup, which
vbackup's storage daemon serves on a unix socket (vbackup.images.live_point). So libvirt gets nothing of the repository.
All that is on the host of libvirt, this one or another that SSH leads to, is in vbackup.operations.live_place.
Below the overlay lies a node that waits for the daemon, however long (vbackup.engine.live_backing). libvirt pulls the
data home while the guest runs (vbackup.operations.live_pull); what the guest writes is at home from the beginning.

live.json in the output directory (vbackup.repository.live_state) is what ``--resume`` and ``--abort`` work with. Before
the guest has run, a failure leaves nothing behind; afterwards nothing is removed without ``--abort``.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from vbackup.domain import defining, domain_xml, live_xml
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.identity import Identity
from vbackup.domain.pools import Pool
from vbackup.domain.qemu_user import QemuUser
from vbackup.domain.restored_xml import RestoredXml
from vbackup.errors import (
    DomainNotFoundError,
    NoSpaceError,
    StorageError,
    UnsuitableError,
    UsageError,
    VbackupError,
)
from vbackup.images.destination import Destination
from vbackup.images.flatten import Layer, layers_of
from vbackup.images.live_point import Serving
from vbackup.model import Backup, LeftOut
from vbackup.operations import (
    disk_places,
    live_files,
    live_place,
    live_pull,
    restore,
    restore_scripts,
    restored_domain,
    restored_machine,
    serve,
)
from vbackup.operations.disk_places import Places
from vbackup.operations.live_files import Writing
from vbackup.operations.live_place import Place
from vbackup.operations.restore import RestoreRequest
from vbackup.operations.restore_scripts import Way
from vbackup.operations.restored_domain import DefineRequest, Prepared
from vbackup.operations.restored_machine import Placed
from vbackup.report import Reporter
from vbackup.repository import chosen, data_size, live_state, protection, readers
from vbackup.repository.choice import Wanted
from vbackup.repository.chosen import Chosen
from vbackup.repository.live_state import LiveDisk, LiveState
from vbackup.repository.protection import Protection
from vbackup.repository.repository import Repository
from vbackup.scripts import runner
from vbackup.scripts.runner import DomainScripts
from vbackup.stop import Stop


@dataclass(frozen=True)
class LiveRequest:
    """The options of ``vbackup restore --live``."""

    domain: str  #: name or UUID
    output: Path
    wanted: Wanted
    speed_bytes_s: int | None = None  #: of the pull of each disk; None: no limit
    name: str | None = None  #: of a new domain; None: the original is restored
    destinations: Mapping[str, Path] = field(default_factory=dict)  #: of disks (dev): a new file
    checkpoint: bool = True  #: the next backup of the original starts from the backup


@dataclass(frozen=True)
class LiveRestored:
    """A domain that runs from its own images only."""

    backup_id: str
    name: str
    uuid: str
    images: Mapping[str, Path]  #: by dev
    backups: Mapping[str, str]  #: id of the backup that each disk is of, by dev
    left_out: tuple[LeftOut, ...] = ()  #: what the original has and this domain has not
    shared: tuple[LeftOut, ...] = ()  #: what this domain has of the original's
    machine: tuple[Placed, ...] = ()  #: what the domain needs beside disks and XML, and where it is now
    checkpoints: tuple[str, ...] = ()  #: disks (dev) whose next backup starts from the backup


@dataclass(frozen=True)
class _Work:
    """What a live restore works with."""

    request: LiveRequest
    host: Host
    repository: Repository
    reporter: Reporter
    stop: Stop
    pool: Pool | None
    place: Place

    @property
    def places(self) -> Places:
        """What the user says of the places of disks."""
        return Places(self.request.output, paths=self.request.destinations, pool=self.pool)


def run(
    request: LiveRequest,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    pool: Pool | None = None,
    scripts: DomainScripts | None = None,
) -> LiveRestored:
    """Start the domain, pull its data home, and return when all of it is there.

    ``pool``: the disks become volumes of it, but for those that have another destination. ``scripts`` are the
    user's, of which those before a restore are run.

    Raises what vbackup.repository.chosen.shown raises, UnsuitableError (the host has such a domain already, libvirt is
    on another host, a disk would go to a block device, no storage daemon), ScriptError, UsageError (the path of the
    directory is too long, a disk is not named), StorageError (a file is there already, QEMU could not enter the
    directory), NoSpaceError, all before anything is written; what libvirt says of the definition and the start, after
    which nothing is left; and what vbackup.operations.live_pull.home raises: the domain is there then, and its restore
    can be resumed.
    """
    uuid = repository.find(request.domain)
    place = live_place.of(host, stop=stop)
    absolute = replace(request, output=place.absolute(request.output))
    work = _Work(absolute, host, repository, reporter, stop, pool, place)
    _refuse_places(work)
    scripts = scripts or runner.none(reporter=reporter, stop=stop, work="restore", domain=request.domain)
    with chosen.shown(repository, uuid, request.wanted, reporter=reporter, stop=stop) as found:
        restore_scripts.know(scripts, found.backup, repository=repository, uri=host.real_uri, output=request.output)
        return _restore(found, work, scripts)


@dataclass(frozen=True)
class _Ready:
    """A live restore that can be made, and of which nothing is written yet."""

    places: Sequence[Destination]
    machine: tuple[Placed, ...]
    definition: RestoredXml
    prepared: Prepared
    user: QemuUser
    state: LiveState


def _restore(found: Chosen, work: _Work, scripts: DomainScripts) -> LiveRestored:
    ready = _ready(found, work)
    output, state, prepared, place = work.request.output, ready.state, ready.prepared, work.place
    layers = {dev: layers_of(found.paths(work.repository, dev), work.repository.served) for dev in found.chains}
    backups = [work.repository.directory(state.original, one) for one in found.needed]
    files_of = {one.dev: one.path for one in ready.places}
    restore_scripts.before(scripts, found, Way.LIVE, output=output, files=files_of, name=work.request.name)
    with ExitStack() as undo:
        checkpoint, tools = work.request.checkpoint, (work.repository, work.reporter, work.stop)
        place.write(state, Writing(found, ready.machine, prepared.text, checkpoint, *tools))
        undo.callback(_take_back, state, work)
        if work.pool is not None:
            work.pool.refresh()
        with (
            place.locked(output),
            served(place, layers, state, ready.user, backups=backups, reporter=work.reporter) as point,
        ):
            handle = _defined(ready, work)
            overlays = live_pull.start(handle, state)
            undo.pop_all()  # the guest runs
            for warning in restore.definition_warnings(ready.definition):  # the others were there before the start
                work.reporter.warning(warning)
            work.reporter.step(f"Domain {handle.name} runs; its data comes home meanwhile.")
            with live_pull.guarded(handle, state, point, work.reporter):
                live_pull.home(
                    handle,
                    state,
                    overlays,
                    speed_bytes_s=work.request.speed_bytes_s,
                    boots=True,
                    place=place,
                    stop=work.stop,
                    reporter=work.reporter,
                )
            live_pull.make_plain(handle, state, place)
            checkpoints = finish(
                handle, state, found.backup, place=place, repository=work.repository, reporter=work.reporter
            )
    return restored(state, checkpoints, ready.definition, place.machine(prepared, ready.machine))


def _ready(found: Chosen, work: _Work) -> _Ready:
    """Decide what goes where, and refuse what cannot be."""
    backup, request, host, place = found.backup, work.request, work.host, work.place
    output = request.output
    _refuse_part(found)
    refuse_long(output)
    places = disk_places.plan(
        work.places, found.chains, name=request.name or backup.domain_name, repository=work.repository
    )
    _refuse_devices(places)
    machine = restored_machine.placed(backup, output)
    names = [*restored_machine.names(machine, output), "domain.xml"]
    of_state = [live_state.FILE, live_state.SOCKET]
    place.refuse_existing([*(one.path for one in places), *(output / name for name in (*names, *of_state))])
    others = [*request.destinations.values(), *([] if work.pool is None else [work.pool.target])]
    place.refuse_unfit(output, others, work.repository)
    restored_machine.check(machine, backup, repository=work.repository, stop=work.stop)
    define = DefineRequest(request.name, start=True)
    restoring = RestoreRequest(backup.domain_uuid, output, define=define, uri=host.uri)
    definition = restore.definition_for(
        restoring, found.choice, machine, places, repository=work.repository, reporter=work.reporter, stop=work.stop
    )
    place.refuse_existing([Path(name) for name in definition.new_files])
    prepared = restored_domain.prepare(
        define,
        definition,
        machine=machine,
        host=host,
        output=output,
        reporter=work.reporter,
        is_missing=place.is_missing,
    )
    place.refuse_closed(prepared, output)
    user = user_of(place, host, prepared.text)
    _refuse_full(found, places, work)
    state = _state(found, work, identity=prepared.identity, places=places, names=names, new_files=definition.new_files)
    return _Ready(places, machine, definition, prepared, user, state)


def _defined(ready: _Ready, work: _Work) -> DomainHandle:
    """Define the domain on its overlays, and let nobody else start it."""
    state, prepared = ready.state, ready.prepared
    _protect(state, work)
    xml = live_xml.live(prepared.text, tuple(state.disks), os.fspath(state.socket))
    # Another run may have begun the same restore meanwhile, and to define it replaces what its guest runs with.
    defining.refuse_taken(work.host, prepared.identity, is_new=work.request.name is not None)
    handle = restored_domain.define_only(replace(prepared, text=xml))
    refuse_start_by_others(work.place, state, work.repository, work.reporter)
    return handle


def restored(
    state: LiveState,
    checkpoints: Sequence[str],
    definition: RestoredXml | None = None,
    machine: tuple[Placed, ...] = (),
) -> LiveRestored:
    """Return what a live restore has become. ``checkpoints`` as ``finish`` returns them."""
    return LiveRestored(
        state.backup,
        state.name,
        state.uuid,
        {dev: state.image(dev) for dev in state.disks},
        {dev: one.backup for dev, one in state.disks.items()},
        left_out=() if definition is None else definition.left_out,
        shared=() if definition is None else definition.shared,
        machine=machine,
        checkpoints=tuple(checkpoints),
    )


@contextmanager
def served(
    place: Place,
    layers: Mapping[str, Sequence[Layer]],
    state: LiveState,
    user: QemuUser,
    *,
    backups: Sequence[Path],
    reporter: Reporter,
) -> Iterator[Serving]:
    """Serve the disks during the block, and if this process of QEMU's host dies, until somebody ends the daemon.

    ``backups`` are the directories of all that are read.
    """
    with readers.reading(backups) as locks, place.serving(layers, state, user, locks, reporter) as point:
        yield point


def finish(
    handle: DomainHandle,
    state: LiveState,
    backup: Backup,
    *,
    place: Place,
    repository: Repository,
    reporter: Reporter,
) -> list[str]:
    """Let a domain whose data is at home start with its host if the original did, and forget the live restore.

    Return the disks (dev) whose next backup starts from the backup.
    """
    if backup.autostart and state.is_original:
        try:
            defining.set_autostart(handle)
        except VbackupError as err:
            reporter.warning(f"{err} The original had that (autostart).")
    checkpoints = live_files.checkpoints(handle, state, repository)
    unprotect(state, repository, reporter)
    place.allow_start(state.uuid, is_undone=False)
    place.forget(state.output)
    return checkpoints


def refuse_start_by_others(place: Place, state: LiveState, repository: Repository, reporter: Reporter) -> None:
    """Let libvirt's hook script refuse to start the domain when this process, which serves its data, is gone."""
    words = ["vbackup", *([] if state.uri is None else ["-c", state.uri])]
    words += ["restore", state.uuid, "--live", "--resume", f"--output={state.output}"]
    place.refuse_start(state, shlex.join([*words, "-r", os.fspath(repository.path.absolute())]), reporter)


def unprotect(state: LiveState, repository: Repository, reporter: Reporter) -> None:
    """End the protection that the restore gave to backups, unless somebody has another reason by now."""
    for one in state.protected:
        directory = repository.directory(state.original, one)
        try:
            known = protection.read(directory)
            if known is not None and known.reason == _reason(state):
                protection.unprotect(directory)
        except VbackupError as err:
            reporter.warning(f"Backup {one} stays protected: {err}")


# what is refused before anything is written


def _refuse_places(work: _Work) -> None:
    """Raise UnsuitableError if disks of a domain on another host would go elsewhere than into the directory."""
    if not work.host.is_local and (work.request.destinations or work.pool is not None):
        raise UnsuitableError(
            f"{work.host.real_uri} is on another host, where a live restore writes to the directory of --output; for"
            " --pool and --disk DEV=PATH, run vbackup there."
        )


def refuse_long(output: Path) -> None:
    """Raise UsageError if the socket in the directory would have too long a path."""
    path = os.fsencode(live_state.socket_of(output))
    if len(path) > serve.MAX_PATH_BYTES:
        room = serve.MAX_PATH_BYTES - len(live_state.SOCKET) - 1
        raise UsageError(
            f"The path of the directory {output} is too long for a socket in it; give one of at most {room} bytes."
        )


def _refuse_part(found: Chosen) -> None:
    """Raise UsageError if a disk of the backup would not be restored."""
    devs = [one.dev for one in found.backup.disks if one.dev not in found.chains]
    if devs:
        raise UsageError(
            f"A domain that runs at once needs all of its disks: give {' '.join(devs)} to --disk, too, without a path"
            " for the output directory."
        )


def _refuse_devices(places: Sequence[Destination]) -> None:
    """Raise UnsuitableError if a disk would go to a block device.

    A restore writes raw content to one, as its guest shall have it. What is pulled home needs an image with a backing
    file, and a device would be left with a qcow2 image on it.
    """
    for one in places:
        if not one.is_new:
            raise UnsuitableError(
                f"Disk {one.dev}: {one.path} is a block device, but the data of a live restore comes home into qcow2"
                " files. Give a file, or restore without --live."
            )


def _refuse_full(found: Chosen, places: Sequence[Destination], work: _Work) -> None:
    """Raise NoSpaceError if a file system has less room than the data of the disks that go there."""
    needed: dict[int, int] = {}
    nearest: dict[int, tuple[Path, int]] = {}
    for one in places:
        device, path, free = work.place.room(one.path)
        nearest.setdefault(device, (path, free))
        data_bytes = data_size.image_bytes(found.paths(work.repository, one.dev))
        needed[device] = needed.get(device, 0) + data_bytes
    for device, (path, free) in nearest.items():
        if free < needed[device]:
            raise NoSpaceError(
                f"{path} has room for {free} bytes, but the disks of backup {found.backup.id} that go there have"
                f" {needed[device]} bytes of data; free some space, or give another place."
            )


def user_of(place: Place, host: Host, definition: str) -> QemuUser:
    """Return whom the QEMU of the domain will run as."""
    return place.user_of([*domain_xml.parse(definition).security_labels, *defining.of(host).labels])


# the steps to a running guest, each with its undo


def _state(
    found: Chosen,
    work: _Work,
    *,
    identity: Identity,
    places: Sequence[Destination],
    names: Sequence[str],
    new_files: Sequence[str],
) -> LiveState:
    backup = found.backup
    used = sorted({backup.id, *(one.id for one in found.choice.disks.values())})
    free = [one for one in used if protection.read(work.repository.directory(backup.domain_uuid, one)) is None]
    return LiveState(
        output=work.request.output,
        repository_id=work.repository.id,
        original=backup.domain_uuid,
        uuid=identity.uuid,
        name=identity.name,
        backup=backup.id,
        disks={one.dev: LiveDisk(one.dev, found.choice.disks[one.dev].id, one.path) for one in places},
        files=tuple(names),
        later=tuple(Path(one).name for one in new_files if Path(one).parent == work.request.output),
        protected=tuple(free),
        uri=None if work.host.is_local else work.host.real_uri,
    )


def _reason(state: LiveState) -> str:
    return f"live restore to {state.output}"


def _protect(state: LiveState, work: _Work) -> None:
    """Keep the backups until the restore has ended, also if nobody reads them for a while."""
    for one in state.protected:
        directory = work.repository.directory(state.original, one)
        try:
            protection.protect(directory, Protection(datetime.now(timezone.utc), _reason(state)))
        except StorageError as err:
            work.reporter.warning(
                f"Do not remove backup {one} before the restore has ended; nothing protects it: {err}"
            )


def _take_back(state: LiveState, work: _Work) -> None:
    """Leave nothing of a start that failed. Files that a domain uses stay: a lost connection can leave it running.

    A domain with other images, now or when it starts again, is another restore's.
    """
    try:
        try:
            handle = work.host.domain(state.uuid)
        except DomainNotFoundError:
            pass
        else:
            if not any(live_pull.strange(xml, state) for xml in (handle.live_xml(), handle.definition_xml())):
                handle.destroy()
                defining.undefine(handle)
        unprotect(state, work.repository, work.reporter)
        work.place.remove(state)
        work.place.allow_start(state.uuid, is_undone=True)
        if work.pool is not None:
            work.pool.refresh()
    except VbackupError as err:
        where = "" if state.uri is None else f"-c {shlex.quote(state.uri)} "
        words = f"vbackup {where}restore {state.uuid} --live --abort --yes --output {shlex.quote(str(state.output))}"
        work.reporter.warning(f"Could not undo the start of domain {state.name}: {err} '{words}' does that.")
