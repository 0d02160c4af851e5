"""Compare the files of backups with their manifests: headers, tables and block lists of images, and further files.

Reads nothing of an image's content, if it has a block list: what a restore has written is compared with the lists
(vbackup.images.written), and vbackup.repository.image_check reads a whole image. Writes nothing. A chain has to be
checked before qemu-img reads it, because qemu-img opens whatever file a header names. vbackup.repository.catalogue has
already checked that the images exist, with the recorded sizes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vbackup import files
from vbackup.errors import ChainError
from vbackup.files import read_regular
from vbackup.model import Backup, BlockDriver
from vbackup.qemu import qcow2
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.report import Phase, Reporter
from vbackup.repository import block_list, block_scan, machine_files
from vbackup.repository.block_list import BlockList, algorithm_of
from vbackup.repository.history import Link
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: How many images of a chain are read at the same time.
MAX_IMAGES = 4
#: The largest NVRAM file that vbackup.operations.backup stores; a domain XML is far smaller.
MAX_FURTHER_BYTES = 64 * 1024 * 1024


def check_chains(
    chains: Mapping[str, Sequence[Link]], repository: Repository, *, reporter: Reporter, stop: Stop
) -> None:
    """Check the chain of each disk (``chains`` by dev); raise ChainError if an image does not match its manifest.

    Of an image with a block list, that is its header, its tables and the list; one of an older backup is read as a
    whole. The tables of an image into which another is being merged in place are not compared: they change. All
    headers are checked before the first image is read: a wrong one is found at once.
    """
    check_headers(chains, repository, stop=stop)
    for dev, links in chains.items():
        for link in links:
            stop.check()
            if link.image.blocks is not None:
                path = image_path(repository, link)
                opened_list(path, link).close()
                if link.is_merging:
                    continue  # its tables change; what is restored is compared with the lists all the same
                with Qcow2Layer(path) as layer:
                    check_structure(layer, link)
        older = [link for link in links if link.image.blocks is None]
        if older:
            progress = _Progress(reporter, dev, sum(link.image.file_size_bytes for link in older))
            _check_digests(dev, older, repository=repository, progress=progress, stop=stop)
            reporter.step(f"Disk {dev}: {len(older)} image{'s' * (len(older) > 1)} checked.")


def check_headers(chains: Mapping[str, Sequence[Link]], repository: Repository, *, stop: Stop) -> None:
    """Raise ChainError if the header of an image names another file or size than its manifest.

    That is what has to be right before QEMU opens the images, each by its path.
    """
    for links in chains.values():
        for link in links:
            stop.check()
            check_header(image_path(repository, link), link)


def read_file(repository: Repository, backup: Backup, name: str) -> bytes:
    """Return a backup's domain.xml or live.xml. Raises ChainError if the file is missing, unreadable or altered."""
    path = repository.directory(backup.domain_uuid, backup.id) / name
    try:
        data = read_regular(path, max_bytes=MAX_FURTHER_BYTES)
    except FileNotFoundError as err:
        raise ChainError(f"{path} of backup {backup.id} is missing.") from err
    except OSError as err:
        raise ChainError(f"{path} of backup {backup.id} cannot be read: {err.strerror or err}.") from err
    if files.digest_of(data) != backup.files[name]:
        raise ChainError(
            f"{path} of backup {backup.id} was altered or is damaged: its digest differs from the recorded one."
        )
    return data


def check_file(
    repository: Repository, backup: Backup, name: str, *, stop: Callable[[], None], quick: bool = False
) -> None:
    """Raise ChainError if a file of a backup that is no image (``Backup.digests``) is missing or altered.

    ``stop`` and ``quick`` as for vbackup.repository.machine_files.check.
    """
    one = next((one for one in backup.machine if one.file == name), None)
    if one is not None:
        machine_files.check(repository, backup, one, stop=stop, quick=quick)
    else:
        read_file(repository, backup, name)


def image_path(repository: Repository, link: Link) -> Path:
    """Return the path of the image of a link."""
    return repository.directory(link.backup.domain_uuid, link.backup.id) / link.image.file


def _check_digests(dev: str, links: Sequence[Link], *, repository: Repository, progress: _Progress, stop: Stop) -> None:
    """Read images of a disk, MAX_IMAGES at a time; the first one that does not match ends all reading."""
    given_up = threading.Event()

    def check() -> None:
        stop.check()
        if given_up.is_set():
            raise ChainError(f"Disk {dev}: another image cannot be used.")  # only ends this thread; nobody sees it

    with ThreadPoolExecutor(max_workers=MAX_IMAGES) as pool:
        paths = [image_path(repository, link) for link in links]
        futures = [
            pool.submit(check_digest, path, link, check=check, progress=progress.of_file())
            for link, path in zip(links, paths)
        ]
        try:
            for future in futures:
                future.result()
        except BaseException:
            given_up.set()
            raise


def check_digest(path: Path, link: Link, *, check: Callable[[], None], progress: Callable[[int], None]) -> None:
    """Read an image of a backup without block lists; ``check`` and ``progress`` as for files.digest.

    Raises ChainError if it is not the one that its manifest records, StorageError if it cannot be read.
    """
    if files.digest(path, check=check, progress=progress) != link.image.digest:
        raise damaged(path, link, "its digest differs from the recorded one")


def check_structure(layer: Qcow2Layer, link: Link) -> None:
    """Raise ChainError if header or tables of an image with a block list are not what its manifest records."""
    blocks = link.image.blocks
    assert blocks is not None
    algorithm = algorithm_of(blocks.structure, where=f"The manifest of backup {link.backup.id}")
    if block_scan.structure_digest(layer, algorithm) != blocks.structure:
        raise damaged(layer.path, link, "its header or tables differ from the recorded ones")


def opened_list(path: Path, link: Link) -> BlockList:
    """Open the block list of the image at ``path``, whose manifest records one.

    Raises ChainError if it is missing or is not the one that the manifest records.
    """
    blocks = link.image.blocks
    assert blocks is not None
    list_path = path.with_suffix(block_list.SUFFIX)
    algorithm = algorithm_of(blocks.digest, where=f"The manifest of backup {link.backup.id}")
    listed = BlockList.open(list_path)
    try:
        if listed.digest(algorithm) != blocks.digest:
            raise ChainError(
                f"Disk {link.image.dev}: the block list {list_path} of backup {link.backup.id} was altered or is"
                " damaged: its digest differs from the recorded one. Restore the file from a copy of the repository."
            )
    except BaseException:
        listed.close()
        raise
    return listed


def damaged(path: Path, link: Link, reason: str) -> ChainError:
    """Return the error for an image that is not what was recorded of it."""
    return ChainError(
        f"Disk {link.image.dev}: the image {path} of backup {link.backup.id} was altered or is damaged: {reason}."
        " Restore the file from a copy of the repository, or restore an older backup."
    )


class _Progress:
    """Adds up the progress of a disk's images, which several threads read, and reports the sum."""

    def __init__(self, reporter: Reporter, dev: str, total_bytes: int) -> None:
        self._reporter, self._dev, self._total_bytes = reporter, dev, total_bytes
        self._done_bytes = 0
        self._lock = threading.Lock()

    def of_file(self) -> Callable[[int], None]:
        """Return a function to call with the number of bytes that were read of one file so far."""
        previous_bytes = 0

        def progress(done_bytes: int) -> None:
            nonlocal previous_bytes
            with self._lock:
                self._done_bytes += done_bytes - previous_bytes
                previous_bytes = done_bytes
                self._reporter.progress(self._dev, Phase.CHECK, self._done_bytes, self._total_bytes)

        return progress


def check_header(path: Path, link: Link) -> None:
    """Raise ChainError if the header of an image names another backing file or size than its manifest."""
    header = qcow2.header(path)
    backing = f"../{link.image.base}/{link.image.file}" if link.image.base else None
    if header.backing_file != backing or (backing is not None and header.backing_format != BlockDriver.QCOW2):
        raise ChainError(
            f"Disk {link.image.dev}: the header of {path} names the backing file {header.backing_file!r}, its manifest"
            f" {backing!r}; one of them was changed after the backup, so nothing was opened."
        )
    if header.has_data_file:
        raise ChainError(
            f"Disk {link.image.dev}: {path} keeps its data in another file, but vbackup never writes such images."
        )
    if header.encrypted:
        raise ChainError(f"Disk {link.image.dev}: {path} is encrypted, but vbackup writes no encrypted images.")
    if header.virtual_size_bytes != link.image.virtual_size_bytes:
        raise ChainError(
            f"Disk {link.image.dev}: {path} is an image of {header.virtual_size_bytes} bytes, but its manifest says"
            f" {link.image.virtual_size_bytes}."
        )
