"""A file that is locked is refused to every QEMU, and one that a QEMU has open is not locked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.lab import qemu_io
from vbackup.errors import BusyError, StorageError
from vbackup.qemu import image_lock


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "vda.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    return path


def reads(path: Path, *options: str) -> bool:
    argv = ["qemu-io", "-f", "qcow2", *options, "-c", "read 0 512", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "lock" in done.stderr
    return done.returncode == 0


def test_no_qemu_opens_it_meanwhile_whatever_its_name(image: Path) -> None:
    assert reads(image)
    with image_lock.held([image]):
        assert not reads(image)
        assert not reads(image, "-r")
        assert not reads(image.rename(image.with_name("other")))
    assert reads(image.with_name("other"))


@pytest.mark.parametrize("options", [(), ("-r",)], ids=["written", "read"])
def test_image_that_a_qemu_has_open_is_busy(image: Path, options: tuple[str, ...]) -> None:
    with qemu_io(image, *options) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with pytest.raises(BusyError, match=rf"is open in qemu-io \(pid {process.pid}\); nothing was written"):
            image_lock.held([image]).__enter__()
        process.stdin.write("read 512 512\n")  # and it goes on
        process.stdin.close()
        assert "read 512" in process.stdout.read()


def test_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Cannot lock"):
        image_lock.held([tmp_path / "nothing"]).__enter__()
