"""Names of what is in a guest, and libguestfs's names of the same."""

from __future__ import annotations

import pytest

from vbackup.errors import UnsuitableError, UsageError
from vbackup.images import guest_address
from vbackup.images.guest_address import Address

DEVS = ("vda", "sdb", "hdc")


@pytest.mark.parametrize(
    ("text", "where", "path"),
    [
        ("/etc/fstab", None, "/etc/fstab"),
        ("/a:b", None, "/a:b"),
        ("vda:/etc", "vda", "/etc"),
        ("vda:", "vda", "/"),
        ("vda/1:/a:/b", "vda/1", "/a:/b"),
        ("vg0/root:/", "vg0/root", "/"),
    ],
)
def test_addresses(text: str, where: str | None, path: str) -> None:
    assert guest_address.parse(text) == Address(where, path)


@pytest.mark.parametrize("text", ["", "etc/fstab", "vda", "vda:etc", ":/etc", "vda/:/etc", "/a\0b"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        guest_address.parse(text)


@pytest.mark.parametrize(
    ("where", "device"),
    [
        ("vda", "/dev/sda"),
        ("hdc/12", "/dev/sdc12"),
        ("sdb", "/dev/sdb"),
        ("vg0/root", "/dev/vg0/root"),
        ("vda/root", "/dev/vda/root"),
        ("md127", "/dev/md127"),
        ("vdb", None),  # libguestfs would take the second disk, which is sdb
        ("sda", None),
    ],
)
def test_device_of_what_is_named(where: str, device: str | None) -> None:
    assert guest_address.device_of(where, DEVS) == device


@pytest.mark.parametrize(
    ("device", "name"),
    [("/dev/sda", "vda"), ("/dev/sdb3", "sdb/3"), ("/dev/vg0/root", "vg0/root"), ("/dev/sdz1", "sdz1")],
)
def test_name_of_a_device(device: str, name: str) -> None:
    assert guest_address.name_of(device, DEVS) == name


def test_disks_beyond_the_alphabet() -> None:
    assert [guest_address.disk_device(number) for number in (0, 25, 26, 701, 702)] == [
        "/dev/sda",
        "/dev/sdz",
        "/dev/sdaa",
        "/dev/sdzz",
        "/dev/sdaaa",
    ]


def test_disk_that_has_something() -> None:
    assert guest_address.disk_of("vda/1", DEVS) == "vda"
    assert guest_address.disk_of("vg0/root", DEVS) is None


def test_only_a_disk_of_the_backup_is_one() -> None:
    for where in ("sdb", "vdz/1", "vg0/root", "md127"):
        guest_address.refuse_unknown_disk(where, DEVS, backup_id="B")
    for where in ("vdz", "md", "mdx", "VDA", "root"):
        with pytest.raises(UnsuitableError, match=f"no disk {where} in backup B, which has vda, sdb, hdc"):
            guest_address.refuse_unknown_disk(where, DEVS, backup_id="B")
