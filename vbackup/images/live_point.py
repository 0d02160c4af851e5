"""Serve the disks of a backup to the QEMU of one domain, on a socket that outlives the daemon that serves it.

The daemon survives this process, and keeps the locks of the backups then: the guest goes on. Whoever takes over ends it
and starts another one on the same path, to which QEMU connects again (vbackup.engine.live_backing).
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

from vbackup.domain.qemu_user import QemuUser
from vbackup.errors import (
    BusyError,
    QmpError,
    StorageDaemonGoneError,
    StorageError,
    UnsuitableError,
    VbackupError,
)
from vbackup.files import storage_errors
from vbackup.images.flatten import Layer
from vbackup.images.opened_point import OpenedPoint
from vbackup.qemu import storage_daemon
from vbackup.qemu.storage_daemon import PROGRAM, Survival
from vbackup.report import Reporter

#: Pause between two attempts to start a daemon.
AGAIN_S = 5.0
#: How long an earlier daemon may take to end.
END_S = 10.0
_UCRED = struct.Struct("3i")
_WAITS = "The guest waits for what is not at home yet."


class Serving(Protocol):
    """Serves the disks of a backup to the QEMU of a domain."""

    @property
    def is_reached(self) -> bool:
        """False if QEMU gets no answer now: to pause the guest would stop all of QEMU then."""

    @property
    def after(self) -> str:
        """What becomes of a guest that cannot be paused, as a sentence."""

    def leave(self) -> None:
        """The guest runs on after the block: let the disks be served on, if that can be."""


class LivePoint:
    """The disks of a backup as exports on a socket. A context manager, whose end removes the socket.

    A daemon that ends by itself is replaced, and QEMU connects to the next one.

    Entering raises what OpenedPoint raises, StorageError if there cannot be such a socket, UnsuitableError if it cannot
    be given to QEMU's user.
    """

    is_reached = True
    after = "Its backup is still served, so its guest can go on."

    def __init__(
        self,
        disks: Mapping[str, Sequence[Layer]],
        path: Path,
        *,
        user: QemuUser,
        locks: Sequence[int] | None,
        reporter: Reporter,
    ) -> None:
        """``user`` is who connects: whom QEMU runs as.

        ``locks`` are descriptors with the locks of the backups, which a daemon that survives this process keeps. None:
        the daemon ends with this process.
        """
        self._disks, self._path, self._user, self._reporter = disks, path, user, reporter
        self._locks = locks
        self._stack = ExitStack()
        self._is_left = False
        self._is_another = False

    def __enter__(self) -> LivePoint:
        self._start()
        self._stopping, self._writing = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="live-point", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._writing)
        self._thread.join()
        os.close(self._stopping)
        if self._is_left:
            self._point.daemon.leave()
        self._stack.__exit__(kind, error, traceback)

    def leave(self) -> None:
        """Let the daemon serve on after the block, as it does when this process dies."""
        self._is_left = True

    def _watch(self) -> None:
        """Start another daemon whenever one has ended, until the block ends.

        In a thread, because a call of libvirt may not return while nobody serves: QEMU's main loop can stand still then
        (QEMU 7.2, a disk with an iothread).
        """
        while True:
            try:
                ending = os.pidfd_open(self._point.daemon.pid)
            except OSError:  # no descriptor is left
                if self._stops_within(AGAIN_S):
                    return
                continue
            try:
                if self._stopping in select.select([ending, self._stopping], [], [])[0]:
                    if self._is_another and self._locks is None:  # it ends with the thread that has started it
                        self._stack.close()
                    return
            finally:
                os.close(ending)
            gone = self._point.daemon.gone(remedy=_WAITS)
            self._stack.__exit__(type(gone), gone, None)  # quietly
            if not self._start_again(gone):
                return
            self._is_another = True
            self._reporter.warning(f"{PROGRAM} {gone.how}: another one serves the backup now.")

    def _start_again(self, gone: StorageDaemonGoneError) -> bool:
        """Return True if another daemon serves, False if the block ends before."""
        while True:
            try:
                self._start()
            except (VbackupError, OSError) as err:  # whatever it is, the guest waits
                self._reporter.warning(f"{gone} Another one does not start: {err} vbackup goes on trying.")
            else:
                return True
            if self._stops_within(AGAIN_S):
                return False

    def _stops_within(self, seconds: float) -> bool:
        return bool(select.select([self._stopping], [], [], seconds)[0])

    def _start(self) -> None:
        with ExitStack() as stack:
            survival = None if self._locks is None else Survival(_mark(self._path), self._locks)
            point = stack.enter_context(OpenedPoint(self._disks, reporter=self._reporter, survival=survival))
            stack.callback(self._remove_socket)
            point.listen(self._path)
            self._give_to_qemu()
            for dev in self._disks:
                try:
                    point.answer_all_queries(dev)
                except QmpError as err:
                    raise UnsuitableError(
                        f"{PROGRAM} has no quorum, without which an error of the repository's storage could become"
                        f" wrong data in the guest ({err.description}); restore without --live."
                    ) from err
                point.export_nbd(dev)
            self._point = point
            self._stack = stack.pop_all()

    def _remove_socket(self) -> None:
        if not self._is_left:
            _unlink(self._path)

    def _give_to_qemu(self) -> None:
        """Let QEMU's user, and nobody else, connect; before there is anything to read."""
        with storage_errors(f"use the socket {self._path}"):
            try:
                self._path.chmod(0o600)
                if self._user.uid != os.geteuid():
                    os.chown(self._path, self._user.uid, self._user.gid)
            except PermissionError as err:
                raise UnsuitableError(
                    f"QEMU runs as user {self._user.uid}, to whom vbackup cannot give the socket {self._path}: run it"
                    " as root."
                ) from err


def end_earlier(path: Path) -> None:
    """End the daemons of a dead run that serve on the socket, or were about to.

    Raises BusyError if another program listens there.
    """
    ours = storage_daemon.survivors(_mark(path))
    listener = _listener(path)
    if listener is not None and listener not in ours:
        raise BusyError(
            f"Process {listener or 'of another container'} listens on {path}, and is none of vbackup; end it."
        )
    for pid in ours:
        with suppress(ProcessLookupError):
            _end(pid)
    _unlink(path)


def _end(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(fd, signum)
            if select.select([fd], [], [], END_S)[0]:
                return
    finally:
        os.close(fd)


def _mark(path: Path) -> str:
    """Return the mark of the daemons that serve on this socket."""
    return f"live-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"


def _listener(path: Path) -> int | None:
    """Return the process that listens on a unix socket, None if nobody does. Raises StorageError."""
    with socket.socket(socket.AF_UNIX) as asking, storage_errors(f"use the socket {path}"):
        asking.settimeout(END_S)
        try:
            asking.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError as err:
            raise StorageError(f"Cannot use the socket {path}: {err.strerror or err}.") from err
        pid, _uid, _gid = _UCRED.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return int(pid)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
