"""Check an image that a restore has written: it has to contain what the block lists of the chain say.

It is read from the page cache, right after it was written. What QEMU read, decompressed and put together, and what was
damaged in the repository, shows in the result; what the result needs nothing of does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vbackup.errors import ChainError, DamagedError, OutputDiffersError
from vbackup.model import ImageFormat
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.qemu.raw_layer import RawLayer
from vbackup.repository import block_list, block_scan, image_check
from vbackup.repository.block_list import ALL, BLOCK_BYTES, BlockList, Segment
from vbackup.repository.block_scan import Layer, Scan
from vbackup.repository.composition import Composition, Part
from vbackup.repository.history import Link


def check(
    output: Path,
    image_format: ImageFormat,
    chain: Sequence[tuple[Link, Path]],
    lists: Sequence[BlockList],
    *,
    is_device: bool = False,
    check: Callable[[], None],
    progress: Callable[[int], None],
) -> None:
    """Compare the image with the lists of its chain: image by image the newest first, with its path.

    ``is_device``: the image is raw, on a block device that may be larger, and all of it is read.
    ``check`` is called between pieces and may raise; ``progress`` gets the number of bytes that were read so far.
    Raises DamagedError, which names the image of the chain that is damaged, and OutputDiffersError if none is.
    """
    with _layer(output, image_format, chain[0][0], is_device=is_device) as layer:
        check_layer(layer, str(output), chain, lists, check=check, progress=progress)


def check_layer(
    layer: Layer,
    output: str,
    chain: Sequence[tuple[Link, Path]],
    lists: Sequence[BlockList],
    *,
    check: Callable[[], None],
    progress: Callable[[int], None],
) -> None:
    """Compare what a layer has with the lists, as ``check`` does; ``output`` is what messages call it."""
    composed = Composition(lists)
    with ExitStack() as stack:
        if layer.virtual_size_bytes != chain[0][0].image.virtual_size_bytes:
            smaller = min(layer.virtual_size_bytes, chain[0][0].image.virtual_size_bytes)
            raise OutputDiffersError(chain[0][0].image.dev, output, smaller)
        tables = frozenset(layer.tables())
        scans: dict[int, Scan] = {}
        done_bytes = 0
        for number in sorted({*composed.numbers, *tables}):
            parts = composed.parts(number) or [Part(block_list.best_algorithm(), Segment(number, 0, 0, b""))]
            # What no image holds reads as zeros.
            others = ALL & ~_union(parts)
            for place, part in enumerate(parts):
                wanted = part.segment.held | (others if place == 0 else 0)
                scan = scans.get(part.algorithm.number)
                if scan is None:
                    scan = Scan(layer, part.algorithm, check=check, is_tolerant=True)
                    scans[part.algorithm.number] = stack.enter_context(scan)
                found = scan.segment(number, wanted) if number in tables else Segment(number, 0, 0, b"")
                # Which of the blocks of zeros are written does not matter.
                blocks = block_scan.difference(replace(part.segment, held=0), replace(found, held=0), wanted)
                done_bytes += found.data_blocks * BLOCK_BYTES
                if blocks:
                    raise _error(output, chain, lists, number, blocks)
                progress(done_bytes)


def _layer(output: Path, image_format: ImageFormat, link: Link, *, is_device: bool) -> Qcow2Layer | RawLayer:
    if is_device:
        return RawLayer(output, device_bytes=link.image.virtual_size_bytes)
    return Qcow2Layer(output) if image_format is ImageFormat.QCOW2 else RawLayer(output)


def _union(parts: Sequence[Part]) -> int:
    mask = 0
    for part in parts:
        mask |= part.segment.held
    return mask


def _error(
    output: str, chain: Sequence[tuple[Link, Path]], lists: Sequence[BlockList], number: int, blocks: int
) -> ChainError:
    """Return the error for these blocks: the image that decides them is damaged, or the output is."""
    newest = chain[0][0].image
    for place, mask, segment in Composition(lists).deciding(number):
        link, path = chain[place]
        wanted = mask & blocks
        damaged = _damaged_blocks(path, lists[place], segment, wanted) if wanted else 0
        if damaged:
            ranges = image_check.ranges({number: damaged}, virtual_size_bytes=newest.virtual_size_bytes)
            start_bytes, length_bytes = next(ranges)
            return DamagedError(
                newest.dev,
                image=str(path),
                backup=link.backup.id,
                start_bytes=start_bytes,
                length_bytes=length_bytes,
            )
    start_bytes, _ = next(image_check.ranges({number: blocks}, virtual_size_bytes=newest.virtual_size_bytes))
    return OutputDiffersError(newest.dev, output, start_bytes)


def _damaged_blocks(path: Path, listed: BlockList, segment: Segment, wanted: int) -> int:
    """Return which of these blocks the image does not have as its list says."""
    try:
        with Qcow2Layer(path) as layer, Scan(layer, listed.algorithm, check=lambda: None, is_tolerant=True) as scan:
            found = scan.segment(segment.number, wanted)
    except ChainError:
        return wanted
    return block_scan.difference(segment, found, wanted)
