"""Find out from block lists how much of an image nobody would need any more if its backup was removed.

The images that depend on it need its data only where they do not hold the block themselves. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from vbackup.repository.block_list import count


class Masked(Protocol):
    """The block list of an image (vbackup.repository.block_list.BlockList), of which no digest is read."""

    @property
    def numbers(self) -> Iterable[int]:
        """The numbers of the segments in which the image holds a block."""

    @property
    def data_blocks(self) -> int:
        """Number of blocks of data."""

    def masks(self, number: int) -> tuple[int, int]:
        """Return the masks of the blocks of a segment that the image holds, and of those that are data."""


def unneeded_blocks(image: Masked, heirs: Sequence[Masked]) -> int:
    """Return the number of blocks of data that all heirs, the images directly above it, hold themselves.

    Without an heir all data is unneeded. Raises ChainError for a damaged list.
    """
    if not heirs:
        return image.data_blocks
    unneeded = 0
    # Only segments in which every heir holds something; the masks of others need not be read.
    for number in sorted(set(image.numbers).intersection(*(heir.numbers for heir in heirs))):
        _, mask = image.masks(number)
        for heir in heirs:
            mask &= heir.masks(number)[0]
        unneeded += count(mask)
    return unneeded
