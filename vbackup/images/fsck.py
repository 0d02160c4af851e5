"""Check the file systems of a guest in libguestfs's appliance, each with the program that is made for it.

The appliance writes to a separate overlay, so a journal can be replayed as the guest would do it after a power cut;
what a check repairs on the way is gone at the end. A check that finds more than that has found damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from vbackup.errors import ApplianceRefusedError
from vbackup.images.appliance import Session

#: How long the check of one file system may take: many hours for one of tens of TiB.
CHECK_S = 24 * 3600.0
#: How much of what a check has said is kept.
KEPT_CHARACTERS = 2000
#: What is no file system, by libblkid's name, and needs no check.
_NOTHING = frozenset(("swap", "LVM2_member", "linux_raid_member", ""))
_ENCRYPTED = frozenset(("crypto_LUKS", "BitLocker"))


class State(Enum):
    """What a check has found."""

    CLEAN = "clean"  #: nothing is wrong, after the replay of a journal
    DAMAGED = "damaged"
    UNCHECKED = "unchecked"  #: there is no check for it, or no key


@dataclass(frozen=True)
class FileSystem:
    """A file system of a guest, and what its check has found."""

    name: str  #: DISK, DISK/PARTITION or VG/LV
    type: str  #: libblkid's: ext4, xfs, vfat, ...
    state: State
    detail: str = ""  #: what the check has said of damage, or why there was none


def check(session: Session, devs: Sequence[str], *, step: Callable[[str], None]) -> list[FileSystem]:
    """Check the file systems on the disks of a session, which are ``devs`` in its order.

    ``step`` gets a sentence before each check. Raises ApplianceError if the appliance ends, InterruptedBySignalError.
    """
    found = []
    for device, kind in _file_systems(session):
        name = _name(device, devs)
        if kind not in _NOTHING:
            step(f"Checking {name} ({kind or 'unknown'}).")
            found.append(_checked(session, name, device, kind))
    return found


def _checked(session: Session, name: str, device: str, kind: str) -> FileSystem:
    checker = _CHECKERS.get(kind)
    if checker is None:
        why = "it is encrypted" if kind in _ENCRYPTED else "vbackup knows no check for it"
        return FileSystem(name, kind, State.UNCHECKED, why)
    group = _GROUPS.get(kind)
    if group is not None and not _has(session, group):
        return FileSystem(name, kind, State.UNCHECKED, f"the part of libguestfs for it is missing here ({group})")
    try:
        fault = checker(session, device)
    except ApplianceRefusedError as err:
        fault = err.reason
    if fault is None:
        return FileSystem(name, kind, State.CLEAN)
    return FileSystem(name, kind, State.DAMAGED, fault[-KEPT_CHARACTERS:])


def _has(session: Session, group: str) -> bool:
    try:
        return session.run("feature-available", group).strip() == "true"
    except ApplianceRefusedError:  # a group that this version does not know
        return False


def _file_systems(session: Session) -> Iterator[tuple[str, str]]:
    """Yield device and type of all file systems, and of what is encrypted, which libguestfs does not list with them."""
    listed = {}
    for line in session.run("list-filesystems").splitlines():
        device, _, kind = line.rpartition(": ")
        if not device.startswith("btrfsvol:"):  # a subvolume is a part of its file system
            listed[device] = kind
    for command in ("list-devices", "list-partitions", "list-lvs"):
        for device in session.run(command).splitlines():
            if device not in listed:
                kind = _type(session, device)
                if kind in _ENCRYPTED:
                    listed[device] = kind
    yield from sorted(listed.items())


def _type(session: Session, device: str) -> str:
    try:
        return session.run("vfs-type", device).strip()
    except ApplianceRefusedError:
        return ""


def _name(device: str, devs: Sequence[str]) -> str:
    """Return what people call a device of the appliance, whose disks are /dev/sda and so on."""
    path = device.removeprefix("/dev/")
    disk = path.rstrip("0123456789")
    for number, dev in enumerate(devs):
        if disk == _disk(number):
            return dev + (f"/{path[len(disk) :]}" if path != disk else "")
    return path


def _disk(number: int) -> str:
    """Return the name of a disk as Linux counts them: sda to sdz, sdaa and so on."""
    letters = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return f"sd{letters}"


# a check returns what is wrong, or None; ApplianceRefusedError is what is wrong, too


def _ext(session: Session, device: str) -> str | None:
    """Replay the journal and look at everything (e2fsck -f -p), which ends with 4 if more than a trifle is wrong."""
    session.run("e2fsck", device, "correct:true", timeout_s=CHECK_S)
    return None


def _xfs(session: Session, device: str) -> str | None:
    """Let the kernel replay the log, which xfs_repair -n would ignore, and look at everything."""
    session.run("mount", device, "/", timeout_s=CHECK_S)
    session.run("umount", "/", timeout_s=CHECK_S)
    status = session.run("xfs-repair", device, "nomodify:true", timeout_s=CHECK_S).strip()
    return None if status == "0" else f"xfs_repair -n has found damage (status {status})"


def _btrfs(session: Session, device: str) -> str | None:
    session.run("btrfs-fsck", device, timeout_s=CHECK_S)
    return None


def _ntfs(session: Session, device: str) -> str | None:
    """Run ntfsresize --info --force, which refuses a file system whose clusters do not add up."""
    session.run("vfs-minimum-size", device, timeout_s=CHECK_S)
    return None


def _fat(session: Session, device: str) -> str | None:
    """Run fsck -a twice: the first one ends with 1 if it only had to clear the mark of a file system in use."""
    for _ in range(2):
        status = session.run("fsck", "vfat", device, timeout_s=CHECK_S).strip()
        if status == "0":
            return None
    return f"fsck.fat has found damage (status {status})"


_CHECKERS = {
    **dict.fromkeys(("ext2", "ext3", "ext4"), _ext),
    "xfs": _xfs,
    "btrfs": _btrfs,
    "ntfs": _ntfs,
    "vfat": _fat,
}
#: Optional parts of libguestfs that a check needs (guestfish feature-available).
_GROUPS = {"xfs": "xfs", "btrfs": "btrfs", "ntfs": "ntfsprogs"}
