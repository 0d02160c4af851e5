"""A storage daemon on a hypervisor, under the eyes of the helper: it ends when the link does, however that happens.

Its QMP comes through the link (ssh -L, a unix socket). It would not end by itself when its line is closed, and would
keep the images locked.
"""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vbackup.errors import LinkLostError, RemoteError, UnsuitableError
from vbackup.qemu.storage_daemon import PROGRAM_PACKAGES, DaemonProcess
from vbackup.remote.link import Link

#: How long the daemon may take to accept the connection; its socket listens before it starts.
CONNECT_S = 30.0
#: What a process counts as killed by whose link is lost: the helper ends it so.
_LOST = -signal.SIGTERM

_NUMBERS = itertools.count(1)


class Hypervisor:
    """The host of a link, as a place for one daemon (vbackup.qemu.storage_daemon.Elsewhere)."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._process: RemoteProcess | None = None

    def start(self, program: str, arguments: Sequence[str], *, directory: Path) -> tuple[DaemonProcess, socket.socket]:
        """Start the daemon there, and connect to its monitor."""
        path = f"{self._link.directory()}/qmp-{next(_NUMBERS)}"
        argv = [program, "--chardev", "socket,id=qmp,fd={fd},server=on,wait=off", "--monitor", "chardev=qmp"]
        try:
            pid = self._link.start([*argv, *arguments], directory=str(directory), listen=path)
        except RemoteError as err:
            raise UnsuitableError(
                f"{err} A domain that is off, and a restore, need it there (on Debian: {PROGRAM_PACKAGES})."
            ) from err
        self._process = process = RemoteProcess(self._link, pid)
        try:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(CONNECT_S)
                connection.connect(str(self._link.connect(path)))
                connection.settimeout(None)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            process.kill()
            raise
        return process, connection

    def words(self) -> str:
        """Return the last that the daemon has said."""
        return "" if self._process is None else self._process.words()

    @contextmanager
    def secret_file(self, value: bytes) -> Iterator[str]:
        """Yield a file in the helper's directory, in memory as /run is."""
        path = f"{self._link.directory()}/secret-{next(_NUMBERS)}"
        self._link.write_file(path, [value])
        try:
            yield path
        finally:
            self._link.remove_file(path)

    def refuse_lost(self) -> None:
        """Ask the link."""
        self._link.refuse_lost()


class RemoteProcess:
    """A process that the helper has started (vbackup.qemu.storage_daemon.DaemonProcess)."""

    def __init__(self, link: Link, pid: int) -> None:
        self._link = link
        self.pid = pid
        self.returncode: int | None = None
        self._words = ""

    def poll(self) -> int | None:
        """Ask the helper."""
        return self._ended(within_s=0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Let the helper wait."""
        assert timeout is not None
        status = self._ended(within_s=timeout)
        if status is None:
            raise subprocess.TimeoutExpired("the storage daemon", timeout)
        return status

    def _ended(self, *, within_s: float) -> int | None:
        if self.returncode is None:
            try:
                ended = self._link.ended(self.pid, within_s=within_s)
            except LinkLostError as err:
                self.returncode, self._words = _LOST, str(err)
            else:
                if ended is not None:
                    self.returncode, self._words = ended.status, ended.stderr
        return self.returncode

    def words(self) -> str:
        """Return the last that it has said, if it has ended."""
        self.poll()
        return self._words

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        if self.poll() is None:
            try:
                self._link.signal(self.pid, signum)
            except LinkLostError:
                self.poll()
