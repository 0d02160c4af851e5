"""Tell what the storage of a repository is and can do: room, locks, shared data, encryption.

Encryption is found where the kernel or the filesystem shows it: dm-crypt below everything that the data lies on, the
flag of fscrypt, ZFS, and filesystems that encrypt what they store in another one. A drive that encrypts by itself, and
what is behind a network filesystem, is not seen.

vbackup.repository.filesystem asks a filesystem what it can do; that needs to write, so where the repository is mounted
read-only it is not known.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vbackup.errors import StorageError
from vbackup.repository import filesystem
from vbackup.repository.repository import Repository

#: Filesystems that encrypt what they store.
_ENCRYPTING = frozenset(("ecryptfs", "fuse.gocryptfs", "fuse.encfs", "fuse.cryfs", "fuse.rclone-crypt"))
#: linux/fs.h: flags of an inode, as lsattr shows them.
_FS_IOC_GETFLAGS, _FS_ENCRYPT_FL = 0x80086601, 0x800
_ZFS_TIMEOUT_S = 10
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Place:
    """The storage of a repository. What is not known is None."""

    filesystem: str | None  #: its type, such as ext4
    free_bytes: int
    size_bytes: int
    locks: bool | None
    reflinks: bool | None
    exchanges: bool | None
    encrypted: bool | None  #: by the filesystem, or by a device below it


def look(repository: Repository) -> Place:
    """Return what the storage of a repository is and can do. Raises StorageError if it cannot be asked at all."""
    try:
        status = os.statvfs(repository.path)
    except OSError as err:
        raise StorageError(f"Cannot ask the filesystem of {repository.path}: {err.strerror or err}.") from err
    try:
        locks = repository.locks()
    except StorageError:
        locks = None
    try:
        able = filesystem.abilities(repository.path)
    except OSError:
        able = None
    mount = _mount_of(repository.path)
    return Place(
        filesystem=mount.kind if mount is not None else None,
        free_bytes=status.f_bavail * status.f_frsize,
        size_bytes=status.f_blocks * status.f_frsize,
        locks=locks,
        reflinks=able.reflinks if able is not None else None,
        exchanges=able.exchanges if able is not None else None,
        encrypted=_is_encrypted(repository.path, mount),
    )


def is_encrypted(path: Path) -> bool | None:
    """Return whether what is written to a directory is stored encrypted; None if that is not known."""
    return _is_encrypted(path, _mount_of(path))


@dataclass(frozen=True)
class _Mount:
    device: str  #: MAJOR:MINOR
    kind: str
    source: str


def _mount_of(path: Path) -> _Mount | None:
    """Return the mount that a path is in: the last of those with the longest path above it."""
    best, best_length = None, -1
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split(" ")
        dash = words.index("-") if "-" in words else len(words)
        if dash + 2 >= len(words):
            continue
        point = Path(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), words[4]))
        if (point == path or point in path.parents) and len(point.parts) >= best_length:
            best, best_length = _Mount(words[2], words[dash + 1], words[dash + 2]), len(point.parts)
    return best


def _is_encrypted(path: Path, mount: _Mount | None) -> bool | None:
    """Return whether the data is stored encrypted; None if that is not known, as on a network filesystem."""
    if mount is None:
        return None
    if mount.kind in _ENCRYPTING or _has_encrypt_flag(path):
        return True
    if mount.kind == "zfs":
        return _is_encrypted_dataset(mount.source)
    device = mount.device
    if device.startswith("0:"):  # btrfs has an anonymous number, and so have filesystems without a device
        try:
            status = Path(mount.source).stat()
        except (OSError, ValueError):
            return None
        if not stat.S_ISBLK(status.st_mode):
            return None
        device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return _is_crypt_device(Path("/sys/dev/block") / device)


def _has_encrypt_flag(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = bytearray(8)
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        return bool(int.from_bytes(flags[:4], "little") & _FS_ENCRYPT_FL)
    except OSError:
        return False
    finally:
        os.close(fd)


def _is_encrypted_dataset(name: str) -> bool | None:
    """Return whether ZFS encrypts a dataset; None if its program is not there, or does not say."""
    argv = ["zfs", "get", "-H", "-o", "value", "encryption", name]
    try:
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=_ZFS_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    value = done.stdout.decode(errors="replace").strip()
    return None if done.returncode != 0 or value in ("", "-") else value != "off"


def _is_crypt_device(device: Path, *, depth: int = 0) -> bool | None:
    """Return whether a device, or each one below it, is made by dm-crypt; None if the kernel does not show it."""
    max_depth = 10
    if depth > max_depth or not device.exists():
        return None
    try:
        if (device / "dm" / "uuid").read_text().startswith("CRYPT-"):
            return True
    except OSError:
        pass
    try:
        whole = device.resolve().parent if (device / "partition").exists() else device  # of a RAID, for example
        below = [*(whole / "slaves").iterdir()]
    except OSError:
        below = []
    if not below:
        return False
    answers = [_is_crypt_device(each, depth=depth + 1) for each in below]
    return None if None in answers and False not in answers else all(answers)
