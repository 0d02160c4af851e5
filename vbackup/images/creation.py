"""Make the target images of a backup: several at a time, while QEMU is handed those that are ready.

Each is made by a process of its own (vbackup.qemu.qemu_img), some 15 ms for one; with many disks that would be a
tenth of the time of a small backup. vbackup.images.targets hands them to QEMU.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from vbackup.files import storage_errors
from vbackup.images.targets import Target
from vbackup.model import ImageOptions
from vbackup.qemu import qemu_img
from vbackup.stop import Stop

#: How many are made at once.
MAX_PROCESSES = 8


@dataclass(frozen=True)
class NewImage:
    """An image to be made."""

    target: Target
    size_bytes: int
    backing_rpath: str | None  #: its backing file, as its header is to name it


def reserve(images: Sequence[NewImage]) -> None:
    """Make the files, empty and with mode 0600: from now on they can be told from copies of them.

    Raises StorageError or NoSpaceError.
    """
    for image in images:
        path = image.target.path
        with storage_errors(f"make the image {path}"):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


@contextmanager
def made(images: Sequence[NewImage], *, options: ImageOptions, stop: Stop) -> Iterator[Iterable[Target]]:
    """Make images of the reserved files; the block gets each, in their order, when it is ready.

    What the block goes through raises StorageError or NoSpaceError where one could not be made. None is being made any
    more when the block is left.
    """

    def make(image: NewImage) -> Target:
        stop.check()
        path = image.target.path
        with storage_errors(f"make the image {path}"):
            qemu_img.create(path, image.size_bytes, backing_rpath=image.backing_rpath, options=options)
        return image.target

    with ThreadPoolExecutor(max_workers=MAX_PROCESSES) as pool:
        try:
            yield pool.map(make, images)
        finally:
            pool.shutdown(cancel_futures=True)
