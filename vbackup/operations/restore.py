"""Restore a backup to a directory: an independent image of each disk, and a domain XML that uses these images.

vbackup.repository.verify checks headers, tables and block lists of the chains before anything is written;
vbackup.images.restoring merges a chain into one image and compares that with the lists. Existing files are never
overwritten. Files get their names when all are complete; if it fails, a restore leaves nothing behind. A disk can go to
another place instead of the directory: a new file, a block device, whose old content is lost then, or a volume of a
libvirt storage pool.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from vbackup import files
from vbackup.domain import domain_xml, restored_xml
from vbackup.domain.host import Host
from vbackup.domain.pools import Pool
from vbackup.domain.restored_xml import RestoredXml
from vbackup.engine import restored_checkpoint
from vbackup.engine.restored_checkpoint import RestoredImage
from vbackup.errors import ChainError, MalformedError
from vbackup.files import storage_errors
from vbackup.images import destination
from vbackup.images.destination import Destination, Overwritten
from vbackup.images.restoring import Restoring
from vbackup.model import LIVE_XML, NVRAM, Backup, ImageFormat, LeftOut, MachineKind
from vbackup.operations import disk_places, restore_scripts, restored_domain, restored_machine
from vbackup.operations.disk_places import Places
from vbackup.operations.restore_scripts import Way
from vbackup.operations.restored_domain import DefinedDomain, DefineRequest, Prepared
from vbackup.operations.restored_machine import Placed
from vbackup.qemu.qemu_img import Output
from vbackup.report import Reporter
from vbackup.repository import chosen, history, verify
from vbackup.repository.choice import Choice, Wanted
from vbackup.repository.chosen import Chosen
from vbackup.repository.history import Link
from vbackup.repository.repository import Repository
from vbackup.scripts import runner
from vbackup.scripts.runner import DomainScripts
from vbackup.stop import Stop


@dataclass(frozen=True)
class RestoreRequest:
    """The options of ``vbackup restore``."""

    domain: str  #: name or UUID
    output: Path
    wanted: Wanted = field(default_factory=Wanted)
    image_format: ImageFormat = ImageFormat.QCOW2
    checkpoint: bool = True  #: the next backup of the restored domain starts from the backup
    define: DefineRequest | None = None  #: None: libvirt defines nothing
    uri: str | None = None  #: of the libvirt that will run the restored domain; nothing is asked of it
    destinations: Mapping[str, Path] = field(default_factory=dict)  #: of disks (dev): a block device, or a new file
    speed_bytes_s: int | None = None  #: of each disk


@dataclass(frozen=True)
class Restored:
    """The backup that was restored, and the files that were written."""

    backup: Backup
    images: Mapping[str, Path]  #: by dev
    backups: Mapping[str, str]  #: id of the backup that each disk is of, by dev
    domain_xml: Path
    closed: tuple[Path, ...]  #: directories on the way to them that only their owner can enter, the outermost first
    left_out: tuple[LeftOut, ...]  #: what the original has and the restored domain.xml has not
    shared: tuple[LeftOut, ...]  #: what the restored domain.xml still has of the original's
    checkpoints: tuple[str, ...] = ()  #: disks (dev) whose next backup starts from the backup
    defined: DefinedDomain | None = None  #: None if that was not asked for
    machine: tuple[Placed, ...] = ()  #: what the domain needs beside disks and XML, and where it is now
    tpm_place: Path | None = None  #: where the state of the TPM has to be copied to; None if libvirt finds it
    devices: tuple[str, ...] = ()  #: disks (dev) that were written to a block device, raw
    volumes: Mapping[str, str] = field(default_factory=dict)  #: names of volumes, by dev

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that was written: disks, what the machine needs beside them, and the definition."""
        return (*self.images.values(), *(one.path for one in self.machine), self.domain_xml)


@dataclass(frozen=True)
class _Work:
    """What a restore works with."""

    request: RestoreRequest
    repository: Repository
    reporter: Reporter
    stop: Stop
    host: Host | None
    pool: Pool | None

    @property
    def new_name(self) -> str | None:
        """The name of a domain that is not the original; None if it is."""
        return None if self.request.define is None else self.request.define.name

    @property
    def places(self) -> Places:
        """What the user says of the places of disks."""
        request = self.request
        return Places(request.output.absolute(), request.image_format, request.destinations, self.pool)


def run(
    request: RestoreRequest,
    *,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    host: Host | None = None,
    pool: Pool | None = None,
    scripts: DomainScripts | None = None,
) -> Restored:
    """Restore the backup, and return what was written. Warnings say what the restored domain lacks or shares.

    ``host`` is where the domain is to be defined, and is needed for nothing else. ``pool``: the disks become volumes of
    it, but for those that have another destination. ``scripts`` are the user's; those before a restore are run.

    Raises DomainNotFoundError, ChainError (the backup is unknown, or an image of its chain is missing, foreign or
    altered; DamagedError if a block that is needed is), AmbiguousHostError, PartialBackupError, DiskError,
    UnsuitableError (of the pool), StorageError (the output exists, is in the repository or cannot be written),
    NoSpaceError, BusyError; what restored_domain.prepare and define raise; ScriptError.
    """
    uuid = repository.find(request.domain)
    places = [request.output, *request.destinations.values(), *([] if pool is None else [pool.target])]
    repository.refuse_inside(*places)
    scripts = scripts or runner.none(reporter=reporter, stop=stop, work="restore", domain=request.domain)
    work = _Work(request, repository, reporter, stop, host, pool)
    with chosen.held(repository, uuid, request.wanted, stop=stop) as point:
        restore_scripts.know(scripts, point.backup, repository=repository, uri=request.uri, output=request.output)
        return _restore(point, work, scripts)


def _restore(point: Chosen, work: _Work, scripts: DomainScripts) -> Restored:
    choice, chains = point.choice, point.chains
    backup, request = choice.backup, work.request
    output = request.output.absolute()
    planned = disk_places.plan(
        work.places, chains, name=work.new_name or backup.domain_name, repository=work.repository
    )
    machine = restored_machine.placed(backup, output)
    destination.refuse_existing(
        [*(one.path for one in planned if one.is_new), *(one.path for one in machine), output / "domain.xml"]
    )
    files.refuse_unwritable(output)  # before hours of reading
    restored_machine.check(machine, backup, repository=work.repository, stop=work.stop)
    texts = {name: verify.read_file(work.repository, backup, name) for name in backup.files if name != NVRAM}
    definition = _definition(choice, texts, work, destinations=planned, machine=machine)
    destination.refuse_existing([Path(name) for name in definition.new_files])
    prepared = _prepare(definition, machine, work)  # also before hours of reading
    files_of = {one.dev: one.path for one in planned}
    restore_scripts.before(scripts, point, Way.NEW, output=output, files=files_of, name=work.new_name)
    with (
        destination.claimed(planned, chains, reporter=work.reporter, stop=work.stop) as overwritten,
        ExitStack() as stack,
    ):
        verify.check_chains(chains, work.repository, reporter=work.reporter, stop=work.stop)
        destinations = stack.enter_context(disk_places.made(planned, work.places, chains, reporter=work.reporter))
        if destinations != planned:  # libvirt has another place for a volume
            definition = _definition(choice, texts, work, destinations=destinations, machine=machine)
            prepared = _prepare(definition, machine, work)
        text = (definition if prepared is None else prepared).text
        warned = warnings(choice, definition)
        checkpoints = _write_all(
            choice, chains, destinations, machine=machine, text=text, overwritten=overwritten, work=work
        )
    for warning in warned:
        work.reporter.warning(warning)
    defined = None
    if prepared is not None:
        machine = restored_domain.place_machine(prepared, machine)
        defined = restored_domain.define(
            prepared, output / "domain.xml", autostart=backup.autostart or False, reporter=work.reporter
        )
    return Restored(
        backup,
        {one.dev: one.path for one in destinations},
        {dev: one.id for dev, one in choice.disks.items()},
        output / "domain.xml",
        closed=_closed([output, *(one.path.parent for one in destinations if one.output is not Output.DEVICE)]),
        left_out=definition.left_out,
        shared=definition.shared,
        checkpoints=tuple(checkpoints),
        defined=defined,
        machine=machine,
        tpm_place=restored_machine.tpm_place(definition.text, machine, request.uri) if prepared is None else None,
        devices=tuple(one.dev for one in destinations if one.output is Output.DEVICE),
        volumes={one.dev: one.volume for one in destinations if one.volume is not None},
    )


def _prepare(definition: RestoredXml, machine: Sequence[Placed], work: _Work) -> Prepared | None:
    """Return the domain that libvirt would define, None if that was not asked for."""
    if work.request.define is None or work.host is None:
        return None
    return restored_domain.prepare(
        work.request.define,
        definition,
        machine=machine,
        host=work.host,
        output=work.request.output.absolute(),
        reporter=work.reporter,
    )


def _closed(directories: Sequence[Path]) -> tuple[Path, ...]:
    """Return these directories and those above them that only their owner can enter, each once."""
    return tuple(dict.fromkeys(closed for one in directories for closed in files.closed_directories(one)))


def _write_all(
    choice: Choice,
    chains: Mapping[str, Sequence[Link]],
    destinations: Sequence[Destination],
    *,
    machine: Sequence[Placed],
    text: str,
    overwritten: Overwritten,
    work: _Work,
) -> list[str]:
    """Write disks, files of the machine and its XML, name them, and return the disks (dev) whose chain goes on."""
    output = work.request.output.absolute()
    with ExitStack() as stack:
        directories = {output: stack.enter_context(destination.temporary_directory(output))}
        for one in destinations:
            if one.is_new and one.path.parent not in directories:
                directories[one.path.parent] = stack.enter_context(destination.temporary_directory(one.path.parent))
        places = {
            one.dev: directories[one.path.parent] / one.path.name if one.is_new else one.path for one in destinations
        }
        restoring = Restoring(
            work.repository, work.reporter, work.stop, directories[output], speed_bytes_s=work.request.speed_bytes_s
        )
        for one in destinations:
            if one.output is Output.DEVICE:
                overwritten.begin(one, chains[one.dev][0].image.virtual_size_bytes)
            restoring.write(chains[one.dev], places[one.dev], one.image_format, output=one.output)
        restored_machine.write(machine, choice.backup, directories[output], repository=work.repository, stop=work.stop)
        write(directories[output] / "domain.xml", text.encode())
        checkpoints = _add_checkpoints(choice, destinations, places, work)
        work.stop.check()
        # The domain XML last: where it is, all that it names is there.
        others = restored_machine.names(machine, output)
        moves = [(places[one.dev], one.path) for one in destinations if one.is_new]
        destination.move_out(
            [*moves, *((directories[output] / name, output / name) for name in [*others, "domain.xml"])]
        )
    return checkpoints


def _add_checkpoints(
    choice: Choice, destinations: Sequence[Destination], places: Mapping[str, Path], work: _Work
) -> list[str]:
    """Let the chain of the restored domain, which has the UUID of the original, go on from the backup."""
    if not work.request.checkpoint or work.new_name is not None:
        return []
    for one in destinations:
        if (one.output is Output.DEVICE or one.volume is not None) and one.image_format is ImageFormat.RAW:
            work.reporter.step(f"Disk {one.dev}: {one.path} is raw and stores no bitmap, so its next backup is a full.")
    return restored_checkpoint.add(
        [
            RestoredImage(one.dev, choice.disks[one.dev], places[one.dev], one.path)
            for one in destinations
            if one.image_format is ImageFormat.QCOW2
        ],
        uuid=choice.backup.domain_uuid,
        repository=work.repository,
        reporter=work.reporter,
        stop=work.stop,
    )


def definition_for(
    request: RestoreRequest,
    choice: Choice,
    machine: Sequence[Placed],
    destinations: Sequence[Destination],
    *,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> RestoredXml:
    """Return the domain XML of a restore to these places, and nothing else of it. Raises ChainError."""
    work = _Work(request, repository, reporter, stop, None, None)
    texts = {name: verify.read_file(repository, choice.backup, name) for name in choice.backup.files if name != NVRAM}
    return _definition(choice, texts, work, destinations=destinations, machine=machine)


def _definition(
    choice: Choice,
    texts: Mapping[str, bytes],
    work: _Work,
    *,
    destinations: Sequence[Destination],
    machine: Sequence[Placed],
) -> RestoredXml:
    """Return the backup's domain XML with the paths of the restored files, and without what is the original's."""
    backup, request, output = choice.backup, work.request, work.request.output.absolute()
    if "domain.xml" not in texts:
        raise ChainError(f"The manifest of backup {backup.id} lists no domain.xml, but every backup has one.")
    place = restored_machine.path_of(machine, MachineKind.NVRAM)
    nvram, has_nvram = os.fspath(place or output / NVRAM), place is not None
    devs = {dev: history.image_of(one, dev).source for dev, one in choice.disks.items()}
    paths = {one.dev: (os.fspath(one.path), one.image_format) for one in destinations}
    # With all disks named, and a place for one of them, it is the whole domain and not a part of one that is there.
    is_part = bool(request.wanted.disks) and not (
        any(one.volume is not None or one.dev in request.destinations for one in destinations)
        and {*devs} >= {one.dev for one in backup.disks}
    )
    try:
        xml = restored_xml.rework(
            texts["domain.xml"].decode(errors="replace"),
            texts[LIVE_XML].decode(errors="replace") if LIVE_XML in texts else None,
            devs,
            output=os.fspath(output),
            keep_others=is_part,
            places=restored_machine.places(machine),
        )
        text = domain_xml.with_disks(
            xml.text,
            paths,
            block_devices=[one.dev for one in destinations if one.output is Output.DEVICE],
            # Also without one in the backup: libvirt then makes a new one there, and leaves the original's alone.
            nvram_path=nvram if has_nvram or xml.has_nvram else None,
            nvram_format=restored_machine.nvram_format(machine, backup, repository=work.repository),
        )
    except MalformedError as err:
        raise ChainError(f"The domain.xml of backup {backup.id} is not valid: {err}") from err
    left_out, new_files = list(xml.left_out), list(xml.new_files)
    if xml.has_nvram and not has_nvram:
        new_files.append(nvram)
    told = restored_xml.nvram_left_out(xml, is_in_backup=has_nvram, path=nvram)
    left_out += [told] if told is not None else []
    of_machine = restored_machine.shared(text, machine, request.uri)
    if request.define is not None:
        of_machine = [left for left in of_machine if left.dev != "tpm"]  # it gets the state of its TPM at once
    shared = [*xml.shared, *of_machine]
    return replace(xml, text=text, left_out=tuple(left_out), shared=tuple(shared), new_files=tuple(new_files))


def warnings(
    choice: Choice, definition: RestoredXml, *, is_missing: Callable[[str | Path], bool] = files.is_missing
) -> list[str]:
    """Return what the restored domain is not, to be said loudly. ``is_missing``: its host does not have a file."""
    backup = choice.backup
    found = []
    if choice.missing:
        found.append(
            f"Backup {backup.id} was made without {', '.join(choice.missing)}: the restored domain does not have"
            " these disks."
        )
    return [*found, *choice.remarks, *definition_warnings(definition, is_missing=is_missing)]


def definition_warnings(
    definition: RestoredXml, *, is_missing: Callable[[str | Path], bool] = files.is_missing
) -> list[str]:
    """Return what the restored definition lacks, or shares with the original, to be said loudly."""
    found = [f"Not in the restored domain.xml: {left.dev} ({left.reason})." for left in definition.left_out]
    found += [
        f"The restored domain.xml still names the original's {left.dev} ({left.reason})." for left in definition.shared
    ]
    missing = restored_machine.missing_firmware(definition.text, is_missing=is_missing)
    if missing is not None:
        found.append(
            f"The firmware {missing}, which domain.xml names, is not on its host: install its package, or name another"
            " in <loader> before the domain starts."
        )
    return found


def write(path: Path, data: bytes) -> None:
    """Write a new file with mode 0600, and store it. Raises StorageError."""
    with storage_errors(f"write {path}"):
        files.write_new(path, data)
