"""Write what comes out of a guest to files: one file, or a tree from a tar archive, which nobody vouches for.

Nothing is written outside of the given directory, whatever the names in the archive are: it is empty and only this user
can enter it, every file is a new one, and symbolic links are made last, so that nothing goes through one.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from vbackup.errors import StorageError, UnsuitableError
from vbackup.files import storage_errors

_PIECE_BYTES = 1024 * 1024
#: Zeros of this length become a hole.
_HOLE_BYTES = 64 * 1024
_ZEROS = bytes(_HOLE_BYTES)
#: What an archive of fifty thousand links holds in memory is small; what a broken one claims is not.
_MAX_NAME_BYTES = 4096


class Attributes(Protocol):
    """What is kept of a file."""

    @property
    def mode(self) -> int:
        """The bits of its mode, with those of its kind or without."""

    @property
    def uid(self) -> int:
        """The number of its owner."""

    @property
    def gid(self) -> int:
        """The number of its group."""


@dataclass(frozen=True)
class Keep:
    """What of a file is kept besides its content."""

    everything: bool  #: owner, mode and times; else a new file of this user
    umask: int  #: of this process

    @property
    def owner(self) -> bool:
        """True if files get their owners, which only root can give them."""
        return self.everything and os.geteuid() == 0

    def mode(self, mode: int) -> int:
        """Return the mode of a file that has this one in the guest."""
        if not self.everything:
            return mode & 0o777 & ~self.umask
        # Set-user-id belongs to the owner that the file had.
        return stat.S_IMODE(mode) if self.owner else mode & 0o777


def current_umask() -> int:
    """Return the umask of this process, from proc(5): asking the kernel for it would change it for all threads."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)


@dataclass
class Unpacked:
    """What was written."""

    files: int = 0
    size_bytes: int = 0
    left_out: list[str] = field(default_factory=list)  #: why each of what was left out was, as a phrase


def write_file(stream: IO[bytes], path: Path, *, check: Callable[[], None]) -> int:
    """Write a new file, with holes for zeros, mode 0600, and return its length. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file:
        length = 0
        while piece := stream.read(_PIECE_BYTES):
            check()
            for start in range(0, len(piece), _HOLE_BYTES):
                part = piece[start : start + _HOLE_BYTES]
                if part == _ZEROS:
                    file.seek(length + len(part))
                else:
                    file.seek(length)
                    _write_all(file, part)
                length += len(part)
        file.truncate(length)
    return length


def _write_all(file: IO[bytes], part: bytes) -> None:
    view = memoryview(part)
    while view:
        view = view[file.write(view) :]


def set_attributes(path: Path, of: Attributes, mtime_ns: int, keep: Keep) -> None:
    """Give a file or a directory what is kept of it. Raises OSError."""
    if keep.owner:
        os.chown(path, of.uid, of.gid, follow_symlinks=False)
    path.chmod(keep.mode(of.mode))
    if keep.everything:
        os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def make_link(path: Path, of: Attributes, mtime_ns: int, target: str, keep: Keep) -> None:
    """Make a symbolic link with what is kept of it. Raises OSError."""
    path.symlink_to(target)
    if keep.owner:
        os.chown(path, of.uid, of.gid, follow_symlinks=False)
    if keep.everything:
        os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def unpack(stream: IO[bytes], directory: Path, *, keep: Keep, check: Callable[[], None]) -> Unpacked:
    """Unpack a tar archive into the empty directory, which gets the attributes of its "."; return what was written.

    Devices, FIFOs and sockets are left out, and what has a name that is no path in the directory. Raises StorageError,
    NoSpaceError, UnsuitableError if it is no tar archive; ``check`` may raise at any member.
    """
    work = _Work(directory, keep, check)
    with storage_errors(f"write to {directory}"), archive_errors():
        for member, content in members(stream):
            check()
            work.add(member, content)
        work.finish()
    return work.done


def members(stream: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Yield each member of an archive, with the content of a file, which has to be read before the next one.

    Run it in ``archive_errors``.
    """
    with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all
            yield member, archive.extractfile(member) if member.isreg() else None


@contextmanager
def archive_errors() -> Iterator[None]:
    """Translate what tarfile raises, also while the content of a member is read, into UnsuitableError."""
    try:
        yield
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as err:
        raise UnsuitableError(f"What libguestfs's appliance gives is no whole tar archive ({err}).") from err


class _Work:
    """An archive that is being unpacked."""

    def __init__(self, directory: Path, keep: Keep, check: Callable[[], None]) -> None:
        self._top = directory
        self._keep = keep
        self._check = check
        self.done = Unpacked()
        self._files: dict[tuple[str, ...], Path] = {}
        self._directories: dict[Path, tarfile.TarInfo] = {}
        self._links: dict[tuple[str, ...], tarfile.TarInfo] = {}

    def add(self, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        """Write a member; symbolic links and the attributes of directories wait until ``finish``."""
        parts = parts_of(member.name)
        if parts is None:
            self._leave_out(member, "its name is no path in this directory")
            return
        try:
            self._add(parts, member, content)
        except OSError as err:
            if err.errno not in (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
                raise
            self._leave_out(member, (err.strerror or str(err)).lower())

    def _add(self, parts: tuple[str, ...], member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        path = self._top.joinpath(*parts)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if member.isdir():
            path.mkdir(mode=0o700, exist_ok=path in self._directories or path == self._top)
            self._directories[path] = member
        elif content is not None:
            self.done.size_bytes += write_file(content, path, check=self._check)
            set_attributes(path, member, _mtime_ns(member), self._keep)
            self._files[parts] = path
        elif member.issym():
            if os.path.lexists(path) or parts in self._links:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._links[parts] = member
        elif member.islnk():
            self._add_hard_link(path, parts, member)
        else:
            self._leave_out(member, "it is a device, a FIFO or a socket")
            return
        self.done.files += 1

    def _add_hard_link(self, path: Path, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        first = parts_of(member.linkname)
        if first in self._links:
            self._links[parts] = self._links[first]
        elif first in self._files:
            os.link(self._files[first], path, follow_symlinks=False)
            self._files[parts] = path
        else:
            self._leave_out(member, "it is a hard link to what is not in this directory")
            self.done.files -= 1

    def finish(self) -> None:
        """Make the symbolic links, and give the directories their attributes, the deepest first."""
        for parts, member in self._links.items():
            path = self._top.joinpath(*parts)
            try:
                make_link(path, member, _mtime_ns(member), member.linkname, self._keep)
            except (FileExistsError, NotADirectoryError):
                self._leave_out(member, "its name is taken by another file of the archive")
        for path, member in sorted(self._directories.items(), key=lambda each: len(each[0].parts), reverse=True):
            set_attributes(path, member, _mtime_ns(member), self._keep)

    def _leave_out(self, member: tarfile.TarInfo, why: str) -> None:
        self.done.left_out.append(f"{member.name[:_MAX_NAME_BYTES]}: {why}")


def parts_of(name: str) -> tuple[str, ...] | None:
    """Return the parts of a relative path, or None if it leads out of its directory, or is none."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    return None if ".." in parts or "\0" in name or name.startswith("/") else parts


def _mtime_ns(member: tarfile.TarInfo) -> int:
    """Return the time, within what every filesystem's calls take."""
    return int(min(max(member.mtime, -(2**33)), 2**33) * 10**9)


def refuse_taken(path: Path) -> None:
    """Raise StorageError if there is something at the path."""
    if os.path.lexists(path):
        raise StorageError(f"{path} already exists, and nothing is overwritten; give another name, or move it away.")
