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
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from vbackup.errors import LinkLostError, RemoteError, UnsuitableError
from vbackup.process import Process
from vbackup.qemu.storage_daemon import PROGRAM_PACKAGES, DaemonProcess
from vbackup.remote.link import Link

#: How long the daemon may take to accept the connection; its socket listens before it starts.
CONNECT_S = 30.0
#: How long a daemon whose connection has ended may take to end itself, which is its own fault then.
ENDING_S = 2.0
#: What a process counts as killed by whose link is lost: the helper ends it so.
_LOST = -signal.SIGTERM

_NUMBERS = itertools.count(1)


def launch(link: Link, program: str, arguments: Sequence[str] = (), *, directory: Path = Path("/")) -> tuple[int, str]:
    """Start a daemon there; returns its pid and the path of its QMP socket there, which has one client at a time.

    Raises UnsuitableError if it is not installed.
    """
    path = f"{link.directory()}/qmp-{next(_NUMBERS)}"
    argv = [program, "--chardev", "socket,id=qmp,fd={fd},server=on,wait=off", "--monitor", "chardev=qmp"]
    try:
        return link.start([*argv, *arguments], directory=str(directory), listen=path), path
    except RemoteError as err:
        raise UnsuitableError(
            f"{err} A domain that is off, and a restore, need it there (on Debian: {PROGRAM_PACKAGES})."
        ) from err


def _connected(path: Path) -> socket.socket:
    """Return a connection to a unix socket of this host."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(CONNECT_S)
        connection.connect(str(path))
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _secret_file(link: Link, value: bytes) -> Iterator[str]:
    """Yield a file in the helper's directory, in memory as /run is."""
    path = f"{link.directory()}/secret-{next(_NUMBERS)}"
    link.write_file(path, [value])
    try:
        yield path
    finally:
        link.remove_file(path)


class Hypervisor:
    """The host of a link, as a place for one daemon (vbackup.qemu.storage_daemon.Elsewhere)."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._process: RemoteProcess | None = None

    def start(self, program: str, arguments: Sequence[str], *, directory: Path) -> tuple[DaemonProcess, socket.socket]:
        """Start the daemon there, and connect to its monitor."""
        pid, path = launch(self._link, program, arguments, directory=directory)
        self._process = process = RemoteProcess(self._link, pid, monitor=path)
        try:
            connection = _connected(self._link.connect(path))
            try:
                self._refuse_unforwarded(connection, process)
            except BaseException:
                connection.close()
                raise
            return process, connection
        except BaseException:
            process.kill()
            raise

    def _refuse_unforwarded(self, connection: socket.socket, process: RemoteProcess) -> None:
        """Raise ForwardingError if sshd ends the connection before the daemon has said anything, although it runs.

        ssh listens here whatever sshd allows, and learns of a refusal with the first connection only.
        """
        connection.settimeout(CONNECT_S)
        try:
            has_ended = not connection.recv(1, socket.MSG_PEEK)
        except ConnectionError:
            has_ended = True
        except TimeoutError:
            return  # whoever waits for the greeting says so
        finally:
            connection.settimeout(None)
        if has_ended and process.ended(within_s=ENDING_S) is None:
            self._link.refuse_lost()
            raise self._link.unforwarded()

    def words(self) -> str:
        """Return the last that the daemon has said."""
        return "" if self._process is None else self._process.words()

    def secret_file(self, value: bytes) -> AbstractContextManager[str]:
        """Yield a file in the helper's directory."""
        return _secret_file(self._link, value)

    def refuse_lost(self) -> None:
        """Ask the link."""
        self._link.refuse_lost()


class KeptDaemon:
    """A daemon of a hypervisor that another process's link has started, and keeps (storage_daemon.Elsewhere).

    ``monitor``: path of its QMP socket on this host, through that link. ``link`` is one of this process.
    """

    def __init__(self, link: Link, process: Process, monitor: Path) -> None:
        self._link, self._process, self._monitor = link, process, monitor

    def start(self, program: str, arguments: Sequence[str], *, directory: Path) -> tuple[DaemonProcess, socket.socket]:
        """Connect to its monitor: it runs."""
        assert not arguments
        return KeptProcess(self._link, self._process), _connected(self._monitor)

    def words(self) -> str:
        """Return nothing: the other process has its words."""
        return ""

    def secret_file(self, value: bytes) -> AbstractContextManager[str]:
        """Yield a file in the directory of this link's helper, whose user is the daemon's too."""
        return _secret_file(self._link, value)

    def refuse_lost(self) -> None:
        """Ask the link."""
        self._link.refuse_lost()


class RemoteProcess:
    """A process that the helper has started (vbackup.qemu.storage_daemon.DaemonProcess).

    ``monitor``: path of its socket there; when the process has ended, that is not forwarded any more.
    """

    def __init__(self, link: Link, pid: int, *, monitor: str) -> None:
        self._link, self._monitor = link, monitor
        self.pid = pid
        self.returncode: int | None = None
        self._words = ""

    def poll(self) -> int | None:
        """Ask the helper."""
        return self.ended(within_s=0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Let the helper wait."""
        assert timeout is not None
        status = self.ended(within_s=timeout)
        if status is None:
            raise subprocess.TimeoutExpired("the storage daemon", timeout)
        return status

    def ended(self, *, within_s: float) -> int | None:
        """Return how it has ended, None if it has not within that time."""
        if self.returncode is None:
            try:
                ended = self._link.ended(self.pid, within_s=within_s)
            except LinkLostError as err:
                self.returncode, self._words = _LOST, str(err)
            else:
                if ended is not None:
                    self.returncode, self._words = ended.status, ended.stderr
                    self._link.disconnect(self._monitor)
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


class KeptProcess:
    """A process that the helper of another link has started (vbackup.qemu.storage_daemon.DaemonProcess).

    How it has ended is not known: ``returncode`` is None.
    """

    def __init__(self, link: Link, process: Process) -> None:
        self._link, self._process = link, process
        self.pid = process.pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return nothing that would be known."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Let the helper wait. With a link that is lost, nobody can: the other link's helper ends it."""
        assert timeout is not None
        try:
            if not self._link.outlived(self._process, within_s=timeout):
                raise subprocess.TimeoutExpired("the storage daemon", timeout)
        except LinkLostError:
            pass
        return 0

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        with suppress(LinkLostError):
            self._link.signal_process(self._process, signum)
