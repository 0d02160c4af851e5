"""Files of the host that a domain is on: this one, or a hypervisor that a link leads to."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from vbackup.domain.host import Host
from vbackup.errors import HelperError, LinkLostError, RemoteError, SshError
from vbackup.files import is_missing, open_regular, read_regular

if TYPE_CHECKING:
    from vbackup.remote.link import Link

log = logging.getLogger(__name__)

_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class FileStatus:
    """What shows whether a file has changed."""

    size_bytes: int
    mtime_ns: int


class HostFiles(Protocol):
    """Reads files of a host. All methods raise OSError, and those of another host LinkLostError."""

    def real(self, path: str) -> str:
        """Return the path by which the file is opened: without symbolic links, if that can be found out."""

    def is_missing(self, path: str) -> bool:
        """Return True if there is nothing of that name."""

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """Return the content of a regular file."""

    def read_any(self, path: str, *, max_bytes: int) -> bytes:
        """Return the content of a regular file or a block device."""

    def entries(self, directory: str) -> Mapping[str, bool]:
        """Return the names in a directory in their order, and whether each is one itself."""

    def pieces(self, path: str, *, max_bytes: int) -> Iterator[bytes | FileStatus]:
        """Yield the status of a regular file, its content, and its status again."""


@dataclass(frozen=True)
class FilesHere:
    """Files of this host."""

    def real(self, path: str) -> str:
        """Resolve it."""
        return os.path.realpath(path)

    def is_missing(self, path: str) -> bool:
        """Look for it."""
        return is_missing(Path(path))

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """Read it; a symbolic link is refused."""
        return read_regular(Path(path), max_bytes=max_bytes)

    def read_any(self, path: str, *, max_bytes: int) -> bytes:
        """Read it."""
        if not stat.S_ISBLK(os.lstat(path).st_mode):
            return self.read(path, max_bytes=max_bytes)
        with Path(path).open("rb", buffering=0) as device:
            size_bytes = os.lseek(device.fileno(), 0, os.SEEK_END)
            if size_bytes > max_bytes:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return os.pread(device.fileno(), size_bytes, 0)

    def entries(self, directory: str) -> Mapping[str, bool]:
        """Scan it; a symbolic link is no directory."""
        with os.scandir(directory) as found:
            return {one.name: one.is_dir(follow_symlinks=False) for one in sorted(found, key=lambda one: one.name)}

    def pieces(self, path: str, *, max_bytes: int) -> Iterator[bytes | FileStatus]:
        """Read one descriptor."""
        with os.fdopen(open_regular(os.path.realpath(path)), "rb") as file:
            before = _status(file)
            if before.size_bytes > max_bytes:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            yield before
            left_bytes = before.size_bytes
            while left_bytes and (piece := file.read(min(_PIECE_BYTES, left_bytes))):
                left_bytes -= len(piece)
                yield piece
            yield _status(file)


@dataclass(frozen=True)
class FilesThere:
    """Files of a hypervisor."""

    link: Link

    def real(self, path: str) -> str:
        """Return it as it is: the helper follows symbolic links."""
        return path

    def is_missing(self, path: str) -> bool:
        """Ask for its status."""
        try:
            with _os_errors():
                self.link.stat(path)
        except FileNotFoundError:
            return True
        return False

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """Read it, if it is a regular file; a symbolic link is refused."""
        return self._read(path, max_bytes=max_bytes, kinds=(stat.S_IFREG,), follow=False)

    def read_any(self, path: str, *, max_bytes: int) -> bytes:
        """Read it."""
        return self._read(path, max_bytes=max_bytes, kinds=(stat.S_IFREG, stat.S_IFBLK), follow=True)

    def _read(self, path: str, *, max_bytes: int, kinds: tuple[int, ...], follow: bool) -> bytes:
        data = bytearray()
        with _os_errors():
            if stat.S_IFMT(self.link.stat(path, follow=follow)["mode"]) not in kinds:
                raise OSError(errno.EINVAL, "it is not a regular file")
            for piece in self.link.read_file(path, follow=follow):
                data += piece
                if len(data) > max_bytes:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return bytes(data)

    def entries(self, directory: str) -> Mapping[str, bool]:
        """List it, and ask for the status of each; a symbolic link is no directory."""
        with _os_errors():
            names = self.link.names_in(directory)
            modes = {name: self.link.stat(f"{directory}/{name}", follow=False)["mode"] for name in names}
            return {name: stat.S_ISDIR(mode) for name, mode in modes.items()}

    def pieces(self, path: str, *, max_bytes: int) -> Iterator[bytes | FileStatus]:
        """Read it by its path."""
        with _os_errors():
            before = self._status(path)
            if before.size_bytes > max_bytes:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            yield before
            left_bytes = before.size_bytes
            for piece in self.link.read_file(path):
                left_bytes -= len(piece)
                if left_bytes < 0:  # it grows; or the hypervisor would fill the repository
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                yield piece
            yield self._status(path)

    def _status(self, path: str) -> FileStatus:
        found = self.link.stat(path)
        if not stat.S_ISREG(found["mode"]):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return FileStatus(found["size"], found["mtime_ns"])


def of(host: Host) -> FilesHere | FilesThere | None:
    """Return what reads the host's files; None for another host that no link leads to. Raises LinkLostError."""
    if host.is_local:
        return FilesHere()
    if not host.has_link:
        return None
    try:
        return FilesThere(host.link())
    except (HelperError, SshError) as err:
        log.debug("%s", err)
        return None


def _status(file: BinaryIO) -> FileStatus:
    found = os.fstat(file.fileno())
    return FileStatus(found.st_size, found.st_mtime_ns)


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise OSError for what the helper could not do, as if the file were here."""
    try:
        yield
    except LinkLostError:
        raise
    except RemoteError as err:
        number = err.errno or errno.EIO
        raise OSError(number, os.strerror(number) if err.errno else str(err)) from err
