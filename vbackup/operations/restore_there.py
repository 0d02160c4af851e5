"""Restore a backup to another host, where libvirt then defines the domain: the way back of a backup over SSH.

Nothing needs to be installed there but what a hypervisor has. The images are written through the link
(vbackup.images.there) in a directory that goes with it, beside their places; they get their names when all are complete
and have been compared with the block lists. If the link is lost, the helper there removes what is not complete.
"""

from __future__ import annotations

import errno
import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vbackup.domain import defining, domain_xml
from vbackup.domain.host import Host
from vbackup.domain.pools import Pool
from vbackup.domain.restored_xml import RestoredXml
from vbackup.engine import restored_checkpoint
from vbackup.errors import LinkLostError, QmpError, RemoteError, StorageError, UnsuitableError
from vbackup.hooks import half_restored
from vbackup.images.destination import Destination
from vbackup.images.there import ImageThere, Served, Writing
from vbackup.layers import ChainState, FileState, LayerState
from vbackup.model import ImageFormat, MachineKind
from vbackup.operations import (
    disk_places_there,
    restore,
    restore_scripts,
    restored_domain,
    restored_machine,
    tpm_there,
)
from vbackup.operations.disk_places import Places
from vbackup.operations.restore import Restored, RestoreRequest
from vbackup.operations.restore_scripts import Way
from vbackup.operations.restored_domain import Prepared
from vbackup.operations.restored_machine import Placed
from vbackup.remote.link import Link
from vbackup.report import Reporter
from vbackup.repository import chosen, verify
from vbackup.repository.choice import Choice
from vbackup.repository.chosen import Chosen
from vbackup.repository.repository import Repository
from vbackup.scripts.runner import DomainScripts
from vbackup.stop import Stop

#: Others may pass through the directory: QEMU has to reach its images.
_ENTER = 0o001


@dataclass(frozen=True)
class _Work:
    """What a restore to another host works with."""

    request: RestoreRequest
    repository: Repository
    reporter: Reporter
    stop: Stop
    host: Host
    link: Link
    pool: Pool | None

    @property
    def output(self) -> Path:
        """The directory there."""
        return self.request.output


def run(
    request: RestoreRequest,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    scripts: DomainScripts,
    pool: Pool | None = None,
) -> Restored:
    """Restore the backup to the host of libvirt, to which SSH leads, and define the domain there.

    ``request.output`` is a directory on that host. ``pool``: the disks become volumes of it, but for those that have
    another destination. Returns what was written, with paths there. Raises what
    vbackup.operations.restore.run raises, UnsuitableError for what only a restore on the host itself can do, and
    SshError, HelperError, LinkLostError, RemoteError. Nothing is left there then. RestoredOnlyError: libvirt refuses
    the definition in the end; the disks are complete and stay.
    """
    refuse_relative(request.output)
    uuid = repository.find(request.domain)
    link = host.link(check=stop.check)
    work = _Work(request, repository, reporter, stop, host, link, pool)
    with chosen.held(repository, uuid, request.wanted, stop=stop) as point:
        restore_scripts.know(scripts, point.backup, repository=repository, uri=request.uri, output=request.output)
        return _restore(point, work, scripts)


def refuse_relative(output: Path) -> None:
    """Raise UnsuitableError if the directory depends on where vbackup was started."""
    disk_places_there.refuse_relative(output, option="--output ")


def _restore(point: Chosen, work: _Work, scripts: DomainScripts) -> Restored:
    choice, chains = point.choice, point.chains
    backup, request, output = choice.backup, work.request, work.output
    assert request.define is not None
    is_missing = missing_on(work.link)
    destinations = disk_places_there.plan(
        Places(output, request.image_format, request.destinations, work.pool),
        chains,
        name=request.define.name or backup.domain_name,
        repository=work.repository,
        link=work.link,
        is_missing=is_missing,
    )
    machine = restored_machine.placed(backup, output)
    taken = [*(one.path for one in destinations), *(one.path for one in machine), output / "domain.xml"]
    refuse_existing(taken, is_missing, work.link)
    disk_places_there.refuse_no_room(
        destinations, chains, repository=work.repository, link=work.link, is_missing=is_missing
    )
    restored_machine.check(machine, backup, repository=work.repository, stop=work.stop)
    definition = _definition(point, machine, destinations, work)
    refuse_existing([Path(path) for path in definition.new_files], is_missing, work.link)
    prepared = restored_domain.prepare(
        request.define,
        definition,
        machine=machine,
        host=work.host,
        output=output,
        reporter=work.reporter,
        is_missing=is_missing,
    )
    for directory in dict.fromkeys((output, *(one.path.parent for one in destinations))):
        refuse_closed(prepared, directory, is_missing, work.link)
    in_place = _in_place(prepared, machine, is_missing, work)
    files_of = {one.dev: one.path for one in destinations}
    restore_scripts.before(scripts, point, Way.NEW, output=output, files=files_of, name=request.define.name)
    verify.check_chains(chains, work.repository, reporter=work.reporter, stop=work.stop)
    checkpoints = _write_all(point, destinations, in_place, prepared.text, work)
    if work.pool is not None:
        work.pool.refresh()
    for warning in restore.warnings(choice, definition, is_missing=is_missing):
        work.reporter.warning(warning)
    with suppress(RemoteError):  # of the disks that a domain with this UUID had before
        work.link.remove_file(os.fspath(half_restored.DIRECTORY / prepared.identity.uuid))
    defined = restored_domain.define(
        prepared, output / "domain.xml", autostart=backup.autostart or False, reporter=work.reporter
    )
    return Restored(
        backup,
        files_of,
        {dev: one.id for dev, one in choice.disks.items()},
        output / "domain.xml",
        closed=(),
        left_out=definition.left_out,
        shared=definition.shared,
        checkpoints=tuple(checkpoints),
        defined=defined,
        machine=in_place,
        volumes={one.dev: one.volume for one in destinations if one.volume is not None},
    )


def _definition(
    point: Chosen, machine: Sequence[Placed], destinations: Sequence[Destination], work: _Work
) -> RestoredXml:
    return restore.definition_for(
        work.request,
        point.choice,
        machine,
        destinations,
        repository=work.repository,
        reporter=work.reporter,
        stop=work.stop,
    )


def missing_on(link: Link) -> Callable[[str | Path], bool]:
    """Return a function that says whether the other host has no such file."""

    def is_missing(path: str | Path) -> bool:
        try:
            link.stat(os.fspath(path))
        except RemoteError as err:
            return is_none(err)
        return False

    return is_missing


def is_none(err: RemoteError) -> bool:
    """Return True if the other host has no such file."""
    return err.errno in (errno.ENOENT, errno.ENOTDIR)


def refuse_existing(paths: Sequence[Path], is_missing: Callable[[str | Path], bool], link: Link) -> None:
    """Raise StorageError if one of them is there, or twice in the list. ``is_missing`` comes from ``missing_on``."""
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise StorageError(f"Two files would both be {path}; give another path to one of the disks.")
        if not is_missing(path):
            raise StorageError(
                f"{path} already exists on {link.host}, and vbackup never overwrites files; give another directory"
                " with --output."
            )


def refuse_closed(prepared: Prepared, output: Path, is_missing: Callable[[str | Path], bool], link: Link) -> None:
    """Raise StorageError if the user that QEMU runs as there cannot pass through a directory to the images."""
    labels = [*defining.of(prepared.host).labels, *domain_xml.parse(prepared.text).security_labels]
    users = [one.label for one in labels if one.model == "dac"]
    if not users or users[-1].lstrip("+").partition(":")[0] in ("0", "root"):
        return
    first = disk_places_there.existing(output, is_missing)
    for directory in reversed((first, *first.parents)):
        if not link.stat(os.fspath(directory))["mode"] & _ENTER:
            raise StorageError(
                f"QEMU on {link.host} does not run as root, and may not enter {directory} there: choose another"
                " directory with --output, such as one below /var/lib/libvirt/images, or run 'chmod o+x"
                f" {shlex.quote(os.fspath(directory))}' there."
            )


def _in_place(
    prepared: Prepared, machine: Sequence[Placed], is_missing: Callable[[str | Path], bool], work: _Work
) -> tuple[Placed, ...]:
    """Return the files of the machine with the state of the TPM where libvirt there looks for it.

    Raises StorageError if there is one already.
    """
    place = restored_machine.tpm_place(prepared.text, machine, work.host.real_uri)
    if place is None:
        return tuple(machine)
    tpm_there.refuse_existing(place, is_missing, work.link)
    return tuple(replace(one, path=place) if one.file.kind is MachineKind.TPM else one for one in machine)


def _write_all(
    point: Chosen, destinations: Sequence[Destination], machine: Sequence[Placed], text: str, work: _Work
) -> list[str]:
    """Write disks, files of the machine and the XML in a directory that goes with the link, and then name them.

    Returns the disks (dev) whose next backup starts from the backup.
    """
    link, output, request = work.link, work.output, work.request
    checkpoints: list[str] = []
    places = {one.dev: one.path for one in destinations}
    has_checkpoint = request.checkpoint and (request.define is None or request.define.name is None)  # of the original

    def finish(image: ImageThere, served: Served) -> None:
        if has_checkpoint and add_checkpoint(
            served,
            image,
            places[image.dev],
            choice=point.choice,
            repository=work.repository,
            reporter=work.reporter,
            stop=work.stop,
        ):
            checkpoints.append(image.dev)

    with tempfile.TemporaryDirectory(prefix="vbackup-") as directory:
        here = Path(directory)
        stages = {output: Path(link.stage(os.fspath(output)))}
        for parent in dict.fromkeys(one.path.parent for one in destinations):
            if parent not in stages:
                stages[parent] = Path(link.stage(os.fspath(parent)))
        stage = stages[output]
        images = [
            ImageThere(
                one.dev,
                os.fspath(stages[one.path.parent] / one.path.name),
                one.image_format,
                point.chains[one.dev][0].image.virtual_size_bytes,
            )
            for one in destinations
        ]
        writing = Writing(link, work.repository, work.reporter, work.stop, request.speed_bytes_s)
        writing.write_all(images, point.chains, finish=finish)
        moves = [(stages[one.path.parent] / one.path.name, one.path) for one in destinations]
        restored_machine.write(machine, point.backup, here, repository=work.repository, stop=work.stop)
        for placed in machine:
            is_elsewhere = placed.path.parent != output
            new = tpm_there.stage(link, placed.path) if is_elsewhere else stage / placed.path.name
            send(link, here / placed.path.name, new)
            if placed.file.kind is MachineKind.TPM:
                tpm_there.give(link, work.host, new)
            moves.append((new, placed.path))
        link.write_file(os.fspath(stage / "domain.xml"), [text.encode()])
        work.stop.check()
        # The domain XML last: where it is, all that it names is there.
        moves.append((stage / "domain.xml", output / "domain.xml"))
        link.publish([(os.fspath(source), os.fspath(target)) for source, target in moves])
        for each in stages.values():
            remove_stage(each, link)
    return checkpoints


def warn_of_record(err: RemoteError | None, path: str | Path, *, domain: str, link: Link, reporter: Reporter) -> None:
    """Warn that the record of a half-restored domain cannot be written there; one who may not write it goes without."""
    if err is not None and link.hello.get("uid") == 0 and err.errno not in (errno.EACCES, errno.EPERM):
        where = f"{path} on {link.host}"
        reporter.warning(half_restored.unwritten(where, err.reason.rstrip("."), domain=domain))


def remove_stage(stage: Path, link: Link) -> None:
    """Remove a directory of ``Link.stage`` at once: a pool would have it as a volume, and a link can last.

    The helper removes it at the end of the link. Never fails.
    """
    with suppress(LinkLostError, RemoteError):
        link.unstage(os.fspath(stage))


def add_checkpoint(
    served: Served,
    image: ImageThere,
    path: Path,
    *,
    choice: Choice,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> bool:
    """Let the chain of a restored disk of the original go on from the backup: see restored_checkpoint.

    ``path``: where the image will be. Returns False if it cannot: what goes wrong is a warning, and the next backup is
    a full then.
    """
    dev, backup = image.dev, choice.disks[image.dev]
    if image.image_format is not ImageFormat.QCOW2 or not restored_checkpoint.can_start(backup, dev, reporter):
        return False
    state = ChainState((LayerState("", FileState(os.fspath(path))),))  # of a file that this host cannot look at
    try:
        recorded = restored_checkpoint.record(
            [(dev, backup, state)], uuid=choice.backup.domain_uuid, repository=repository
        )
        restored_checkpoint.write_bitmaps(
            served.monitor,
            [served.node],
            recorded,
            naming=repository.naming,
            reporter=reporter,
            stop=stop,
        )
    except (StorageError, QmpError, UnsuitableError) as err:
        reporter.warning(
            f"Disk {dev}: the restored image got no bitmap of the restored checkpoint, so its next backup is a full:"
            f" {err}"
        )
        return False
    return True


def send(link: Link, source: Path, target: Path) -> None:
    """Send a file, or the directory of a TPM's state."""
    if not source.is_dir():
        with source.open("rb") as file:
            link.write_file(os.fspath(target), iter(lambda: file.read(1 << 18), b""))
        return
    link.run(["mkdir", "-m", "700", os.fspath(target)])
    for path in sorted(source.iterdir()):
        send(link, path, target / path.name)
