"""Restore a backup to a directory: an independent image of each disk, and a domain XML that uses these images.

vbackup.repository.verify checks headers, tables and block lists of the chains before anything is written;
vbackup.images.flatten merges a chain into one image, and vbackup.images.written compares that with the lists. Existing
files are never overwritten. Files get their names when all are complete; if it fails, a restore leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from vbackup import files
from vbackup.domain import domain_xml, restored_xml
from vbackup.domain.restored_xml import RestoredXml
from vbackup.engine import restored_checkpoint
from vbackup.engine.restored_checkpoint import RestoredImage
from vbackup.errors import ChainError, MalformedError, StorageError
from vbackup.files import storage_errors
from vbackup.images import written
from vbackup.images.flatten import flatten, layers_of
from vbackup.images.storing import Storing
from vbackup.model import LIVE_XML, NVRAM, Backup, ImageFormat, LeftOut, MachineKind
from vbackup.operations import restored_machine
from vbackup.operations.restored_machine import Placed
from vbackup.report import Phase, Reporter
from vbackup.repository import block_list, block_scan, chosen, history, image_check, verify
from vbackup.repository.block_list import BlockList
from vbackup.repository.choice import Choice, Wanted
from vbackup.repository.history import Link
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class RestoreRequest:
    """The options of ``vbackup restore``."""

    domain: str  #: name or UUID
    output: Path
    wanted: Wanted = field(default_factory=Wanted)
    image_format: ImageFormat = ImageFormat.QCOW2
    checkpoint: bool = True  #: the next backup of the restored domain starts from the backup
    uri: str | None = None  #: of the libvirt that will run the restored domain; nothing is asked of it


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
    machine: tuple[Placed, ...] = ()  #: what the domain needs beside disks and XML, and where it is now
    tpm_place: Path | None = None  #: where the state of the TPM has to be copied to; None if libvirt finds it


#: Mode of the directories that a restore makes: others can reach a file that they may read, but list nothing.
_DIRECTORY_MODE = 0o711


@dataclass(frozen=True)
class _Work:
    """What a restore works with."""

    request: RestoreRequest
    repository: Repository
    reporter: Reporter
    stop: Stop


def run(request: RestoreRequest, *, repository: Repository, reporter: Reporter, stop: Stop) -> Restored:
    """Restore the backup, and return what was written. Warnings say what the restored domain lacks or shares.

    Raises DomainNotFoundError, ChainError (the backup is unknown, or an image of its chain is missing, foreign or
    altered; DamagedError if a block that is needed is), AmbiguousHostError, PartialBackupError, DiskError, StorageError
    (the output exists or cannot be written), NoSpaceError, BusyError.
    """
    uuid = repository.find(request.domain)
    work = _Work(request, repository, reporter, stop)
    with chosen.held(repository, uuid, request.wanted, stop=stop) as point:
        return _restore(point.choice, point.chains, work)


def _restore(choice: Choice, chains: Mapping[str, Sequence[Link]], work: _Work) -> Restored:
    backup, request = choice.backup, work.request
    output = request.output.absolute()
    images = {dev: output / f"{dev}.{request.image_format.value}" for dev in chains}
    machine = restored_machine.placed(backup, output)
    _refuse_existing([*images.values(), *(one.path for one in machine), output / "domain.xml"])
    files.refuse_unwritable(output)  # before hours of reading
    verify.check_chains(chains, work.repository, reporter=work.reporter, stop=work.stop)
    restored_machine.check(machine, backup, repository=work.repository, stop=work.stop)
    texts = {name: verify.read_file(work.repository, backup, name) for name in backup.files if name != NVRAM}
    definition = _definition(choice, texts, work, images=images, machine=machine)
    _refuse_existing([Path(name) for name in definition.new_files])

    with _temporary_directory(output) as temporary:
        for dev, path in images.items():
            _restore_disk(chains[dev], temporary / path.name, work)
        restored_machine.write(machine, backup, temporary, repository=work.repository, stop=work.stop)
        _write(temporary / "domain.xml", definition.text.encode())
        checkpoints = _add_checkpoints(choice, images, temporary, work)
        work.stop.check()
        # The domain XML last: where it is, all that it names is there.
        names = [*(path.name for path in images.values()), *restored_machine.names(machine, output)]
        _move_out(temporary, output, [*names, "domain.xml"])
    _warn(choice, definition, work.reporter)
    return Restored(
        backup,
        images,
        {dev: one.id for dev, one in choice.disks.items()},
        output / "domain.xml",
        closed=files.closed_directories(output),
        left_out=definition.left_out,
        shared=definition.shared,
        checkpoints=tuple(checkpoints),
        machine=machine,
        tpm_place=restored_machine.tpm_place(definition.text, machine, request.uri),
    )


def _add_checkpoints(choice: Choice, images: Mapping[str, Path], temporary: Path, work: _Work) -> list[str]:
    """Let the chain of the restored domain, which has the UUID of the original, go on from the backup."""
    if not work.request.checkpoint or work.request.image_format is not ImageFormat.QCOW2:
        return []
    return restored_checkpoint.add(
        [RestoredImage(dev, choice.disks[dev], temporary / path.name, path) for dev, path in images.items()],
        uuid=choice.backup.domain_uuid,
        repository=work.repository,
        reporter=work.reporter,
        stop=work.stop,
    )


def _refuse_existing(paths: Sequence[Path]) -> None:
    with storage_errors("read the output directory"):
        existing = [os.fspath(path) for path in paths if os.path.lexists(path)]
    if existing:
        raise StorageError(
            f"{existing[0]} already exists, and vbackup never overwrites files; give another directory with --output."
        )


def _definition(
    choice: Choice,
    texts: Mapping[str, bytes],
    work: _Work,
    *,
    images: Mapping[str, Path],
    machine: Sequence[Placed],
) -> RestoredXml:
    """Return the backup's domain XML with the paths of the restored files, and without what is the original's."""
    backup, request, output = choice.backup, work.request, work.request.output.absolute()
    if "domain.xml" not in texts:
        raise ChainError(f"The manifest of backup {backup.id} lists no domain.xml, but every backup has one.")
    place = restored_machine.path_of(machine, MachineKind.NVRAM)
    nvram, has_nvram = os.fspath(place or output / NVRAM), place is not None
    devs = {dev: history.image_of(one, dev).source for dev, one in choice.disks.items()}
    paths = {dev: (os.fspath(path), request.image_format) for dev, path in images.items()}
    try:
        xml = restored_xml.rework(
            texts["domain.xml"].decode(errors="replace"),
            texts[LIVE_XML].decode(errors="replace") if LIVE_XML in texts else None,
            devs,
            output=os.fspath(output),
            keep_others=bool(request.wanted.disks),
            places=restored_machine.places(machine),
        )
        text = domain_xml.with_disks(
            xml.text,
            paths,
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
    shared = [*xml.shared, *restored_machine.shared(text, machine, request.uri)]
    return replace(xml, text=text, left_out=tuple(left_out), shared=tuple(shared), new_files=tuple(new_files))


def _warn(choice: Choice, definition: RestoredXml, reporter: Reporter) -> None:
    """Say loudly what the restored domain is not."""
    backup = choice.backup
    if choice.missing:
        reporter.warning(
            f"Backup {backup.id} was made without {', '.join(choice.missing)}: the restored domain does not have"
            " these disks."
        )
    for remark in choice.remarks:
        reporter.warning(remark)
    for left in definition.left_out:
        reporter.warning(f"Not in the restored domain.xml: {left.dev} ({left.reason}).")
    for left in definition.shared:
        reporter.warning(f"The restored domain.xml still names the original's {left.dev} ({left.reason}).")
    missing = restored_machine.missing_firmware(definition.text)
    if missing is not None:
        reporter.warning(
            f"The firmware {missing}, which domain.xml names, is not on this host: install its package, or name another"
            " in <loader> before the domain starts."
        )


def _make(output: Path) -> None:
    """Create a directory, and its parents, through which QEMU can reach the images; they keep mode 0600.

    libvirt gives images to the user that QEMU runs as (dynamic_ownership), but it changes no directory.
    """
    missing = [path for path in (output, *output.parents) if not path.exists()]
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        path.chmod(_DIRECTORY_MODE)


@contextmanager
def _temporary_directory(output: Path) -> Iterator[Path]:
    """Yield a temporary directory in the output directory.

    It is removed at the end of the block, and so is an output directory that was created here and is still empty.
    """
    with storage_errors(f"write to {output}"):
        is_new = not output.exists()
        _make(output)
        directory = Path(tempfile.mkdtemp(prefix=".vbackup-", dir=output))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if is_new and not any(output.iterdir()):
            output.rmdir()


def _restore_disk(links: Sequence[Link], path: Path, work: _Work) -> None:
    """Write the image of a disk to ``path``, and check what was written."""
    dev = links[0].image.dev
    # What is checked is in the page cache, and storing it needs the storage, not the processor.
    with _lists(links, path, work) as lists, storage_errors(f"write {path}"), Storing(path) as storing:
        _convert(links, path, work, storing, salvage=bool(lists))
        storing.all()
        if lists:
            _check(links, path, lists, work)
    work.reporter.step(f"Disk {dev}: restored{' and checked' * bool(lists)}.")


@contextmanager
def _lists(links: Sequence[Link], path: Path, work: _Work) -> Iterator[list[BlockList]]:
    """Yield the block lists of the images, newest first; none if no image has one: then the digests were checked.

    In a mixed chain the images without one get a list for this restore, beside ``path``: their digests were checked.
    """
    with ExitStack() as stack:
        lists: list[BlockList] = []
        for link in links if any(link.image.blocks is not None for link in links) else ():
            image = verify.image_path(work.repository, link)
            if link.image.blocks is not None:
                lists.append(stack.enter_context(verify.opened_list(image, link)))
                continue
            made = path.with_name(f".{link.backup.id}-{link.image.dev}{block_list.SUFFIX}")
            try:
                block_scan.make(image, made, algorithm=block_list.best_algorithm(), check=work.stop.check)
            except ChainError:  # of a kind that lists are not made of: each of the other images has to be good
                _check_whole(links, work)
                lists = []
                break
            lists.append(stack.enter_context(BlockList.open(made)))
        yield lists


def _check_whole(links: Sequence[Link], work: _Work) -> None:
    """Read all images that have a block list. Raises ChainError if one is damaged."""
    watch = image_check.Watch(before=lambda _size_bytes: work.stop.check())
    for link in links:
        if link.image.blocks is not None:
            for finding in image_check.check(verify.image_path(work.repository, link), link, watch).findings:
                raise ChainError(finding.reason)


def _convert(links: Sequence[Link], path: Path, work: _Work, storing: Storing, *, salvage: bool) -> None:
    dev, size_bytes = links[0].image.dev, links[0].image.virtual_size_bytes
    layers = layers_of([(link, verify.image_path(work.repository, link)) for link in links])

    def progress(percent: float) -> None:
        work.reporter.progress(dev, Phase.WRITE, int(size_bytes * percent / 100), size_bytes)
        storing.some(int(size_bytes * percent / 100))

    flatten(
        layers,
        path,
        work.request.image_format,
        salvage=salvage,
        reporter=work.reporter,
        stop=work.stop,
        progress=progress,
    )


def _check(links: Sequence[Link], path: Path, lists: Sequence[BlockList], work: _Work) -> None:
    """Compare what was written with the lists. Raises DamagedError, StorageError."""
    dev = links[0].image.dev
    size_bytes = path.stat().st_blocks * 512

    def progress(done_bytes: int) -> None:
        work.reporter.progress(dev, Phase.CHECK, min(done_bytes, size_bytes), size_bytes)

    chain = [(link, verify.image_path(work.repository, link)) for link in links]
    written.check(path, work.request.image_format, chain, lists, check=work.stop.check, progress=progress)
    work.reporter.progress(dev, Phase.CHECK, size_bytes, size_bytes)


def _write(path: Path, data: bytes) -> None:
    with storage_errors(f"write {path}"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        files.fsync(path)


def _move_out(temporary: Path, output: Path, names: Sequence[str]) -> None:
    """Move these files to the output directory, in this order: all or none."""
    moved: list[Path] = []
    try:
        with storage_errors(f"write to {output}"):
            for name in names:
                _refuse_existing([output / name])
                (temporary / name).rename(output / name)
                moved.append(output / name)
            files.fsync(output)
    except BaseException:
        for path in reversed(moved):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        raise
