"""A block device is written only while it is nobody else's, and a part of it that is zeroed reads as zeros."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.filesystem import loop_device
from vbackup.errors import BusyError, StorageError
from vbackup.images import device

MIB = 1024 * 1024


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A device of 4 MiB, full of 0xff."""
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xff" * (4 * MIB))
    with loop_device(backing) as path:
        yield path


@pytest.mark.parametrize(
    ("start", "end"), [(0, 4 * MIB), (MIB + 512, 2 * MIB), (MIB + 512, MIB + 1536), (4096, MIB + 512), (MIB, MIB)]
)
@pytest.mark.parametrize("can", [True, False], ids=["by the kernel", "written"])
def test_exactly_the_part_becomes_zeros(
    loop: Path, monkeypatch: pytest.MonkeyPatch, can: bool, start: int, end: int
) -> None:
    if not can:
        monkeypatch.setattr(device, "_fallocate", lambda *_: False)
    device.zero(loop, start, end, check=lambda: None)
    os.sync()
    expected = bytearray(b"\xff" * (4 * MIB))
    expected[start:end] = bytes(end - start)
    assert loop.read_bytes() == expected


def test_busy_device_is_written_as_qemu_does(loop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages in its cache can be in the way of fallocate()."""

    class Libc:
        def fallocate(self, *_: object) -> int:
            ctypes.set_errno(errno.EBUSY)
            return -1

    monkeypatch.setattr(device.ctypes, "CDLL", lambda *_, **__: Libc())
    device.zero(loop, 0, MIB, check=lambda: None)
    assert loop.read_bytes()[: MIB + 1] == bytes(MIB) + b"\xff"


def test_device_is_held_and_its_size_known(loop: Path) -> None:
    assert device.size_bytes(loop) == 4 * MIB
    with device.claimed("vda", loop, disk_bytes=4 * MIB), pytest.raises(BusyError, match="lsblk"):
        device.claimed("vdb", loop, disk_bytes=1).__enter__()
    with device.claimed("vda", loop, disk_bytes=1):
        pass


def test_device_that_is_too_small_or_in_use_or_none(loop: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"{4 * MIB} bytes, and the disk has {4 * MIB + 512}. Nothing") as caught:
        device.claimed("vda", loop, disk_bytes=4 * MIB + 512).__enter__()
    assert caught.value.status == 7
    argv = ["python3", "-c", "import sys; kept = open(sys.argv[1]); print(flush=True); sys.stdin.read()", str(loop)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(BusyError, match=rf"open in python3\S* \(pid {process.pid}\)"):
            device.claimed("vda", loop, disk_bytes=1).__enter__()
        process.communicate()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Block device required"):
        device.claimed("vda", tmp_path / "file", disk_bytes=1).__enter__()


def test_device_that_is_read_only_is_refused(loop: Path) -> None:
    subprocess.run(["blockdev", "--setro", str(loop)], check=True)
    with pytest.raises(StorageError, match=rf"{loop} is read-only; nothing was written.*--setrw {loop}") as caught:
        device.claimed("vda", loop, disk_bytes=1).__enter__()
    assert caught.value.status == 7
    subprocess.run(["blockdev", "--setrw", str(loop)], check=True)
    with device.claimed("vda", loop, disk_bytes=1):
        pass


def test_symbolic_link_leads_to_the_device(loop: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(loop)
    assert device.is_block_device(tmp_path / "link")
    assert not device.is_block_device(tmp_path / "backing")
    assert not device.is_block_device(tmp_path / "nothing")
