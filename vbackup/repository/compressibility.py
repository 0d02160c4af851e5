"""Measure how well the data of an image compresses, from a small sample of its blocks, while its list is made.

Data that a guest has encrypted or compressed does not compress. A part of every n-th block goes through zlib: n is
chosen so that an image of any size costs about SAMPLES parts, some 5 ms of processor time.
"""

from __future__ import annotations

import zlib

#: How many blocks are sampled of an image that is full of data; of a smaller one all.
SAMPLES = 64
#: How much of a block is compressed. As much as a page of memory: enough to tell text from noise.
PART_BYTES = 4096
_BLOCK_BYTES = 64 * 1024
_LEVEL = 1
#: Multiplies the number of a block (Knuth's hash): what the guest writes at regular distances is sampled like the rest.
_KNUTH, _MASK = 2654435761, 0xFFFF_FFFF


class Probe:
    """Takes the sample of one image. Can be called by several threads: which blocks are sampled is fixed."""

    def __init__(self, image_bytes: int) -> None:
        """``image_bytes``: size of the image's file, which says about how many blocks of data there are."""
        self._stride = max(1, image_bytes // _BLOCK_BYTES // SAMPLES)
        self._sizes: list[tuple[int, int]] = []

    def __call__(self, number: int, content: memoryview) -> None:
        """Measure a block of data, given its number on the disk, if it is in the sample."""
        spread = (number * _KNUTH & _MASK) >> 8
        if spread % self._stride:
            return
        start = spread % (_BLOCK_BYTES // PART_BYTES) * PART_BYTES
        part = content[start : start + PART_BYTES]
        # What grows is not compressed by anyone.
        self._sizes.append((len(part), min(len(part), len(zlib.compress(part, _LEVEL)))))

    @property
    def sampled_bytes(self) -> int:
        """How much was compressed."""
        return sum(sampled for sampled, _ in list(self._sizes))

    @property
    def compressed_bytes(self) -> int:
        """What it was compressed to."""
        return sum(compressed for _, compressed in list(self._sizes))
