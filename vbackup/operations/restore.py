"""Restore a backup to a directory: an independent image of each disk, and a domain XML that uses these images.

vbackup.repository.verify checks every image of the chains before anything is written; vbackup.images.flatten merges a
chain into one image. Existing files are never overwritten. Files get their names when all are complete; if the restore
fails, it leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vbackup import files
from vbackup.domain import domain_xml
from vbackup.errors import ChainError, DiskError, MalformedError, StorageError
from vbackup.files import storage_errors
from vbackup.images.flatten import Layer, flatten
from vbackup.model import Backup, ImageFormat
from vbackup.report import Phase, Reporter
from vbackup.repository import verify
from vbackup.repository.history import Link
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class RestoreRequest:
    """The options of ``vbackup restore``."""

    domain: str  #: name or UUID
    output: Path
    backup_id: str | None = None  #: None: chosen by ``at``
    at: datetime | None = None  #: the newest backup made at this time or before; None: the newest of all
    disks: tuple[str, ...] = ()  #: only these; empty: all
    image_format: ImageFormat = ImageFormat.QCOW2


@dataclass(frozen=True)
class Restored:
    """The backup that was restored, and the files that were written."""

    backup: Backup
    images: Mapping[str, Path]  #: by dev
    domain_xml: Path
    closed: Path | None  #: a directory on the way to them that only its owner can enter


#: Mode of the directories that a restore makes: others can reach a file that they may read, but list nothing.
_DIRECTORY_MODE = 0o711


def run(request: RestoreRequest, *, repository: Repository, reporter: Reporter, stop: Stop) -> Restored:
    """Restore the backup, and return what was written.

    Raises DomainNotFoundError, ChainError (the backup is unknown, or an image of its chain is missing, foreign or
    altered), DiskError, StorageError (the output exists or cannot be written), NoSpaceError.
    """
    catalogue = repository.catalogue(repository.find(request.domain))
    backup = catalogue.find(request.backup_id, request.at)
    chains = {dev: catalogue.history.links(backup.id, dev) for dev in _select(backup, request.disks)}
    output = request.output.absolute()
    images = {dev: output / f"{dev}.{request.image_format.value}" for dev in chains}
    _refuse_existing([*images.values(), *(output / name for name in backup.files)])
    verify.check_chains(chains, repository, reporter=reporter, stop=stop)
    texts = {name: verify.read_file(repository, backup, name) for name in backup.files}
    texts["domain.xml"] = _definition(backup, texts, output=output, images=images, image_format=request.image_format)

    with _temporary_directory(output) as temporary:
        for dev, path in images.items():
            _convert(
                chains[dev],
                temporary / path.name,
                image_format=request.image_format,
                repository=repository,
                reporter=reporter,
                stop=stop,
            )
        for name, data in texts.items():
            _write(temporary / name, data)
        stop.check()
        # The domain XML last: where it is, all that it names is there.
        others = [name for name in texts if name != "domain.xml"]
        _move_out(temporary, output, [*(path.name for path in images.values()), *others, "domain.xml"])
    return Restored(backup, images, output / "domain.xml", closed=_closed_directory(output))


def _select(backup: Backup, wanted: Sequence[str]) -> list[str]:
    devs = [image.dev for image in backup.disks]
    for dev in wanted:
        if dev not in devs:
            raise DiskError(dev, f"backup {backup.id} has no such disk; it has {', '.join(devs)}.")
    return [dev for dev in devs if not wanted or dev in wanted]


def _refuse_existing(paths: Sequence[Path]) -> None:
    with storage_errors("read the output directory"):
        existing = [os.fspath(path) for path in paths if os.path.lexists(path)]
    if existing:
        raise StorageError(
            f"{existing[0]} already exists, and vbackup never overwrites files; give another directory with --output."
        )


def _definition(
    backup: Backup,
    texts: Mapping[str, bytes],
    *,
    output: Path,
    images: Mapping[str, Path],
    image_format: ImageFormat,
) -> bytes:
    """Return the backup's domain XML with the paths of the restored files."""
    if "domain.xml" not in texts:
        raise ChainError(f"The manifest of backup {backup.id} lists no domain.xml, but every backup has one.")
    nvram = os.fspath(output / "nvram") if "nvram" in texts else None
    paths = {dev: (os.fspath(path), image_format) for dev, path in images.items()}
    try:
        xml = domain_xml.with_disks(texts["domain.xml"].decode(errors="replace"), paths, nvram_path=nvram)
    except MalformedError as err:
        raise ChainError(f"The domain.xml of backup {backup.id} is not valid: {err}") from err
    return xml.encode()


def _make(output: Path) -> None:
    """Create a directory, and its parents, through which QEMU can reach the images; they keep mode 0600.

    libvirt gives images to the user that QEMU runs as (dynamic_ownership), but it changes no directory.
    """
    missing = [path for path in (output, *output.parents) if not path.exists()]
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        path.chmod(_DIRECTORY_MODE)


def _closed_directory(output: Path) -> Path | None:
    """Return the outermost directory on the path that only its owner can enter, or None."""
    return next((path for path in reversed((output, *output.parents)) if not path.stat().st_mode & stat.S_IXOTH), None)


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


def _convert(
    links: Sequence[Link],
    path: Path,
    *,
    image_format: ImageFormat,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> None:
    dev, size_bytes = links[0].image.dev, links[0].image.virtual_size_bytes
    layers = [Layer(verify.image_path(repository, link), link.image.virtual_size_bytes) for link in reversed(links)]

    def progress(percent: float) -> None:
        reporter.progress(dev, Phase.WRITE, int(size_bytes * percent / 100), size_bytes)

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
            path.unlink()
        raise
