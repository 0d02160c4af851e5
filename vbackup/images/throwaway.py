"""Let a disk of a backup be written, without a trace: what is written goes to an overlay that has no name."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vbackup.files import storage_errors
from vbackup.images.opened_point import OpenedPoint
from vbackup.model import ImageOptions
from vbackup.qemu import qemu_img


def default_directory() -> Path:
    """Return where overlays are by default: TMPDIR, or /var/tmp, which is not in memory as /tmp can be."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - a file there has no name for long


def take_writes(point: OpenedPoint, dev: str, directory: Path) -> None:
    """Let writes of a disk go to a new file in the directory, which loses its name as soon as the daemon has it.

    Raises StorageError, NoSpaceError, QmpError.
    """
    with storage_errors(f"create a file in {directory}"):
        fd, name = tempfile.mkstemp(prefix="vbackup-", suffix=".qcow2", dir=directory)
        os.close(fd)
    try:
        qemu_img.create(Path(name), point.size_bytes(dev), backing_rpath=None, options=ImageOptions())
        point.write_to(dev, Path(name))
    finally:
        Path(name).unlink(missing_ok=True)  # qemu-img removes a file that it could not write
