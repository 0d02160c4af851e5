"""A filesystem of the tests' own that can be lost at any moment: unplugged, or with the power."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path

import pytest

#: EXT4_IOC_SHUTDOWN. From then on every read, write and fsync ends with EIO; what is not on the disk yet is lost.
_SHUTDOWN, _NO_FLUSH = 0x8004587D, 2


class Ext4:
    """ext4 in a file, mounted through a loop device. Needs root; ``mount`` skips the test where it cannot be."""

    def __init__(self, directory: Path, *, size_mib: int = 200) -> None:
        self.image = directory / "ext4"
        self.path = directory / "mounted"  #: where it is mounted
        self.path.mkdir()
        with self.image.open("xb") as file:
            file.truncate(size_mib << 20)
        subprocess.run(["mkfs.ext4", "-q", "-E", "nodiscard", str(self.image)], check=True)

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
