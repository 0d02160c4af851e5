"""Files on which a disk is shown by FUSE: whether this host can do that, what is mounted, who uses it, and its end.

vbackup.images.opened_point mounts. The kernel is asked what is mounted (/proc/self/mountinfo), never a record, and not
the files: they hang where the storage of the repository does, and fail where the storage daemon was killed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from vbackup import files, names, process
from vbackup.errors import BusyError, StorageError, UnsuitableError

#: How much the kernel asks for at once, ahead of a sequential reader.
READ_AHEAD_KIB = 1024
MOUNTINFO = Path("/proc/self/mountinfo")
#: Name of the file that shows a disk.
FILE = re.compile(rf"{names.DEV.pattern}\.raw")
_DEVICE = Path("/dev/fuse")
_HELPER = "fusermount3"
#: umount2(2).
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
#: mountinfo has blanks, tabs, line feeds and backslashes of a path in octal.
_ESCAPE = re.compile(r"\\([0-7]{3})")
_libc = ctypes.CDLL(None, use_errno=True)


def refuse_without_fuse() -> None:
    """Raise UnsuitableError if this user cannot mount anything by FUSE here."""
    if not _DEVICE.exists():
        raise UnsuitableError(
            f"{_DEVICE} is missing, which shows disks as files: load the kernel's module ('modprobe fuse'), or give the"
            " container the device. 'vbackup serve' shows the same disks by NBD without it."
        )
    if not os.access(_DEVICE, os.R_OK | os.W_OK, effective_ids=True):
        raise UnsuitableError(f"{_DEVICE} cannot be opened. {files.why_denied(_DEVICE)}")
    if os.geteuid() != 0 and shutil.which(_HELPER) is None:
        raise UnsuitableError(
            f"{_HELPER} is not installed, and without it only root can mount. Install it (on Debian: fuse3)."
        )


def read_ahead(path: Path) -> None:
    """Let the kernel ask for more of a disk at once, as only root may: one request costs its way through all layers.

    Sequential reading of a chain of 200 is 2.5 times as fast as with 128 KiB, and 1.6 times that of one image; 4 MiB
    changed nothing more, as a request of FUSE has 1 MiB at most (measured).
    """
    device = path.stat().st_dev
    with suppress(OSError):  # not root, or a container without it: it is slower then
        Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(f"{READ_AHEAD_KIB}\n")


def mounted_in(directory: Path) -> list[Path]:
    """Return the files of a directory, a real path, on which a disk is shown by FUSE, alive or not.

    Others may have mounted something there by FUSE as well, which is not ours to unmount.
    """
    found = []
    for line in MOUNTINFO.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        path = Path(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), before.split(" ")[4]))
        if path.parent == directory and FILE.fullmatch(path.name) and after.startswith("fuse"):
            found.append(path)
    return found


def users_of(path: Path) -> list[str]:
    """Return who has the disk open, as far as this user may see it: processes, and loop devices."""
    users = process.having_open(os.fspath(path))
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            name = backing.read_text(errors="surrogateescape").rstrip("\n")
        except OSError:
            continue  # it has just been detached
        if name == os.fspath(path):
            users.append(f"/dev/{backing.parts[3]}")
    return users


def refuse_busy(paths: list[Path]) -> None:
    """Raise BusyError if one of the disks is open."""
    for path in paths:
        users = users_of(path)
        if users:
            raise busy(path, ": " + ", ".join(users))


def busy(path: Path, who: str = "") -> BusyError:
    """Return the error for a disk that somebody reads; ``who`` with a colon in front, "" if that is not known."""
    return BusyError(
        f"{path} is in use{who}. Close it, and detach loop devices ('losetup --detach'), or use --force: whoever reads"
        " it gets errors then."
    )


def unmount(path: Path, *, is_forced: bool) -> None:
    """Unmount what is mounted on the file, if anything is. ``is_forced``: also if somebody has it open.

    Raises BusyError, StorageError.
    """
    number, why = _unmounted(path, is_forced=is_forced)
    if number == 0 or path not in mounted_in(path.parent):
        return
    if number == errno.EBUSY:
        raise busy(path)
    quoted = shlex.quote(os.fspath(path))
    raise StorageError(
        f"Cannot unmount {path}: {why}. Run: fusermount3 -u -z {quoted}, or as root: umount --lazy {quoted}."
    )


def _unmounted(path: Path, *, is_forced: bool) -> tuple[int, str]:
    """Return the number and the text of the error; 0 means success."""
    if os.geteuid() == 0:
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if is_forced else 0)
        if _libc.umount2(os.fsencode(path), flags) == 0:
            return 0, ""
        number = ctypes.get_errno()
        return number, os.strerror(number)
    try:
        done = subprocess.run(
            [_HELPER, "-u", *(["-z"] if is_forced else []), "--", os.fspath(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as err:
        return err.errno or errno.ENOENT, f"{_HELPER} cannot be run: {err.strerror}"
    said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2].removeprefix(f"{_HELPER}: ")
    number = errno.EBUSY if os.strerror(errno.EBUSY) in said else errno.EIO
    return (0, "") if done.returncode == 0 else (number, said or f"{_HELPER} ended with status {done.returncode}")
