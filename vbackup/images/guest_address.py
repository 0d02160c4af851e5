"""Name what is in a guest: a path, and where it is: DISK, DISK/PARTITION, VG/LV. Does no I/O.

libguestfs names the disks /dev/sda, /dev/sdb and so on, in the order in which it gets them, and the administrator as
the domain does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vbackup.errors import UnsuitableError, UsageError

_DISK = re.compile(r"/dev/sd([a-z]+)([0-9]*)")
_RAID = re.compile(r"md[0-9]+")
_LETTERS = 26


@dataclass(frozen=True)
class Address:
    """A path of a guest. ``where``: the disk or file system that it is in; None: as the guest mounts them."""

    where: str | None
    path: str

    def __str__(self) -> str:
        return self.path if self.where is None else f"{self.where}:{self.path}"


def parse(text: str) -> Address:
    """Return the address of ``[WHERE:]/PATH``; "WHERE:" is its root directory. Raises UsageError."""
    if "\0" in text:
        raise UsageError("A path cannot have a NUL byte.")
    where, colon, path = text.partition(":")
    if text.startswith("/") or not colon:
        where, path = "", text
        if not path.startswith("/"):
            raise UsageError(
                f"{text!r} is no path in the guest: give /PATH, or DISK:/PATH, DISK/PARTITION:/PATH or VG/LV:/PATH."
            )
    elif not where or where.endswith("/") or not (path == "" or path.startswith("/")):
        raise UsageError(f"{text!r} is no path in the guest: what follows the colon begins with a slash.")
    return Address(where or None, path or "/")


def refuse_unknown_disk(where: str, disks: Collection[str], *, backup_id: str) -> None:
    """Raise UnsuitableError if ``where`` can only be a disk, and the backup has no such disk."""
    if "/" not in where and where not in disks and _RAID.fullmatch(where) is None:
        raise UnsuitableError(f"There is no disk {where} in backup {backup_id}, which has {', '.join(disks)}.")


def device_of(where: str, devs: Sequence[str]) -> str | None:
    """Return libguestfs's name of a device that can be named so, or None if there cannot be such a device."""
    head, slash, tail = where.partition("/")
    if head in devs and not slash:
        return disk_device(devs.index(head))
    if head in devs and tail.isascii() and tail.isdecimal():
        return f"{disk_device(devs.index(head))}{tail}"
    # libguestfs takes /dev/vdb and /dev/hdb for /dev/sdb, whatever disk that is.
    return f"/dev/{where}" if slash or head.startswith("md") else None


def disk_device(number: int) -> str:
    """Return libguestfs's name of the disk with this number, from 0: /dev/sda, ..., /dev/sdz, /dev/sdaa, ..."""
    letters = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, _LETTERS)
        letters = chr(ord("a") + letter) + letters
    return f"/dev/sd{letters}"


def name_of(device: str, devs: Sequence[str]) -> str:
    """Return what the administrator calls a device of libguestfs."""
    match = _DISK.fullmatch(device)
    if match is not None:
        dev = next((dev for number, dev in enumerate(devs) if disk_device(number) == f"/dev/sd{match[1]}"), None)
        if dev is not None:
            return f"{dev}/{match[2]}" if match[2] else dev
    return device.removeprefix("/dev/")


def disk_of(name: str, devs: Sequence[str]) -> str | None:
    """Return the disk that has what is named so, None if several can."""
    head = name.partition("/")[0]
    return head if head in devs else None
