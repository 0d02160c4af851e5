"""Check what a repository holds against its manifests: headers and digests of a chain of images, further files."""

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
from vbackup.report import Reporter
from vbackup.repository.history import Link
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: How many images are read at a time.
MAX_DIGESTS = 4
#: What vbackup.operations.backup takes of an NVRAM store; a domain XML is far smaller.
MAX_FURTHER_BYTES = 64 * 1024 * 1024


def check_chains(chains: Mapping[str, Sequence[Link]], repository: Repository, reporter: Reporter, stop: Stop) -> None:
    """Raise ChainError unless every image is the one its manifest tells of.

    qemu-img will open what a header names, so the headers are compared with the manifests before
    anything follows them.
    """
    for links in chains.values():
        for link in links:
            _check_header(image_path(repository, link), link)
    for dev, links in chains.items():
        progress = _Progress(reporter, dev, sum(link.image.file_size_bytes for link in links))
        _check_digests(dev, links, repository, progress, stop)
        reporter.step(f"Disk {dev}: {len(links)} image{'s' * (len(links) > 1)} checked.")


def read_file(repository: Repository, backup: Backup, name: str) -> bytes:
    """The content of a backup's further file. Raises ChainError where it is missing, unreadable or altered."""
    path = repository.directory(backup.domain_uuid, backup.id) / name
    try:
        data = read_regular(path, max_bytes=MAX_FURTHER_BYTES)
    except FileNotFoundError as err:
        raise ChainError(f"{path} of backup {backup.id} is missing.") from err
    except OSError as err:
        raise ChainError(f"{path} of backup {backup.id} cannot be read: {err.strerror or err}.") from err
    if files.digest_of(data) != backup.files[name]:
        raise ChainError(f"{path} of backup {backup.id} was altered or is damaged: its digest is not the one recorded.")
    return data


def image_path(repository: Repository, link: Link) -> Path:
    """Where the image of that link is."""
    return repository.directory(link.backup.domain_uuid, link.backup.id) / link.image.file


def _check_digests(dev: str, links: Sequence[Link], repository: Repository, progress: _Progress, stop: Stop) -> None:
    """Read the images, several at a time."""
    given_up = threading.Event()

    def check() -> None:
        stop.check()
        if given_up.is_set():
            raise ChainError(f"Disk {dev}: another image cannot be used.")  # nobody asks for this one any more

    with ThreadPoolExecutor(max_workers=MAX_DIGESTS) as pool:
        paths = [image_path(repository, link) for link in links]
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
    if header.backing_file != backing or (backing is not None and header.backing_format != BlockDriver.QCOW2):
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
