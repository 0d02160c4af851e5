"""Find the content of damaged blocks elsewhere: in a copy of the repository, or in any image that has such a block.

What is found has the digest that was recorded when the backup was made, so it does not matter where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vbackup.errors import ChainError
from vbackup.qemu.qcow2_layer import Extent, Qcow2Layer
from vbackup.repository import verify
from vbackup.repository.block_list import BLOCK_BYTES, DIGEST_BYTES, SEGMENT_BLOCKS, Algorithm, BlockList, runs
from vbackup.repository.history import Link
from vbackup.repository.repository import Repository

#: A block of a disk: number of its segment, number in that.
Block = tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Where a content is: it is read again when it is needed, so a damaged disk is not held in memory."""

    path: Path  #: of an image
    block: Block


class BlockSources:
    """The repository that is repaired, and copies of it; those of other domains come last."""

    def __init__(self, own: Repository, copies: Sequence[Repository], uuid: str, *, check: Callable[[], None]) -> None:
        self.own, self._copies, self._uuid, self._check = own, copies, uuid, check

    def twins(self, path: Path) -> Iterator[Path]:
        """Yield the files that have, in copies of the repository, the place of this one."""
        for copy in self._copies:
            yield copy.path / path.relative_to(self.own.path)

    def find(self, wanted: Mapping[Block, bytes], algorithm: Algorithm) -> dict[Block, Place]:
        """Return where those of the blocks are, given by their digests, that an image has somewhere undamaged."""
        missing: dict[bytes, list[Block]] = {}
        for block, digest in wanted.items():
            missing.setdefault(digest, []).append(block)
        found: dict[Block, Place] = {}
        for path, link in self._images():
            if not missing:
                break
            with suppress(ChainError), verify.opened_list(path, link) as listed:
                if listed.algorithm is algorithm:
                    for digest, place in self._matches(path, listed, missing):
                        found.update(dict.fromkeys(missing.pop(digest), place))
        return found

    def _images(self) -> Iterator[tuple[Path, Link]]:
        repositories = (*self._copies, self.own)
        for is_domain in (True, False):
            for repository in repositories:
                for uuid in repository.uuids():
                    if (uuid == self._uuid) is not is_domain:
                        continue
                    for backup in reversed(repository.catalogue(uuid).history.backups):
                        for image in backup.disks:
                            if image.blocks is not None:
                                self._check()
                                link = Link(backup, image)
                                yield verify.image_path(repository, link), link

    def _matches(self, path: Path, listed: BlockList, missing: Mapping[bytes, object]) -> Iterator[tuple[bytes, Place]]:
        """Yield digest and place of the missing blocks that this image has, and has undamaged."""
        places: dict[bytes, Block] = {}
        for segment in listed.segments():
            self._check()
            blocks = (block for start, end in runs(segment.data) for block in range(start, end))
            for index, block in enumerate(blocks):
                digest = bytes(segment.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])
                if digest in missing:
                    places[digest] = (segment.number, block)
        if not places:
            return
        with Qcow2Layer(path) as layer:
            for digest, place in places.items():
                content = read_block(layer, place)
                if content is not None and listed.algorithm.digest(content) == digest:
                    yield digest, Place(path, place)


def read_block(layer: Qcow2Layer, place: Block) -> bytes | None:
    """Return the content of a block as an image has it, with zeros after the end of the disk; None if it is unreadable.

    Zeros that an image does not store are None, too: nobody looks for them.
    """
    number, block = place
    try:
        extent = extent_of(layer, place)
        if extent is None or extent.offset is None:
            return None
        content = bytes(layer.read(extent, block - extent.start, 1))
    except ChainError:
        return None
    left = layer.virtual_size_bytes - (number * SEGMENT_BLOCKS + block) * BLOCK_BYTES
    return content if left >= BLOCK_BYTES else content[: max(left, 0)].ljust(BLOCK_BYTES, b"\0")


def extent_of(layer: Qcow2Layer, place: Block) -> Extent | None:
    """Return the extent of an image that has a block; None if it holds nothing there. Raises ChainError."""
    number, block = place
    for extent in layer.extents(number):
        if extent.start <= block < extent.start + extent.clusters:
            return extent
    return None
