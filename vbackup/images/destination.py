"""Where the disks of a restore go: each to a file that does not exist yet, to a block device, or to a new volume.

A new file is written in a temporary directory beside its name, and gets that name when the restore is complete. A
restore that is killed leaves the directory, and the lock on a file in it (flock(2)) ends: the next one removes it. A
block device is written as it is: whatever ends the restore then, its old content is gone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vbackup import files
from vbackup.errors import StorageError
from vbackup.files import storage_errors
from vbackup.images import device
from vbackup.model import ImageFormat
from vbackup.qemu.qemu_img import Output
from vbackup.report import Reporter
from vbackup.repository import filesystem
from vbackup.repository.history import Link
from vbackup.stop import Stop

#: A temporary directory, and the file in it that a living restore has locked.
_TEMPORARY, _LOCK = re.compile(r"\.vbackup-[a-z0-9_]{8}"), ".vbackup-lock"
#: What has names of devices only; a file made there by mistake would fill memory.
_DEVICES = Path("/dev")


@dataclass(frozen=True)
class Destination:
    """Where a disk goes."""

    dev: str
    path: Path  #: as the restored domain has it
    image_format: ImageFormat
    output: Output = Output.NEW
    volume: str | None = None  #: name of the volume of a pool that was made for it

    @property
    def is_new(self) -> bool:
        """True if it is a file that the restore makes."""
        return self.output is Output.NEW


def of_path(dev: str, path: Path, image_format: ImageFormat) -> Destination:
    """Return the destination that the user has named: a block device, which is raw then, or a file of that format.

    Raises StorageError for anything else that is there, and if there is no directory for the file.
    """
    path = path.absolute()
    if device.is_block_device(path):
        return Destination(dev, path, ImageFormat.RAW, Output.DEVICE)
    refuse_existing([path], instead="another path")
    directory = Path(os.path.normpath(path.parent))
    if _DEVICES in (directory, *directory.parents):
        raise StorageError(f"Disk {dev}: there is no block device {path}; 'lsblk' lists them.")
    if not path.parent.is_dir():
        raise StorageError(f"Disk {dev}: there is no directory {path.parent}; make it, or give another path.")
    files.refuse_unwritable(path.parent)
    return Destination(dev, path, image_format)


def refuse_existing(paths: Sequence[Path], *, instead: str = "another directory with --output") -> None:
    """Raise StorageError if one of the files exists, be it a symbolic link that leads nowhere, or is there twice."""
    with storage_errors("read the output directory"):
        real_paths = [path.parent.resolve() / path.name for path in paths]
        for number, path in enumerate(real_paths):
            if path in real_paths[:number]:
                raise StorageError(f"Two files would both be {path}; give another path to one of the disks.")
        existing = [os.fspath(path) for path in paths if os.path.lexists(path)]
    if existing:
        raise StorageError(f"{existing[0]} already exists, and vbackup never overwrites files; give {instead}.")


@contextmanager
def claimed(
    destinations: Sequence[Destination], chains: Mapping[str, Sequence[Link]], *, reporter: Reporter, stop: Stop
) -> Iterator[Overwritten]:
    """Hold the block devices among them during the block. Raises BusyError, StorageError (see device.claimed)."""
    with ExitStack() as stack:
        held = {}
        for one in destinations:
            if one.output is Output.DEVICE and one.volume is None:  # a volume is made for the restore
                disk_bytes = chains[one.dev][0].image.virtual_size_bytes
                stack.enter_context(device.claimed(one.dev, one.path, disk_bytes=disk_bytes))
                held[one.dev] = one.path
        yield stack.enter_context(Overwritten(held, reporter, stop))


class Overwritten:
    """Block devices that are overwritten. A context manager: if the restore fails, it says what is not as it was."""

    def __init__(self, devices: Mapping[str, Path], reporter: Reporter, stop: Stop) -> None:
        self._devices, self._reporter, self._stop = devices, reporter, stop
        self._begun: list[str] = []

    def __enter__(self) -> Overwritten:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        for dev in self._begun if kind is not None else ():
            self._reporter.warning(
                f"Disk {dev}: the restore to {self._devices[dev]} did not end. Its old content is lost, and what"
                " is on it now is no restored disk: run the same command again before anything uses it."
            )

    def begin(self, one: Destination, disk_bytes: int) -> None:
        """Begin with a device: what lies behind the end of the disk, which the guest sees too, becomes zeros.

        A volume that was made for the restore needs no claim, and nothing is lost with its old content.
        """
        with storage_errors(f"write {one.path}"):
            size_bytes = device.size_bytes(one.path)
            if one.volume is None:
                self._begun.append(one.dev)
                rest_bytes = size_bytes - disk_bytes
                rest = f"; its last {rest_bytes} bytes, which the disk does not have, become zeros" * bool(rest_bytes)
                self._reporter.step(f"Disk {one.dev}: the content of {one.path} is overwritten{rest}.")
            device.zero(one.path, disk_bytes, size_bytes, check=self._stop.check)


#: Mode of the directories that a restore makes: others can reach a file that they may read, but list nothing.
_DIRECTORY_MODE = 0o711


def make(output: Path) -> None:
    """Create a directory, and missing parents, through which QEMU can reach the images; they keep mode 0600.

    libvirt gives images to the user that QEMU runs as (dynamic_ownership), but it changes no directory.
    """
    missing = [path for path in (output, *output.parents) if not path.exists()]
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        path.chmod(_DIRECTORY_MODE)


@contextmanager
def temporary_directory(output: Path) -> Iterator[Path]:
    """Yield a temporary directory in a directory, which is made if it does not exist.

    It is removed at the end of the block, and so is the directory if it was made here and is still empty. Those that
    dead restores have left there are removed at the begin.
    """
    with storage_errors(f"write to {output}"):
        is_new = not output.exists()
        make(output)
        _remove_dead(output)
        directory = Path(tempfile.mkdtemp(prefix=".vbackup-", dir=output))
    lock = None
    try:
        with storage_errors(f"write to {directory}"):
            lock = _lock(directory)
        yield directory
    finally:
        if lock is not None:
            os.close(lock)  # an SMB server removes nothing that is open
        shutil.rmtree(directory, ignore_errors=True)
        if is_new and not any(output.iterdir()):
            output.rmdir()


def _lock(directory: Path) -> int:
    """Make the lock of a temporary directory, and return its descriptor; it counts from the moment it has content."""
    fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # a filesystem without locks, on which no directory counts as dead
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(fd, b"locked\n")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _remove_dead(output: Path) -> None:
    """Remove the temporary directories of this user whose restore has ended without removing them."""
    for directory in output.iterdir():
        if not _TEMPORARY.fullmatch(directory.name):
            continue
        with suppress(OSError):  # another one removes it
            status = directory.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and _is_dead(directory / _LOCK):
                shutil.rmtree(directory)


def _is_dead(lock: Path) -> bool:
    """Return True if nobody has the lock, and somebody had it. Raises OSError, also if it is locked."""
    fd = files.open_regular(lock, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(fd).st_size > 0
    finally:
        os.close(fd)


def move_out(moves: Sequence[tuple[Path, Path]]) -> None:
    """Move files and directories to the names that they are to have: all or none, and the last one last.

    It gets its name when the others have theirs on storage. Raises StorageError, also if a name was taken meanwhile.
    """
    moved: list[Path] = []
    try:
        with storage_errors(f"write to {moves[-1][1].parent}"):
            for batch in (moves[:-1], moves[-1:]):
                for source, target in batch:
                    refuse_existing([target])
                    filesystem.move(source, target)
                    moved.append(target)
                for directory in dict.fromkeys(target.parent for _, target in batch):
                    files.fsync(directory)
    except BaseException:
        for path in reversed(moved):
            with suppress(OSError):  # which would hide the cause
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        raise
