"""Tell how much data a disk has at a backup: what an image that holds all of it takes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from vbackup.errors import ChainError
from vbackup.repository import block_list
from vbackup.repository.block_list import ALL, BLOCK_BYTES, BlockList, count
from vbackup.repository.history import Link

#: Bytes of tables that a qcow2 image has for each cluster of 64 KiB: an entry of its L2 table, and a refcount.
_TABLE_BYTES = 8 + 2


def image_bytes(chain: Sequence[tuple[Link, Path]]) -> int:
    """Return how large a qcow2 image can become that holds the whole disk, also its zeros as such, without a guest.

    ``chain`` has the newest image first. Block lists tell how much of it is data; without them, all that the images
    take counts.
    """
    size_bytes = chain[0][0].image.virtual_size_bytes
    try:
        data_bytes = _data_blocks(chain) * BLOCK_BYTES
    except ChainError:
        data_bytes = sum(path.stat().st_blocks * 512 for _, path in chain)
    return min(data_bytes, size_bytes) + -(-size_bytes // BLOCK_BYTES) * _TABLE_BYTES


def _data_blocks(chain: Sequence[tuple[Link, Path]]) -> int:
    """Return how many blocks of data the chain shows. Raises ChainError if an image has no list."""
    blocks = 0
    with ExitStack() as stack:
        lists = []
        for link, path in chain:
            if link.image.blocks is None:
                raise ChainError(f"{path} has no block list.")
            lists.append(stack.enter_context(BlockList.open(path.with_suffix(block_list.SUFFIX))))
        for number in sorted({number for each in lists for number in each.numbers}):
            undecided = ALL
            for each in lists:
                held, data = each.masks(number)
                blocks += count(data & undecided)
                undecided &= ~held
    return blocks
