"""What the kernel has mounted is read as it writes it; who uses a disk is named; what is missing is said."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from vbackup.errors import BusyError, StorageError, UnsuitableError
from vbackup.images import mount_points

MOUNTS = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda1 rw
42 22 0:39 / /mnt/web/vda.raw rw,nosuid,nodev,relatime - fuse /dev/fuse rw,user_id=0,group_id=0
43 22 0:40 / /mnt/a\040b\134/vdb.raw rw,nosuid shared:3 - fuse /dev/fuse rw,user_id=0
44 22 0:41 / /mnt/web/deeper/vdc.raw rw - fuse.sshfs host: rw
45 22 0:42 / /mnt/web/tmp rw - tmpfs fuse rw
46 22 0:43 / /mnt/web/data rw - fuse.sshfs host: rw
"""


@pytest.fixture(autouse=True)
def _mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS.lstrip())
    monkeypatch.setattr(mount_points, "MOUNTINFO", tmp_path / "mountinfo")


def test_files_of_a_directory_on_which_fuse_is_mounted() -> None:
    assert mount_points.mounted_in(Path("/mnt/web")) == [Path("/mnt/web/vda.raw")]
    assert mount_points.mounted_in(Path("/mnt/a b\\")) == [Path("/mnt/a b\\/vdb.raw")]
    assert mount_points.mounted_in(Path("/mnt")) == []


def test_who_has_a_disk_open_is_named(tmp_path: Path) -> None:
    path = tmp_path.resolve() / "vda.raw"
    path.touch()
    mount_points.refuse_busy([path])
    with path.open("rb"), pytest.raises(BusyError, match=rf"in use: \S+ \(pid {os.getpid()}\)\. .*--force"):
        mount_points.refuse_busy([path])


def test_what_is_not_mounted_need_not_be_unmounted(tmp_path: Path) -> None:
    (tmp_path / "vda.raw").touch()
    mount_points.unmount(tmp_path / "vda.raw", is_forced=False)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("fusermount3: failed to unmount /mnt/web/vda.raw: Device or resource busy", BusyError),
        ("fusermount3: something new", StorageError),
    ],
)
def test_unmounting_that_fails_says_why(
    said: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As somebody else than root; the words are those of fusermount3."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / "fusermount3").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    (tmp_path / "fusermount3").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(error, match=r"/mnt/web/vda\.raw"):
        mount_points.unmount(Path("/mnt/web/vda.raw"), is_forced=False)


def test_host_without_fuse_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_points, "_DEVICE", tmp_path / "fuse")
    with pytest.raises(UnsuitableError, match="modprobe fuse"):
        mount_points.refuse_without_fuse()
    (tmp_path / "fuse").touch()
    mount_points.refuse_without_fuse()
    monkeypatch.setattr(shutil, "which", lambda _program: None)
    mount_points.refuse_without_fuse()  # root needs no helper
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnsuitableError, match=r"on Debian: fuse3"):
        mount_points.refuse_without_fuse()
