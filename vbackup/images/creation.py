"""Create the target images of a backup, several at a time, while QEMU opens those that are ready.

Each image takes a separate process (vbackup.qemu.qemu_img) and about 15 ms; one after another, the images of many
disks would take a tenth of the time of a small backup. vbackup.images.targets opens them in QEMU.
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

#: Number of images created at once.
MAX_PROCESSES = 8


@dataclass(frozen=True)
class NewImage:
    """A target image that does not exist yet."""

    target: Target
    size_bytes: int
    backing_rpath: str | None  #: backing file, relative to the image, for the image's header


def reserve(images: Sequence[NewImage]) -> None:
    """Create the files, empty and with mode 0600. From now on their inodes distinguish them from copies.

    Raises StorageError or NoSpaceError.
    """
    for image in images:
        path = image.target.path
        with storage_errors(f"create the image {path}"):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


@contextmanager
def made(images: Sequence[NewImage], *, options: ImageOptions, stop: Stop) -> Iterator[Iterable[Target]]:
    """Make qcow2 images of the reserved files; the block gets each target, in order, as soon as it is ready.

    Iterating raises StorageError or NoSpaceError if an image could not be created. When the block ends, no process is
    creating an image any longer.
    """

    def create(image: NewImage) -> Target:
        stop.check()
        path = image.target.path
        with storage_errors(f"create the image {path}"):
            qemu_img.create(path, image.size_bytes, backing_rpath=image.backing_rpath, options=options)
        return image.target

    with ThreadPoolExecutor(max_workers=MAX_PROCESSES) as pool:
        try:
            yield pool.map(create, images)
        finally:
            pool.shutdown(cancel_futures=True)
