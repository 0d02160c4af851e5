"""Write the disks of a backup out as images of their own, and the domain XML that points to them.

Every image that is needed is checked first: its header, its digest, the file it stands on. Nothing
that exists is overwritten, and what was begun is removed when it fails.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vbackup import domainxml, files, qcow2
from vbackup.errors import ChainError, DiskError, MalformedError, StorageError
from vbackup.files import read_regular, storage_errors
from vbackup.flatten import Layer, flatten
from vbackup.history import Link
from vbackup.model import Backup, ImageFormat
from vbackup.report import Reporter
from vbackup.repository import Repository
from vbackup.stop import Stop

#: How many images are read at a time.
MAX_DIGESTS = 4
#: What vbackup.backup takes of an NVRAM store; a domain XML is far smaller.
MAX_FURTHER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class RestoreRequest:
    """What is asked for; the fields are the options of ``vbackup restore``."""

    domain: str  #: name or UUID
    output: Path
    backup_id: str | None = None  #: this backup; else
    at: datetime | None = None  #: the newest made at this time or before; else the newest of all
    disks: tuple[str, ...] = ()  #: only these, if any
    image_format: ImageFormat = ImageFormat.QCOW2


@dataclass(frozen=True)
class Restored:
    """What was written."""

    backup: Backup
    images: Mapping[str, Path]  #: by dev
    domain_xml: Path


def run(request: RestoreRequest, *, repository: Repository, reporter: Reporter, stop: Stop) -> Restored:
    """Restore, and return what was written.

    Raises DomainNotFoundError, ChainError (unknown backup; a link missing, foreign or altered),
    DiskError, StorageError (the output exists or cannot be written), NoSpaceError.
    """
    catalogue = repository.catalogue(repository.find(request.domain))
    backup = catalogue.find(request.backup_id, request.at)
    chains = {dev: catalogue.history.links(backup.id, dev) for dev in _select(backup, request.disks)}
    output = request.output.absolute()
    images = {dev: output / f"{dev}.{request.image_format.value}" for dev in chains}
    _refuse_existing([*images.values(), *(output / name for name in backup.files)])
    _check_chains(chains, repository, reporter, stop)
    texts = {name: _further_file(repository, backup, name) for name in backup.files}
    texts["domain.xml"] = _definition(backup, texts, output, images, request.image_format)

    with _stage(output) as stage:
        for dev, path in images.items():
            _convert(
                chains[dev],
                stage / path.name,
                image_format=request.image_format,
                repository_=repository,
                reporter=reporter,
                stop=stop,
            )
        for name, data in texts.items():
            _write(stage / name, data)
        stop.check()
        _move_out(stage, output)
    return Restored(backup, images, output / "domain.xml")


def _select(backup: Backup, wanted: Sequence[str]) -> list[str]:
    has = [image.dev for image in backup.disks]
    for dev in wanted:
        if dev not in has:
            raise DiskError(dev, f"backup {backup.id} has no such disk; it has {', '.join(has)}.")
    return [dev for dev in has if not wanted or dev in wanted]


def _refuse_existing(paths: Sequence[Path]) -> None:
    with storage_errors("look into the output directory"):
        existing = [os.fspath(path) for path in paths if os.path.lexists(path)]
    if existing:
        raise StorageError(
            f"{existing[0]} exists already and vbackup never overwrites; give another directory with --output."
        )


def _check_chains(
    chains: Mapping[str, Sequence[Link]], repository_: Repository, reporter: Reporter, stop: Stop
) -> None:
    """Raise ChainError unless every image is the one its manifest tells of.

    qemu-img will open what a header names, so the headers are compared with the manifests before
    anything follows them.
    """
    for links in chains.values():
        for link in links:
            _check_header(_path(repository_, link), link)
    for dev, links in chains.items():
        progress = _Progress(reporter, dev, sum(link.image.file_size_bytes for link in links))
        _check_digests(dev, links, repository_, progress, stop)
        reporter.step(f"Disk {dev}: {len(links)} image{'s' * (len(links) > 1)} checked.")


def _check_digests(dev: str, links: Sequence[Link], repository_: Repository, progress: _Progress, stop: Stop) -> None:
    """Read the images, several at a time."""
    given_up = threading.Event()

    def check() -> None:
        stop.check()
        if given_up.is_set():
            raise ChainError(f"Disk {dev}: another image cannot be used.")  # nobody asks for this one any more

    with ThreadPoolExecutor(max_workers=MAX_DIGESTS) as pool:
        paths = [_path(repository_, link) for link in links]
        futures = [pool.submit(files.digest, path, check=check, progress=progress.of_file()) for path in paths]
        try:
            for link, path, future in zip(links, paths, futures):
                if future.result() != link.image.digest:
                    raise ChainError(
                        f"Disk {dev}: the image {path} of backup {link.backup.id} was altered or is damaged: its digest"
                        " is not the one recorded. Take it from a copy of the repository, or restore an older backup."
                    )
        except BaseException:
            given_up.set()
            raise


class _Progress:
    """Tells how far a disk is from how far its images are, which are read by several threads."""

    def __init__(self, reporter: Reporter, dev: str, total_bytes: int) -> None:
        self._reporter, self._dev, self._total_bytes = reporter, dev, total_bytes
        self._done_bytes = 0
        self._lock = threading.Lock()

    def of_file(self) -> Callable[[int], None]:
        """To be called with how much of one file was read."""
        before_bytes = 0

        def progress(done_bytes: int) -> None:
            nonlocal before_bytes
            with self._lock:
                self._done_bytes += done_bytes - before_bytes
                before_bytes = done_bytes
                self._reporter.progress(self._dev, self._done_bytes, self._total_bytes)

        return progress


def _check_header(path: Path, link: Link) -> None:
    header = qcow2.header(path)
    backing = f"../{link.image.base}/{link.image.file}" if link.image.base else None
    if header.backing_file != backing or (backing is not None and header.backing_format != "qcow2"):
        raise ChainError(
            f"Disk {link.image.dev}: the header of {path} names the backing file {header.backing_file!r}, its manifest"
            f" {backing!r}; somebody changed it, and nothing was opened."
        )
    if header.has_data_file:
        raise ChainError(f"Disk {link.image.dev}: {path} keeps its data in another file, which vbackup never writes.")
    if header.encrypted:
        raise ChainError(f"Disk {link.image.dev}: {path} is encrypted, which vbackup never does.")
    if header.virtual_size_bytes != link.image.virtual_size_bytes:
        raise ChainError(
            f"Disk {link.image.dev}: {path} is an image of {header.virtual_size_bytes} bytes, its manifest says"
            f" {link.image.virtual_size_bytes}."
        )


def _further_file(repository_: Repository, backup: Backup, name: str) -> bytes:
    path = repository_.directory(backup.domain_uuid, backup.id) / name
    try:
        data = read_regular(path, max_bytes=MAX_FURTHER_BYTES)
    except FileNotFoundError as err:
        raise ChainError(f"{path} of backup {backup.id} is missing.") from err
    except OSError as err:
        raise ChainError(f"{path} of backup {backup.id} cannot be read: {err.strerror or err}.") from err
    if files.digest_of(data) != backup.files[name]:
        raise ChainError(f"{path} of backup {backup.id} was altered or is damaged: its digest is not the one recorded.")
    return data


def _definition(
    backup: Backup, texts: Mapping[str, bytes], output: Path, images: Mapping[str, Path], image_format: ImageFormat
) -> bytes:
    """The domain XML that points to the restored files."""
    if "domain.xml" not in texts:
        raise ChainError(f"The manifest of backup {backup.id} knows no domain.xml, which every backup has.")
    nvram = os.fspath(output / "nvram") if "nvram" in texts else None
    paths = {dev: (os.fspath(path), image_format) for dev, path in images.items()}
    try:
        xml = domainxml.with_disks(texts["domain.xml"].decode(errors="replace"), paths, nvram_path=nvram)
    except MalformedError as err:
        raise ChainError(f"The domain.xml of backup {backup.id} is none: {err}") from err
    return xml.encode()


@contextmanager
def _stage(output: Path) -> Iterator[Path]:
    """A directory in the output directory that goes when the block is left; so does the output if it was made here."""
    with storage_errors(f"write to {output}"):
        made = not output.exists()
        output.mkdir(mode=0o700, parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".vbackup-", dir=output))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if made and not any(output.iterdir()):
            output.rmdir()


def _convert(
    links: Sequence[Link],
    path: Path,
    *,
    image_format: ImageFormat,
    repository_: Repository,
    reporter: Reporter,
    stop: Stop,
) -> None:
    dev, size_bytes = links[0].image.dev, links[0].image.virtual_size_bytes
    layers = [Layer(_path(repository_, link), link.image.virtual_size_bytes) for link in reversed(links)]

    def progress(percent: float) -> None:
        reporter.progress(dev, int(size_bytes * percent / 100), size_bytes)

    with storage_errors(f"write {path}"):
        flatten(layers, path, image_format, reporter=reporter, stop=stop, progress=progress)
        files.fsync(path)
    reporter.step(f"Disk {dev}: restored.")


def _write(path: Path, data: bytes) -> None:
    with storage_errors(f"write {path}"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        files.fsync(path)


def _move_out(stage: Path, output: Path) -> None:
    """Give the files their names: all or none."""
    moved: list[Path] = []
    try:
        with storage_errors(f"write to {output}"):
            for path in sorted(stage.iterdir()):
                _refuse_existing([output / path.name])
                path.rename(output / path.name)
                moved.append(output / path.name)
            files.fsync(output)
    except BaseException:
        for path in moved:
            path.unlink()
        raise


def _path(repository_: Repository, link: Link) -> Path:
    return repository_.directory(link.backup.domain_uuid, link.backup.id) / link.image.file
