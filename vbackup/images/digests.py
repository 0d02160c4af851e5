"""Digest the images of a backup, several at a time; large ones while they are put on the disk.

vbackup.files digests one file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from vbackup.errors import StorageError
from vbackup.files import digest, storage_errors

#: How many images are read at a time.
MAX_DIGESTS = 4
#: The size from which an image is digested before QEMU has closed it. A smaller one is digested so quickly that its
#: modification time might not tell of a write in between.
EARLY_DIGEST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class EarlyDigest:
    """The digest of an image that QEMU still has open."""

    stamp: tuple[int, int]  #: modification time in ns and size in bytes: tell whether it was written to since
    digest: str


@dataclass(frozen=True)
class ImageFile:
    """An image as it is on the disk."""

    size_bytes: int
    digest: str


def worth_an_early_digest(paths: Collection[Path]) -> list[Path]:
    """Large images are read while they are put on the disk: both take long, one the processor, the other the disk."""
    with storage_errors("look at the images"):
        return [path for path in paths if path.stat().st_size >= EARLY_DIGEST_BYTES]


def digest_while(
    store: Callable[[], None], paths: Collection[Path], *, check: Callable[[], None]
) -> dict[Path, EarlyDigest]:
    """Run ``store``, which puts the images on the disk, and digest those at ``paths`` meanwhile.

    ``check`` is called between pieces and may raise.
    """
    failed = Event()

    def go_on() -> None:
        check()
        if failed.is_set():
            raise StorageError("The images could not be put on the disk.")  # told by whoever has set it

    with ThreadPoolExecutor(max_workers=MAX_DIGESTS) as pool:
        digesting = {path: pool.submit(_early, path, go_on) for path in paths}
        try:
            store()
        except BaseException:
            failed.set()  # else the error would wait until all has been read
            raise
        return {path: future.result() for path, future in digesting.items()}


def digest_all(
    paths: Sequence[Path], *, early: Mapping[Path, EarlyDigest], check: Callable[[], None]
) -> list[ImageFile]:
    """Size and digest of each image, which nobody writes to any more."""

    def describe(path: Path) -> ImageFile:
        known = early.get(path)
        with storage_errors(f"read {path}"):
            stamp = _stamp(path)
        # QEMU writes nothing when it closes what it has flushed. If one ever does, the early digest is of no use.
        found = known.digest if known is not None and known.stamp == stamp else digest(path, check=check)
        return ImageFile(stamp[1], found)

    with ThreadPoolExecutor(max_workers=MAX_DIGESTS) as pool:
        return list(pool.map(describe, paths))


def _early(path: Path, check: Callable[[], None]) -> EarlyDigest:
    with storage_errors(f"read {path}"):
        stamp = _stamp(path)
    return EarlyDigest(stamp, digest(path, check=check))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
