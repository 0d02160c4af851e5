"""Find the file systems of a guest in libguestfs's appliance, unlock those that are encrypted, and mount them.

Everything is mounted read-only; what a kernel writes nevertheless, as it replays a journal, is gone at the end. Where
an operating system is found, all of its file systems are mounted as it does; else the one that was named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from vbackup.errors import ApplianceRefusedError, UnsuitableError
from vbackup.images import guest_address
from vbackup.images.appliance import Session

log = logging.getLogger(__name__)

#: What is only a part of something else, or nothing (libblkid's names).
_BELOW = frozenset(("LVM2_member", "linux_raid_member", "isw_raid_member", "ddf_raid_member", ""))
#: What has no files, and what does behind a key.
_WITHOUT_FILES = frozenset(("swap", "swsuspend"))
ENCRYPTED = frozenset(("crypto_LUKS", "BitLocker"))

#: Returns the key of what is named, by the number of the attempt; None if there is no other.
Keys = Callable[[str, int], "bytes | None"]


@dataclass(frozen=True)
class FileSystem:
    """A file system, as the administrator calls it, or what it is encrypted in."""

    name: str  #: DISK, DISK/PARTITION or VG/LV
    device: str  #: libguestfs's
    type: str  #: libblkid's: ext4, xfs, vfat, ...

    @property
    def has_files(self) -> bool:
        """True if it can be mounted."""
        return self.type not in _WITHOUT_FILES and self.type not in ENCRYPTED


class Guest:
    """The file systems on the disks of a session; ``devs`` has their names in its order."""

    def __init__(self, session: Session, devs: Sequence[str], *, keys: Keys, warn: Callable[[str], None]) -> None:
        self.session = session
        self._devs = devs
        self._keys = keys
        self._warn = warn
        self._unlocked: dict[str, str] = {}  # the device that is in what was encrypted, by the name of that

    def file_systems(self) -> list[FileSystem]:
        """Return all file systems, and what is encrypted and not unlocked yet.

        guestfish's list-filesystems takes ten times as long, and leaves out what is encrypted.
        """
        words = (("list-devices",), ("list-partitions",), ("lvs",), ("list-md-devices",))
        devices = dict.fromkeys(line for word in words for line in self.session.run(*word).splitlines())
        found = []
        for device in devices:
            name = self._name(device)
            inside = self._unlocked.get(name, device)
            kind = self._type(inside)
            if kind not in _BELOW:
                found.append(FileSystem(name, inside, kind))
        return sorted(found, key=lambda each: each.name)

    def size_bytes(self, each: FileSystem) -> int:
        """Return the size of its device."""
        return int(self.session.run("blockdev-getsize64", each.device))

    def mount(self, where: str | None) -> None:
        """Mount what is named as "/": a file system, or all of the operating system on a disk, or on all disks (None).

        Raises UnsuitableError, which names what there is, if there is no such thing, if it cannot be mounted, or if its
        key is unknown.
        """
        if where is None or where in self._devs:
            self._mount_system(where)
        else:
            self._mount_named(where)

    def mounts(self, where: str | None) -> Iterator[str | None]:
        """Mount what there is, one after the other, and yield what to name each as; None: as the guest names it.

        That is what ``mount`` mounts, or where there is no operating system all file systems. Raises UnsuitableError.
        """
        if where is not None or self._roots():
            self.mount(where)
            yield where
            return
        self._unlock(self._encrypted())
        if self._roots():
            self.mount(None)
            yield None
            return
        for each in self.file_systems():
            if each.has_files:
                try:
                    self._mount_device(each.name, each.device)
                except UnsuitableError as err:
                    self._warn(str(err))
                    continue
                yield each.name
                self.session.run("umount-all")

    def _mount_system(self, disk: str | None) -> None:
        roots = self._roots()
        if not roots and self._unlock([each for each in self._encrypted() if self._is_on(each, disk)]):
            roots = self._roots()
        if len(roots) > 1:
            named = ", ".join(f"{self._name(root)} ({self._product(root)})" for root in roots)
            raise UnsuitableError(
                f"There are several operating systems: {named}. Say which file system is meant:"
                f" {self._name(roots[0])}:/PATH."
            )
        if roots:
            self._mount_as_system(roots[0])
            return
        there = self.file_systems()
        readable = [each for each in there if each.has_files and self._is_on(each, disk)]
        if len(readable) != 1:
            on = "" if disk is None else f" on disk {disk}"
            example = f" Name one of them, as in {readable[0].name}:/PATH." if readable else ""
            raise UnsuitableError(f"No operating system is found{on}, and {self._described(there)}.{example}")
        self._mount_device(readable[0].name, readable[0].device)

    def _mount_as_system(self, root: str) -> None:
        """Mount the file systems of an operating system where it has them; "/" comes first."""
        mounts = [line.partition(": ") for line in self.session.run("inspect-get-mountpoints", root).splitlines()]
        for place, _, device in sorted(mounts, key=lambda mount: len(mount[0])):
            try:
                self.session.run("mount-ro", device, place)
            except ApplianceRefusedError as err:
                if place == "/":
                    raise _unreadable(self._name(device), err) from err
                self._warn(f"{place} of the guest, on {self._name(device)}, cannot be mounted: {err.reason}.")

    def _mount_named(self, where: str) -> None:
        device = self._unlocked.get(where) or guest_address.device_of(where, self._devs)
        if device is not None and self._is_mounted(device):
            return
        # To list everything takes much longer than to ask for this one.
        kind = "" if device is None or where in self._unlocked else self._type(device)
        if device is not None and kind in ENCRYPTED:
            self._unlock([FileSystem(where, device, kind)])
            if self._is_mounted(self._unlocked[where]):
                return
        there = self.file_systems()
        found = _of_name(there, where)
        if found is None or found.type in ENCRYPTED:
            # What is encrypted itself, or a volume group in it.
            locked = [each for each in there if each.type in ENCRYPTED]
            if self._unlock([found] if found is not None else locked):
                there = self.file_systems()
                found = _of_name(there, where)
        if found is None:
            is_on_disk = guest_address.disk_of(where, self._devs) is not None
            disks = "" if is_on_disk else f", which has the disks {', '.join(self._devs)}"
            raise UnsuitableError(f"There is no file system {where} in the backup{disks}; {self._described(there)}.")
        if not found.has_files:
            raise UnsuitableError(f"{where} has no files ({found.type}); {self._described(there)}.")
        self._mount_device(where, found.device)

    def _is_mounted(self, device: str) -> bool:
        """Try to mount the device as "/", and return whether it is."""
        try:
            self.session.run("mount-ro", device, "/")
        except ApplianceRefusedError as err:
            log.debug("%s: %s", device, err)
            return False
        return True

    def _type(self, device: str) -> str:
        """Return libblkid's word for what is on a device, "" if there is nothing that it knows, or no device."""
        try:
            return self.session.run("vfs-type", device).strip()
        except ApplianceRefusedError as err:
            log.debug("%s: %s", device, err)
            return ""

    def _mount_device(self, name: str, device: str) -> None:
        try:
            self.session.run("mount-ro", device, "/")
        except ApplianceRefusedError as err:
            raise _unreadable(name, err) from err

    def _roots(self) -> list[str]:
        try:
            return self.session.run("inspect-os").splitlines()
        except ApplianceRefusedError as err:
            log.debug("inspection: %s", err)
            return []

    def _product(self, root: str) -> str:
        try:
            return self.session.run("inspect-get-product-name", root).strip()
        except ApplianceRefusedError:
            return "unknown"

    def _encrypted(self) -> list[FileSystem]:
        """Return what is encrypted and not unlocked."""
        return [each for each in self.file_systems() if each.type in ENCRYPTED]

    def _unlock(self, locked: Iterable[FileSystem]) -> bool:
        """Unlock these and return True if there are any. A volume group in one becomes visible."""
        is_any = False
        for each in locked:
            self._open(each)
            is_any = True
        if is_any:
            self.session.run("lvm-scan", "true")
        return is_any

    def _open(self, locked: FileSystem) -> None:
        # A guestfish without this command would take the key for a command.
        if not self.session.run("help", "cryptsetup-open").strip():
            raise UnsuitableError(f"{locked.name} is encrypted, which needs libguestfs 1.44 or later.")
        name = f"vbackup{len(self._unlocked)}"
        attempt = 0
        while True:
            key = self._keys(locked.name, attempt)
            if key is None:
                raise UnsuitableError(f"The key does not open {locked.name} ({locked.type}); give the right one.")
            try:
                self.session.run("cryptsetup-open", locked.device, name, "readonly:true", secret=key)
            except ApplianceRefusedError as err:
                if "No key available" not in err.reason:
                    raise UnsuitableError(f"{locked.name} ({locked.type}) cannot be unlocked: {err.reason}.") from err
                attempt += 1
            else:
                self._unlocked[locked.name] = f"/dev/mapper/{name}"
                return

    def _name(self, device: str) -> str:
        plain = device.removeprefix("btrfsvol:")
        unlocked = (name for name, inside in self._unlocked.items() if inside == plain)
        return next(unlocked, None) or guest_address.name_of(plain, self._devs)

    def _is_on(self, each: FileSystem, disk: str | None) -> bool:
        return disk is None or guest_address.disk_of(each.name, self._devs) in (disk, None)

    def _described(self, there: Sequence[FileSystem]) -> str:
        if not there:
            return f"no file system is found on {', '.join(self._devs)}"
        return f"the file systems are: {', '.join(f'{each.name} ({each.type})' for each in there)}"


def _of_name(there: Iterable[FileSystem], name: str) -> FileSystem | None:
    return next((each for each in there if each.name == name), None)


def _unreadable(name: str, err: ApplianceRefusedError) -> UnsuitableError:
    return UnsuitableError(
        f"The file system {name} cannot be mounted: {err.reason}. It is damaged, or none that libguestfs's appliance"
        " knows."
    )
