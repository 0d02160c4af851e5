"""Digest the images of a backup, several at a time; large ones while they are written back to storage.

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

#: Number of images read at a time.
MAX_DIGESTS = 4
#: Images of at least this size are digested before QEMU has closed them. A smaller one is digested so quickly that its
#: modification time might not show a write in between.
EARLY_DIGEST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class EarlyDigest:
    """The digest of an image that QEMU still has open."""

    stamp: tuple[int, int]  #: modification time in ns and size in bytes; a later write changes it
    digest: str


@dataclass(frozen=True)
class ImageFile:
    """The file of an image that is complete."""

    size_bytes: int
    digest: str


def worth_an_early_digest(paths: Collection[Path]) -> list[Path]:
    """Return the large images: digesting and writing back both take long, but one needs the CPU, the other storage."""
    return [path for path in paths if _size_bytes(path) >= EARLY_DIGEST_BYTES]


def digest_while(
    store: Callable[[], None], paths: Collection[Path], *, check: Callable[[], None]
) -> dict[Path, EarlyDigest]:
    """Run ``store``, which writes the images back to storage, while digesting those at ``paths``; return the digests.

    ``check`` is called between pieces and may raise.
    """
    failed = Event()

    def check_both() -> None:
        check()
        if failed.is_set():
            raise StorageError("The images could not be written back.")  # nobody sees it: the error of store is raised

    with ThreadPoolExecutor(max_workers=MAX_DIGESTS) as pool:
        digesting = {path: pool.submit(_early, path, check_both) for path in paths}
        try:
            store()
        except BaseException:
            failed.set()  # or the error would wait until all images have been read
            raise
        return {path: future.result() for path, future in digesting.items()}


def digest_all(
    paths: Sequence[Path], *, early: Mapping[Path, EarlyDigest], check: Callable[[], None]
) -> list[ImageFile]:
    """Return size and digest of each image; nothing may write to them any longer."""

    def describe(path: Path) -> ImageFile:
        early_digest = early.get(path)
        with storage_errors(f"read {path}"):
            stamp = _stamp(path)
        # QEMU writes nothing when it closes an image that it has flushed. If it ever does, the image is digested again.
        if early_digest is not None and early_digest.stamp == stamp:
            return ImageFile(stamp[1], early_digest.digest)
        return ImageFile(stamp[1], digest(path, check=check))

    with ThreadPoolExecutor(max_workers=MAX_DIGESTS) as pool:
        return list(pool.map(describe, paths))


def _early(path: Path, check: Callable[[], None]) -> EarlyDigest:
    with storage_errors(f"read {path}"):
        stamp = _stamp(path)
    return EarlyDigest(stamp, digest(path, check=check))


def _size_bytes(path: Path) -> int:
    with storage_errors(f"read {path}"):
        return path.stat().st_size


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
