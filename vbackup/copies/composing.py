"""Make the image of a disk that a target gets where the one in the repository depends on what the target lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vbackup.copies.planning import DiskCopy
from vbackup.copies.staging import Staging
from vbackup.errors import ChainError
from vbackup.files import storage_errors
from vbackup.images import joining
from vbackup.model import BlocksRecord
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.report import Phase, Reporter
from vbackup.repository import block_list, block_scan, filesystem, readers, verify
from vbackup.repository.block_list import BlockList
from vbackup.repository.history import Link
from vbackup.repository.merged_list import Layer
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


def composed(
    disk: DiskCopy, staging: Staging, *, repository: Repository, reporter: Reporter, stop: Stop
) -> tuple[Path, BlocksRecord]:
    """Return the image of a disk whose ``layers`` are several, and what a manifest records of it and its list.

    It is made in the staging directory, unless an earlier run has done that. All of it is compared with the lists of
    the images. Raises ChainError if one of them is damaged, StorageError, NoSpaceError, UnsuitableError if there is no
    storage daemon, InterruptedBySignalError.
    """
    target = staging.image(disk.dev)
    blocks = staging.made(disk.dev)
    if blocks is not None:
        return target, blocks
    with _layers(disk.layers, staging, repository=repository, stop=stop) as layers:
        lowest = layers[-1].path
        with storage_errors(f"write {target}"):
            size_bytes = lowest.stat().st_size
            try:
                filesystem.clone(lowest, target)
            except OSError:  # another filesystem, or one that shares nothing
                filesystem.copy(
                    lowest,
                    target,
                    check=stop.check,
                    progress=lambda done_bytes: reporter.progress(disk.dev, Phase.WRITE, done_bytes, size_bytes),
                )
        blocks = joining.join(
            disk.dev,
            layers,
            target,
            scratch=staging.path / f".scratch-{disk.dev}",
            is_published=False,
            is_whole=True,
            reporter=reporter,
            stop=stop,
        )
    staging.keep(disk.dev, blocks)
    return target, blocks


@contextmanager
def _layers(links: Sequence[Link], staging: Staging, *, repository: Repository, stop: Stop) -> Iterator[list[Layer]]:
    """Yield the images and their lists, the newest first; headers, tables and lists are checked. Raises ChainError."""
    layers = []
    readers.allow_files(len(links))
    with ExitStack() as stack:
        for link in links:
            stop.check()
            path = verify.image_path(repository, link)
            verify.check_header(path, link)
            listed = _list(path, link, staging, stop)
            stack.callback(listed.close)
            layers.append(Layer(path, link.backup.id, listed))
        yield layers


def _list(path: Path, link: Link, staging: Staging, stop: Stop) -> BlockList:
    """Open the list of an image; one of an early backup that has none is made, of an image with the right digest."""
    if link.image.blocks is not None:
        with Qcow2Layer(path) as image:
            verify.check_structure(image, link)
        return verify.opened_list(path, link)
    verify.check_digest(path, link, check=stop.check, progress=lambda _done_bytes: None)
    made = staging.path / f".list-{link.backup.id}-{link.image.dev}"
    try:
        block_scan.make(path, made, algorithm=block_list.best_algorithm(), check=stop.check)
        return BlockList.open(made)
    finally:
        made.unlink(missing_ok=True)


def refuse_merging(links: Sequence[Link]) -> None:
    """Raise ChainError if an image is being changed by a merge in place."""
    for link in links:
        if link.is_merging:
            raise ChainError(
                f"Disk {link.image.dev}: the image of backup {link.backup.id} is being merged into; if that was"
                " interrupted, 'vbackup recover DOMAIN' finishes it."
            )
