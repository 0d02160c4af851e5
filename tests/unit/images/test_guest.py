"""Which file systems are found, unlocked and mounted, with a fake of guestfish; end_to_end has the real one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fake_guestfish import FakeGuestfish
from vbackup.errors import UnsuitableError
from vbackup.images import appliance
from vbackup.images.guest import Guest
from vbackup.stop import Stop

PLAIN = {"/dev/sda1": "ext4", "/dev/sdb": "vfat", "/dev/vg0/root": "xfs", "/dev/sda3": "swap"}


class Place:
    """A guest on a fake, the keys that it asked for, and what it warned of."""

    def __init__(self, fake: FakeGuestfish) -> None:
        self.fake = fake
        self.asked: list[tuple[str, int]] = []
        self.warnings: list[str] = []
        self.keys: list[bytes | None] = [b"right"]

    def key(self, name: str, attempt: int) -> bytes | None:
        self.asked.append((name, attempt))
        return self.keys.pop(0) if self.keys else None

    def mounted(self, where: str | None) -> list[str]:
        """Mount, and return the commands that mounted."""
        with appliance.session([], stop=Stop()) as session:
            Guest(session, ["vda", "vdb"], keys=self.key, warn=self.warnings.append).mount(where)
        return [line for line in self.fake.told() if line.startswith("('mount")]

    def searched(self) -> list[str | None]:
        with appliance.session([], stop=Stop()) as session:
            guest = Guest(session, ["vda", "vdb"], keys=self.key, warn=self.warnings.append)
            return list(guest.mounts(None))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    fake = FakeGuestfish(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    has(fake, PLAIN)
    fake.answer("help", with_="NAME\n")
    return Place(fake)


def has(fake: FakeGuestfish, kinds: Mapping[str, str]) -> None:
    """Let there be these devices, with what is on them."""
    disks = [device for device in kinds if device in ("/dev/sda", "/dev/sdb")]
    volumes = [device for device in kinds if device.startswith("/dev/vg")]
    partitions = [device for device in kinds if device not in (*disks, *volumes)]
    for command, devices in (("list-devices", ["/dev/sda", *disks]), ("lvs", volumes), ("list-partitions", partitions)):
        fake.answer(command, with_="".join(f"{device}\n" for device in devices))
    fake.answer("vfs-type", with_="\n")
    for device, kind in kinds.items():
        fake.answer("vfs-type", device, with_=f"{kind}\n")


def locked(fake: FakeGuestfish) -> None:
    has(fake, PLAIN | {"/dev/sda2": "crypto_LUKS"})


NOT_THERE = FileNotFoundError("mount_ro: No such file or directory")


def test_system_is_mounted_as_it_does(place: Place) -> None:
    place.fake.answer("inspect-os", with_="/dev/vg0/root\n")
    mounts = "/boot: /dev/sda1\n/: /dev/vg0/root\n/home: /dev/sda9\n"
    place.fake.answer("inspect-get-mountpoints", "/dev/vg0/root", with_=mounts)
    place.fake.answer("mount-ro", "/dev/sda9", "/home", with_=OSError("mount exited with status 32"))
    told = place.mounted(None)
    assert told[0] == "('mount-ro', '/dev/vg0/root', '/')"
    assert set(told[1:]) == {"('mount-ro', '/dev/sda1', '/boot')", "('mount-ro', '/dev/sda9', '/home')"}
    assert place.warnings == ["/home of the guest, on vda/9, cannot be mounted: mount exited with status 32."]


def test_several_systems_are_named(place: Place) -> None:
    place.fake.answer("inspect-os", with_="/dev/sda1\n/dev/vg0/root\n")
    place.fake.answer("inspect-get-product-name", "/dev/sda1", with_="Debian 12\n")
    place.fake.answer("inspect-get-product-name", "/dev/vg0/root", with_=OSError("no"))
    with pytest.raises(UnsuitableError, match=r"vda/1 \(Debian 12\), vg0/root \(unknown\)\. .* vda/1:/PATH"):
        place.mounted(None)


def test_without_a_system_the_only_file_system_is_meant(place: Place) -> None:
    with pytest.raises(UnsuitableError, match=r"No operating system is found, .* vda/1 \(ext4\).* as in vda/1:/PATH"):
        place.mounted(None)
    has(place.fake, {"/dev/sda1": "ext4", "/dev/sdb": "vfat", "/dev/sda3": "swap", "/dev/sda2": "LVM2_member"})
    assert place.mounted("vda") == ["('mount-ro', '/dev/sda1', '/')"]
    has(place.fake, {})
    with pytest.raises(UnsuitableError, match=r"on disk vdb, and no file system is found on vda, vdb\.$"):
        place.mounted("vdb")


def test_what_is_named_is_mounted_without_a_search(place: Place) -> None:
    assert place.mounted("vda/1") == ["('mount-ro', '/dev/sda1', '/')"]
    assert place.mounted("vg0/root")[-1] == "('mount-ro', '/dev/vg0/root', '/')"
    assert not any("list-" in line or "inspect" in line for line in place.fake.told())


def test_what_is_not_there_is_answered_with_what_is(place: Place) -> None:
    place.fake.answer("mount-ro", with_=NOT_THERE)
    there = r"vda/1 \(ext4\), vda/3 \(swap\), vdb \(vfat\), vg0/root \(xfs\)\.$"
    with pytest.raises(UnsuitableError, match=rf"There is no file system vda/7 in the backup; .*{there}"):
        place.mounted("vda/7")
    with pytest.raises(UnsuitableError, match=r"file system vdz in the backup, which has the disks vda, vdb; the file"):
        place.mounted("vdz")
    with pytest.raises(UnsuitableError, match=r"vda/3 has no files \(swap\)"):
        place.mounted("vda/3")
    with pytest.raises(UnsuitableError, match=r"vda/1 cannot be mounted: .* It is damaged"):
        place.mounted("vda/1")


def test_encrypted_one_that_is_named_is_unlocked(place: Place) -> None:
    locked(place.fake)
    place.fake.answer("mount-ro", "/dev/sda2", "/", with_=OSError("unknown filesystem type 'crypto_LUKS'"))
    place.fake.answer("mount-ro", "/dev/mapper/vbackup0", "/", with_="")
    assert place.mounted("vda/2")[-1] == "('mount-ro', '/dev/mapper/vbackup0', '/')"
    assert place.asked == [("vda/2", 0)]
    told = place.fake.told()
    at = told.index("('cryptsetup-open', '/dev/sda2', 'vbackup0', 'readonly:true')")
    assert told[at + 1] == repr(b"right\n")
    assert "('lvm-scan', 'true')" in told
    assert "('list-devices',)" not in told


def test_volume_group_in_an_encrypted_one(place: Place) -> None:
    locked(place.fake)
    place.fake.answer("mount-ro", "/dev/vg1/x", "/", with_=NOT_THERE)
    has(place.fake, PLAIN | {"/dev/sda2": "crypto_LUKS", "/dev/vg1/x": "ext4"})
    with pytest.raises(UnsuitableError, match="vg1/x cannot be mounted"):
        place.mounted("vg1/x")
    assert place.asked == []  # it was there
    locked(place.fake)
    place.fake.answer("lvs", with_="/dev/vg0/root\n")
    with pytest.raises(UnsuitableError, match="There is no file system vg1/x"):
        place.mounted("vg1/x")
    assert place.asked == [("vda/2", 0)]


def test_key_is_asked_for_again_and_then_no_more(place: Place) -> None:
    locked(place.fake)
    place.keys = [b"wrong", b"wrong", None]
    place.fake.answer("mount-ro", with_=OSError("crypto_LUKS"))
    place.fake.answer("cryptsetup-open", with_=OSError("No key available with this passphrase."))
    with pytest.raises(UnsuitableError, match=r"The key does not open vda/2 \(crypto_LUKS\)"):
        place.mounted("vda/2")
    assert place.asked == [("vda/2", 0), ("vda/2", 1), ("vda/2", 2)]
    place.keys = [b"right"]
    place.fake.answer("cryptsetup-open", with_=OSError("device-mapper: reload ioctl failed"))
    with pytest.raises(UnsuitableError, match="cannot be unlocked: device-mapper"):
        place.mounted("vda/2")


def test_key_is_not_sent_to_a_guestfish_that_would_take_it_for_a_command(place: Place) -> None:
    locked(place.fake)
    place.fake.answer("help", with_="")
    place.fake.answer("mount-ro", with_=OSError("crypto_LUKS"))
    with pytest.raises(UnsuitableError, match=r"needs libguestfs 1\.44"):
        place.mounted("vda/2")
    assert place.asked == []


def test_no_key_is_asked_for_where_a_system_is_found_without(place: Place) -> None:
    locked(place.fake)
    place.fake.answer("inspect-os", with_="/dev/sda1\n")
    place.fake.answer("inspect-get-mountpoints", "/dev/sda1", with_="/: /dev/sda1\n")
    place.mounted(None)
    assert place.asked == []


def test_search_goes_through_all_file_systems_where_there_is_no_system(place: Place) -> None:
    place.fake.answer("mount-ro", "/dev/sdb", "/", with_=OSError("mount exited with status 32"))
    assert place.searched() == ["vda/1", "vg0/root"]
    assert "vdb cannot be mounted" in place.warnings[0]
    place.fake.answer("inspect-os", with_="/dev/sda1\n")
    place.fake.answer("inspect-get-mountpoints", "/dev/sda1", with_="/: /dev/sda1\n")
    assert place.searched() == [None]
