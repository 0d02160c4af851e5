"""What the storage of a repository is and can do, also where it cannot be asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup.repository import filesystem, place
from vbackup.repository.repository import Repository


def test_storage_is_described_and_nothing_is_left(repo: Repository) -> None:
    before = sorted(repo.path.iterdir())
    found = place.look(repo)
    assert found.filesystem
    assert 0 < found.free_bytes <= found.size_bytes
    assert found.locks is True
    assert found.exchanges is not None
    assert sorted(repo.path.iterdir()) == before


def test_what_a_read_only_filesystem_can_do_is_not_known(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_directory: Path) -> filesystem.Abilities:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(filesystem, "abilities", refused)
    found = place.look(repo)
    assert (found.reflinks, found.exchanges) == (None, None)


def device(root: Path, name: str, *, uuid: str | None = None, slaves: tuple[str, ...] = ()) -> Path:
    path = root / name
    (path / "slaves").mkdir(parents=True)
    if uuid is not None:
        (path / "dm").mkdir()
        (path / "dm" / "uuid").write_text(uuid + "\n")
    for slave in slaves:
        (path / "slaves" / slave).symlink_to(root / slave)
    return path


def test_dm_crypt_below_other_devices_is_found(tmp_path: Path) -> None:
    """LVM on LUKS on RAID; all parts of a volume have to be encrypted."""
    device(tmp_path, "sda")
    device(tmp_path, "md0", slaves=("sda",))
    crypt = device(tmp_path, "dm-0", uuid="CRYPT-LUKS2-0123-luks", slaves=("md0",))
    volume = device(tmp_path, "dm-1", uuid="LVM-abc", slaves=("dm-0",))
    mixed = device(tmp_path, "dm-2", uuid="LVM-abd", slaves=("dm-0", "sda"))
    plain = device(tmp_path, "dm-3", uuid="LVM-abe", slaves=("md0",))
    answers = [place._is_crypt_device(each) for each in (crypt, volume, mixed, plain, tmp_path / "unknown")]
    assert answers == [True, True, False, False, None]


def test_mount_of_a_path_is_the_innermost(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        "30 21 0:40 / /mnt/a\\040b rw - btrfs /dev/mapper/x rw\n"
        "31 30 0:41 / /mnt/a\\040b/c rw master:1 - fuse.gocryptfs /enc rw\n"
        "nonsense\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda _self, **_more: text)
    for path, kind in (("/mnt/a b/x", "btrfs"), ("/mnt/a b/c", "fuse.gocryptfs"), ("/mnt/a", "ext4")):
        mount = place._mount_of(Path(path))
        assert mount is not None
        assert mount.kind == kind


def test_partition_of_a_device_that_is_encrypted_below(tmp_path: Path) -> None:
    device(tmp_path, "dm-0", uuid="CRYPT-LUKS2-0123-luks")
    raid = device(tmp_path, "md0", slaves=("dm-0",))
    (raid / "md0p1").mkdir()
    (raid / "md0p1" / "partition").write_text("1\n")
    (tmp_path / "9:1").symlink_to(raid / "md0p1")
    assert place._is_crypt_device(tmp_path / "9:1") is True


@pytest.mark.parametrize(
    ("answer", "encrypted"),
    [("echo aes-256-gcm", True), ("echo off", False), ("echo -", None), ("exit 1", None)],
)
def test_zfs_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, encrypted: bool | None) -> None:
    program = tmp_path / "zfs"
    program.write_text(f'#!/bin/sh\n[ "$*" = "get -H -o value encryption tank/vm" ] || exit 2\n{answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(place, "_mount_of", lambda _path: place._Mount("0:50", "zfs", "tank/vm"))
    assert place.is_encrypted(tmp_path) is encrypted


def test_without_the_program_of_zfs_it_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(place, "_mount_of", lambda _path: place._Mount("0:50", "zfs", "tank/vm"))
    assert place.is_encrypted(tmp_path) is None
