"""Serve the disks of a backup by NBD on a unix socket: ``vbackup serve``.

One storage daemon serves all of them (vbackup.images.opened_point), for as long as the block runs. Writes, if they are
allowed, go to overlays that have no names: nothing is left of them, however this ends.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vbackup import files
from vbackup.errors import BusyError, StorageError, UsageError
from vbackup.files import storage_errors
from vbackup.images import throwaway
from vbackup.images.flatten import layers_of
from vbackup.images.opened_point import OpenedPoint
from vbackup.model import Backup
from vbackup.report import Reporter
from vbackup.repository import chosen
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: The longest path of a socket: sun_path of sockaddr_un has 108 bytes, the last of which is zero.
MAX_PATH_BYTES = 107


@dataclass(frozen=True)
class ServeRequest:
    """The options of ``vbackup serve``."""

    domain: str  #: name or UUID
    socket: Path
    wanted: Wanted
    overlays: Path | None = None  #: directory of the overlays that take writes; None: the disks are read-only


@dataclass(frozen=True)
class Export:
    """A disk that is served, under its dev."""

    dev: str
    backup_id: str  #: of the backup that it is of
    size_bytes: int
    uri: str


class Served:
    """A backup that is served."""

    def __init__(self, backup: Backup, exports: Mapping[str, Export], point: OpenedPoint) -> None:
        self.backup = backup
        self.exports = exports
        self._point = point

    def wait(self, stop: Stop) -> None:
        """Return when a stop is requested. Raises StorageDaemonGoneError if the daemon ends before."""
        self._point.wait(stop)


@contextmanager
def served(request: ServeRequest, *, repository: Repository, reporter: Reporter, stop: Stop) -> Iterator[Served]:
    """Serve the backup during the block.

    Raises what vbackup.repository.chosen.shown raises, UsageError or
    StorageError if there cannot be a socket of this name, or no overlay, BusyError if another process listens there,
    UnsuitableError if there is no storage daemon, StorageDaemonGoneError if an image cannot be opened.
    """
    path = _socket_path(request.socket)
    repository.refuse_inside(path, *([] if request.overlays is None else [request.overlays]))
    if request.overlays is not None:
        files.refuse_unwritable(request.overlays)
    uuid = repository.find(request.domain)
    with chosen.shown(repository, uuid, request.wanted, reporter=reporter, stop=stop) as found:
        layers = {dev: layers_of(found.paths(repository, dev), repository.served) for dev in found.chains}
        with ExitStack() as stack:
            removal = stack.enter_context(ExitStack())  # when the daemon has ended
            point = stack.enter_context(OpenedPoint(layers, reporter=reporter))
            for dev in layers if request.overlays is not None else ():
                assert request.overlays is not None
                throwaway.take_writes(point, dev, request.overlays)
            point.listen(path)
            removal.callback(_remove, path, path.lstat())
            path.chmod(0o600)  # before there is anything to read, whatever the umask is
            exports = {}
            for dev, one in found.choice.disks.items():
                stop.check()
                point.export_nbd(dev, is_writable=request.overlays is not None)
                exports[dev] = Export(dev, one.id, point.size_bytes(dev), uri(path, dev))
            yield Served(found.backup, exports, point)


def uri(path: Path, dev: str) -> str:
    """Return the address of an export, as qemu-img and libnbd take it."""
    return f"nbd+unix:///{quote(dev)}?socket={quote(os.fspath(path))}"


def _socket_path(path: Path) -> Path:
    """Return the absolute path for the socket: it is free, or has a socket on which nobody listens any more.

    QEMU removes whatever has the name. Raises UsageError, StorageError, BusyError.
    """
    path = path.absolute()
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise UsageError(f"The path of a socket can have {MAX_PATH_BYTES} bytes at most, but {path} is longer.")
    files.refuse_unwritable(path.parent)
    with storage_errors(f"use the socket {path}"):
        if not path.parent.is_dir():
            raise StorageError(f"The directory {path.parent} is missing; create it first.")
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return path
        if not stat.S_ISSOCK(mode):
            raise StorageError(f"{path} already exists and is no socket; give another path.")
        if _is_listening(path):
            raise BusyError(f"Another process listens on {path} already; end it, or give another path.")
    return path


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        error = asking.connect_ex(os.fspath(path))
    return error not in (errno.ECONNREFUSED, errno.ENOENT)  # EAGAIN: its queue is full


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove the socket that the daemon has made, if it has not done that itself.

    It does not if it is killed, and not from QEMU 11.1 on.
    """
    with suppress(OSError):
        if os.path.samestat(path.lstat(), made):
            path.unlink()
