"""Make the images of a chain one: commit the upper ones into a copy of the lowest, and list its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vbackup import files
from vbackup.files import storage_errors
from vbackup.images import merge
from vbackup.images.merge import Commit
from vbackup.model import CLUSTER_BYTES, BlocksRecord
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.report import Reporter
from vbackup.repository import block_list, merged_list
from vbackup.repository.merged_list import Comparison, Layer
from vbackup.stop import Stop


def join(
    dev: str,
    layers: Sequence[Layer],
    target: Path,
    *,
    scratch: Path,
    is_published: bool,
    is_whole: bool,
    speed_bytes_s: int | None = None,
    reporter: Reporter,
    stop: Stop,
) -> BlocksRecord:
    """Commit images into ``target``, write its list beside it, and return what a manifest records of both.

    ``layers``: the newest first; ``target`` is a copy, a clone, or another name of the last. ``scratch``: a free path
    beside it. ``is_published``: the target is in use. ``is_whole``: all of it is compared with the lists, and not only
    what was written now. Raises what vbackup.images.merge.commit raises, and ChainError if the content is not what the
    lists say.
    """
    sizes = tuple(layer.listed.virtual_size_bytes for layer in reversed(layers[:-1]))
    # The filter that compresses does not write the end of a disk that ends within a cluster (QEMU 7.2 to 11.1).
    is_compressed = sizes[-1] % CLUSTER_BYTES == 0 and any(_is_compressed(layer.path) for layer in layers[:-1])
    if is_compressed:
        end = layers[-1].listed.virtual_size_bytes
        merge.discard(target, _clipped(merged_list.extents(layers[:-1]), end), stop=stop)
    merge.commit(
        Commit(
            dev,
            target,
            tuple(layer.path for layer in reversed(layers[:-1])),
            sizes,
            is_compressed=is_compressed,
            is_published=is_published,
            scratch=scratch,
        ),
        speed_bytes_s=speed_bytes_s,
        reporter=reporter,
        stop=stop,
    )
    with storage_errors(f"write {target}"):
        files.fsync(target)
    with Qcow2Layer(target) as image:
        comparison = Comparison(dev, image, layers, is_whole=is_whole, check=stop.check)
        return comparison.write_list(target.with_suffix(block_list.SUFFIX))


def _is_compressed(path: Path) -> bool:
    with Qcow2Layer(path) as image:
        return any(extent.compressed_bytes is not None for number in image.tables() for extent in image.extents(number))


def _clipped(extents: Iterator[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    for start, length in extents:
        if start < end:
            yield start, min(length, end - start)
