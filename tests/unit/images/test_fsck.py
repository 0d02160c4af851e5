"""Each file system gets the check that is made for it, and what cannot be checked is said; guestfish is a fake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_guestfish import FakeGuestfish
from vbackup.images import appliance, fsck
from vbackup.images.fsck import FileSystem, State
from vbackup.stop import Stop

CLEAN, DAMAGED, UNCHECKED = State


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGuestfish:
    made = FakeGuestfish(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.path.parent}:/usr/bin:/bin")
    made.answer("feature-available", with_="true\n")
    return made


def check(fake: FakeGuestfish, *listed: str, devs: tuple[str, ...] = ("vda", "vdb")) -> list[FileSystem]:
    fake.answer("list-filesystems", with_="".join(f"{line}\n" for line in listed))
    with appliance.session([], stop=Stop()) as session:
        return fsck.check(session, devs, step=lambda _: None)


def test_every_kind_has_its_check(fake: FakeGuestfish) -> None:
    fake.answer("xfs-repair", with_="0\n")
    fake.answer("fsck", with_="0\n")
    fake.answer("vfs-minimum-size", with_="2613248\n")
    found = check(
        fake,
        *("/dev/sda1: ext4", "/dev/sda2: xfs", "/dev/sda3: swap", "/dev/sdb: btrfs", "btrfsvol:/dev/sdb/sub: btrfs"),
        *("/dev/sdb2: ntfs", "/dev/sdb3: vfat", "/dev/vg0/root: ext3", "/dev/sda5: zfs_member"),
    )
    assert [(one.name, one.state) for one in found] == [
        ("vda/1", CLEAN),
        ("vda/2", CLEAN),
        ("vda/5", UNCHECKED),
        ("vdb", CLEAN),
        ("vdb/2", CLEAN),
        ("vdb/3", CLEAN),
        ("vg0/root", CLEAN),
    ]
    assert found[2].detail == "vbackup knows no check for it"
    told = fake.told()
    for words in (
        ("e2fsck", "/dev/sda1", "correct:true"),
        ("mount", "/dev/sda2", "/"),
        ("umount", "/"),
        ("xfs-repair", "/dev/sda2", "nomodify:true"),
        ("btrfs-fsck", "/dev/sdb"),
        ("vfs-minimum-size", "/dev/sdb2"),
        ("fsck", "vfat", "/dev/sdb3"),
        ("e2fsck", "/dev/vg0/root", "correct:true"),
    ):
        assert repr(words) in told
    assert told.index(repr(("umount", "/"))) < told.index(repr(("xfs-repair", "/dev/sda2", "nomodify:true")))


@pytest.mark.parametrize(
    ("kind", "command", "answer", "said"),
    [
        ("ext4", "e2fsck", OSError("e2fsck: UNEXPECTED INCONSISTENCY"), "UNEXPECTED INCONSISTENCY"),
        ("xfs", "xfs-repair", "1\n", "xfs_repair -n has found damage (status 1)"),
        ("xfs", "mount", OSError("mount: structure needs cleaning"), "structure needs cleaning"),
        ("btrfs", "btrfs-fsck", OSError("btrfs-fsck: bad block"), "bad block"),
        ("ntfs", "vfs-minimum-size", OSError("ntfsresize: Cluster accounting failed"), "accounting failed"),
        ("vfat", "fsck", "1\n", "fsck.fat has found damage (status 1)"),
    ],
)
def test_damage_is_what_the_check_says(fake: FakeGuestfish, kind: str, command: str, answer: object, said: str) -> None:
    fake.answer(command, with_=answer)
    [found] = check(fake, f"/dev/sda: {kind}")
    assert (found.name, found.state) == ("vda", DAMAGED)
    assert said in found.detail


def test_what_is_encrypted_is_said(fake: FakeGuestfish) -> None:
    fake.answer("list-devices", with_="/dev/sda\n/dev/sdb\n")
    fake.answer("list-partitions", with_="/dev/sda1\n/dev/sda2\n")
    fake.answer("vfs-type", "/dev/sda2", with_="crypto_LUKS\n")
    fake.answer("vfs-type", "/dev/sdb", with_=OSError("vfs_type: no"))
    found = check(fake, "/dev/sda1: ext4")
    assert found == [
        FileSystem("vda/1", "ext4", CLEAN),
        FileSystem("vda/2", "crypto_LUKS", UNCHECKED, "it is encrypted"),
    ]


@pytest.mark.parametrize("answer", ["false\n", OSError("feature_available: unknown group")])
def test_part_that_libguestfs_does_not_have_is_said(fake: FakeGuestfish, answer: object) -> None:
    fake.answer("feature-available", with_=answer)
    [found] = check(fake, "/dev/sda: xfs")
    assert (found.state, found.detail) == (UNCHECKED, "the part of libguestfs for it is missing here (xfs)")


def test_disks_are_named_as_libvirt_names_them(fake: FakeGuestfish) -> None:
    devs = tuple(f"sd{number}" for number in range(30))
    found = check(fake, "/dev/sdz1: ext4", "/dev/sdaa: ext4", "/dev/sdad2: ext4", "/dev/md0: ext4", devs=devs)
    assert sorted(one.name for one in found) == ["md0", "sd25/1", "sd26", "sd29/2"]
