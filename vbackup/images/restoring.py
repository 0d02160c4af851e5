"""Write the content that a disk had at a backup as one image, and compare what was written with the block lists.

The image is a new file, an existing file, or a block device; vbackup.images.destination says which device may be
written. vbackup.repository.verify has checked the headers and tables of the chain before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vbackup.errors import ChainError
from vbackup.files import storage_errors
from vbackup.images import written
from vbackup.images.flatten import flatten, layers_of
from vbackup.images.storing import Storing
from vbackup.model import ImageFormat
from vbackup.qemu.qemu_img import Output
from vbackup.report import Phase, Reporter
from vbackup.repository import block_list, block_scan, image_check, verify
from vbackup.repository.block_list import BLOCK_BYTES, BlockList
from vbackup.repository.composition import Composition
from vbackup.repository.history import Link
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: What the tables of an image take beside its data, at most: one part in so many, and for the first tables.
_TABLES_SHARE, _TABLES_BYTES = 1000, 1024 * 1024


@dataclass(frozen=True)
class Restoring:
    """How the disks of one restore are written."""

    repository: Repository
    reporter: Reporter
    stop: Stop
    scratch: Path  #: directory for block lists that the restore makes for itself
    speed_bytes_s: int | None = None  #: of each disk

    def write(
        self, links: Sequence[Link], path: Path, image_format: ImageFormat, *, output: Output = Output.NEW
    ) -> None:
        """Write a disk, from its chain with the newest image first, to ``path``; put it on storage, and check it.

        A block device gets raw content. Raises StorageError, NoSpaceError, DamagedError or ChainError if the backup is
        damaged where it was read, OutputDiffersError, InterruptedBySignalError; what is at ``path`` then is useless.
        """
        dev = links[0].image.dev
        # What is checked is in the page cache, and storing it needs the storage, not the processor.
        with self.lists(links) as lists, storage_errors(f"write {path}"), Storing(path) as storing:
            self._convert(links, path, image_format, storing, output=output, salvage=bool(lists))
            storing.all()
            if lists:
                self._check(links, path, image_format, lists, is_device=output is Output.DEVICE)
        self.reporter.step(f"Disk {dev}: restored{' and checked' * bool(lists)}.")

    @contextmanager
    def lists(self, links: Sequence[Link]) -> Iterator[list[BlockList]]:
        """Yield the block lists of the images, newest first; none if no image has one: then the digests were checked.

        In a mixed chain the images without one get a list for this restore: their digests were checked.
        """
        with ExitStack() as stack:
            lists: list[BlockList] = []
            for link in links if any(link.image.blocks is not None for link in links) else ():
                image = verify.image_path(self.repository, link)
                if link.image.blocks is not None:
                    lists.append(stack.enter_context(verify.opened_list(image, link)))
                    continue
                made = self.scratch / f".{link.backup.id}-{link.image.dev}{block_list.SUFFIX}"
                try:
                    block_scan.make(image, made, algorithm=block_list.best_algorithm(), check=self.stop.check)
                except ChainError:  # of a kind that lists are not made of: each of the other images has to be good
                    self._check_whole(links)
                    lists = []
                    break
                lists.append(stack.enter_context(BlockList.open(made)))
            yield lists

    def _check_whole(self, links: Sequence[Link]) -> None:
        """Read all images that have a block list. Raises ChainError if one is damaged."""
        watch = image_check.Watch(before=lambda _size_bytes: self.stop.check())
        for link in links:
            if link.image.blocks is not None:
                for finding in image_check.check(verify.image_path(self.repository, link), link, watch).findings:
                    raise ChainError(finding.reason)

    def _convert(
        self,
        links: Sequence[Link],
        path: Path,
        image_format: ImageFormat,
        storing: Storing,
        *,
        output: Output,
        salvage: bool,
    ) -> None:
        dev, size_bytes = links[0].image.dev, links[0].image.virtual_size_bytes
        layers = layers_of([(link, verify.image_path(self.repository, link)) for link in links], self.repository.served)

        def progress(percent: float) -> None:
            self.reporter.progress(dev, Phase.WRITE, int(size_bytes * percent / 100), size_bytes)
            storing.some(int(size_bytes * percent / 100))

        flatten(
            layers,
            path,
            image_format,
            kind=output,
            salvage=salvage,
            speed_bytes_s=self.speed_bytes_s,
            reporter=self.reporter,
            stop=self.stop,
            progress=progress,
        )

    def _check(
        self,
        links: Sequence[Link],
        path: Path,
        image_format: ImageFormat,
        lists: Sequence[BlockList],
        *,
        is_device: bool,
    ) -> None:
        """Compare what was written with the lists. Raises DamagedError, StorageError."""
        dev = links[0].image.dev
        size_bytes = links[0].image.virtual_size_bytes if is_device else path.stat().st_blocks * 512

        def progress(done_bytes: int) -> None:
            self.reporter.progress(dev, Phase.CHECK, min(done_bytes, size_bytes), size_bytes)

        chain = [(link, verify.image_path(self.repository, link)) for link in links]
        written.check(path, image_format, chain, lists, is_device=is_device, check=self.stop.check, progress=progress)
        self.reporter.progress(dev, Phase.CHECK, size_bytes, size_bytes)


def needed_bytes(links: Sequence[Link], repository: Repository) -> int:
    """Return how much room a sparse image of the disk takes at most, tables included.

    By the block lists; where an image has none, all of the disk may be data.
    """
    virtual_size_bytes = links[0].image.virtual_size_bytes
    with ExitStack() as stack:
        lists = []
        for link in links:
            if link.image.blocks is None:
                data_bytes = virtual_size_bytes
                break
            lists.append(stack.enter_context(verify.opened_list(verify.image_path(repository, link), link)))
        else:
            composed = Composition(lists)
            parts = (part for number in composed.numbers for part in composed.parts(number))
            data_bytes = sum(bin(part.segment.data).count("1") for part in parts) * BLOCK_BYTES
    return data_bytes + virtual_size_bytes // (8 * _TABLES_SHARE) + data_bytes // _TABLES_SHARE + _TABLES_BYTES
