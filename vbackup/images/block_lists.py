"""Make the block lists of a backup's images, several at a time; of large ones while they are written back to storage.

vbackup.repository.block_scan makes one list. Each is beside its image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from vbackup.errors import StorageError
from vbackup.files import storage_errors
from vbackup.model import BlocksRecord, ChangeRecord
from vbackup.report import Phase, Reporter
from vbackup.repository import block_list, block_scan
from vbackup.repository.compressibility import Probe

#: Number of images read at a time.
MAX_IMAGES = 4
#: Images of at least this size are listed before QEMU has closed them. A smaller one is read so quickly that its
#: modification time might not show a write in between.
EARLY_LIST_BYTES = 64 * 1024 * 1024
#: Seconds between two reports of how far a list is. One that is done before the first has none: nobody waits for it.
REPORT_S = 0.5


@dataclass(frozen=True)
class EarlyList:
    """The block list of an image that QEMU still has open."""

    stamp: tuple[int, int]  #: modification time in ns and size in bytes; a later write changes it
    blocks: BlocksRecord
    change: ChangeRecord


@dataclass(frozen=True)
class ImageFile:
    """The file of an image that is complete."""

    size_bytes: int
    blocks: BlocksRecord
    change: ChangeRecord


@dataclass(frozen=True)
class Watch:
    """Who follows the reading of a backup's images."""

    reporter: Reporter  #: gets the progress of each image, from several threads
    check: Callable[[], None]  #: is called between pieces, and may raise


def worth_an_early_list(images: Mapping[str, Path]) -> dict[str, Path]:
    """Return the large images, by dev: listing needs the CPU, writing back storage, and both take long."""
    return {dev: path for dev, path in images.items() if _size_bytes(path) >= EARLY_LIST_BYTES}


def list_while(store: Callable[[], None], images: Mapping[str, Path], watch: Watch) -> dict[Path, EarlyList]:
    """Run ``store``, which writes images back to storage, while listing these, by dev; return what was listed."""
    failed = Event()

    def check_both() -> None:
        watch.check()
        if failed.is_set():
            raise StorageError("The images could not be written back.")  # nobody sees it: the error of store is raised

    both = Watch(watch.reporter, check_both)
    with ThreadPoolExecutor(max_workers=MAX_IMAGES) as pool:
        listing = {path: pool.submit(_early, dev, path, both) for dev, path in images.items()}
        try:
            store()
        except BaseException:
            failed.set()  # or the error would wait until all images have been read
            raise
        return {path: future.result() for path, future in listing.items()}


def list_all(images: Mapping[str, Path], *, early: Mapping[Path, EarlyList], watch: Watch) -> list[ImageFile]:
    """Return size and list of each image, given by dev, in that order; nothing may write to them any longer."""

    def describe(dev: str, path: Path) -> ImageFile:
        early_list = early.get(path)
        with storage_errors(f"read {path}"):
            stamp = _stamp(path)
        # QEMU writes nothing when it closes an image that it has flushed. If it ever does, the image is listed again.
        if early_list is not None and early_list.stamp == stamp:
            return ImageFile(stamp[1], early_list.blocks, early_list.change)
        return ImageFile(stamp[1], *_list(dev, path, watch, size_bytes=stamp[1]))

    with ThreadPoolExecutor(max_workers=MAX_IMAGES) as pool:
        return list(pool.map(describe, images.keys(), images.values()))


def _early(dev: str, path: Path, watch: Watch) -> EarlyList:
    with storage_errors(f"read {path}"):
        stamp = _stamp(path)
    return EarlyList(stamp, *_list(dev, path, watch, size_bytes=stamp[1]))


def _list(dev: str, path: Path, watch: Watch, *, size_bytes: int) -> tuple[BlocksRecord, ChangeRecord]:
    probe = Probe(size_bytes)
    next_report_s = time.monotonic() + REPORT_S
    is_reported = False

    def progress(done_bytes: int) -> None:
        nonlocal next_report_s, is_reported
        now_s = time.monotonic()
        if now_s >= next_report_s or (is_reported and done_bytes >= size_bytes):
            next_report_s, is_reported = now_s + REPORT_S, True
            watch.reporter.progress(dev, Phase.CHECK, done_bytes, size_bytes)

    blocks = block_scan.make(
        path,
        path.with_suffix(block_list.SUFFIX),
        algorithm=block_list.best_algorithm(),
        check=watch.check,
        progress=lambda done_bytes: progress(min(done_bytes, size_bytes - 1)),
        probe=probe,
    )
    progress(size_bytes)
    change = ChangeRecord(
        data_bytes=blocks.data_blocks * block_list.BLOCK_BYTES,
        zero_bytes=blocks.zero_blocks * block_list.BLOCK_BYTES,
        sampled_bytes=probe.sampled_bytes,
        compressed_bytes=probe.compressed_bytes,
    )
    return blocks, change


def _size_bytes(path: Path) -> int:
    with storage_errors(f"read {path}"):
        return path.stat().st_size


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
