"""Block devices and filesystems for tests: a loop device, ext4 and XFS that can be lost at any moment, and btrfs."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

#: EXT4_IOC_SHUTDOWN, which is XFS_IOC_GOINGDOWN. From then on every read, write and fsync ends with EIO; what is not
#: on the disk yet is lost.
_SHUTDOWN, _NO_FLUSH = 0x8004587D, 2
#: linux/loop.h
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LO_FLAGS_AUTOCLEAR = 0x4C82, 0x4C0A, 4
_LOOP_CONFIG = struct.Struct("=II 5Q 3I I 128x 32x 2Q 64x")


@contextmanager
def loop_device(backing: Path) -> Iterator[Path]:
    """The block device of a file. The kernel frees it when nobody has it open, so also when this process is killed."""
    try:
        with backing.open("r+b") as file, Path("/dev/loop-control").open("rb") as control:
            while True:
                path = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
                device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    config = (file.fileno(), 0, *[0] * 5, *[0] * 3, _LO_FLAGS_AUTOCLEAR, 0, 0)
                    fcntl.ioctl(device, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(*config))
                except OSError as err:
                    os.close(device)
                    if err.errno != errno.EBUSY:  # another process was quicker
                        raise
                else:
                    break
    except OSError as err:
        pytest.skip(f"no loop device here: {err}")
    try:
        yield path
    finally:
        os.close(device)


class Ext4:
    """ext4 in a file, mounted through a loop device. Needs root; ``mount`` skips the test where it cannot be."""

    MAKE: Sequence[str] = ("mkfs.ext4", "-q", "-E", "nodiscard")

    def __init__(self, directory: Path, *, size_mib: int = 200) -> None:
        self.image = directory / "filesystem"
        self.path = directory / "mounted"  #: where it is mounted
        self.path.mkdir()
        with self.image.open("xb") as file:
            file.truncate(size_mib << 20)
        if shutil.which(self.MAKE[0]) is None:
            pytest.skip(f"{self.MAKE[0]} is not installed")
        subprocess.run([*self.MAKE, str(self.image)], check=True)

    def mount(self) -> None:
        done = subprocess.run(
            ["mount", "-o", "loop", str(self.image), str(self.path)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)

    def lose(self) -> None:
        """As if somebody had pulled out the disk."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_FLUSH))
        finally:
            os.close(fd)

    def bring_back(self) -> None:
        """Mount what had reached the disk by then; nothing may be open in it any more."""
        self.unmount()
        self.mount()


class Xfs(Ext4):
    """XFS, which shares data (reflink), in the same way; it needs 300 MiB."""

    MAKE = ("mkfs.xfs", "-q", "-K")


class Btrfs(Ext4):
    """btrfs, which shares data, too; it cannot be lost in the middle, and needs 200 MiB."""

    MAKE = ("mkfs.btrfs", "-q", "--nodiscard", "--mixed")

    def lose(self) -> None:
        raise NotImplementedError("btrfs has no ioctl for that")
