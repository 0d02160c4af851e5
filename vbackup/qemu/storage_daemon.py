"""Run a qemu-storage-daemon: QEMU's block layer for the disks of a domain that is off.

It is a Monitor, so plan, jobs and undo are the same as for a running domain. QMP uses a socket pair that only the two
processes have: nothing to wait for, and no directory or name to leave behind. vbackup.domain.source knows which
images to open, vbackup.qemu.backing_chain how.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vbackup.errors import (
    ConnectionLostError,
    FdsNotNeededError,
    LinkLostError,
    QmpError,
    StorageDaemonGoneError,
    UnsuitableError,
    VbackupError,
)
from vbackup.files import storage_errors
from vbackup.model import SecretRef
from vbackup.qemu.backing_chain import Image, blockdevs, is_format_node, reopened
from vbackup.qemu.monitor import Event
from vbackup.report import Reporter

PROGRAM = "qemu-storage-daemon"
PROGRAM_PACKAGES = "qemu-utils, before Debian 13 qemu-system-common"
#: How long the daemon may take to store its bitmaps and end: after QMP quit, and then after SIGTERM.
END_S, TERMINATE_S = 60.0, 10.0
#: How long to wait for the end of the process after its connection broke.
ENDING_S = 2.0


@dataclass(frozen=True)
class Survival:
    """How a daemon survives this process."""

    mark: str  #: finds it again (``survivors``): letters, digits and dashes
    locks: Sequence[int] = ()  #: descriptors whose locks it keeps
    monitor: Path | None = None  #: a QMP socket, by which others can reach it


class DaemonProcess(Protocol):
    """A process, as subprocess.Popen has it."""

    @property
    def pid(self) -> int:
        """Process id on the host where it runs."""

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the signal; None as long as it is not known to have ended."""

    def poll(self) -> int | None:
        """Look whether it has ended, and return its exit status."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


class Elsewhere(Protocol):
    """Another host, on which a daemon can run (vbackup.remote.daemon)."""

    def start(self, program: str, arguments: Sequence[str], *, directory: Path) -> tuple[DaemonProcess, socket.socket]:
        """Start the daemon; returns it with a connected QMP socket. Raises UnsuitableError if it is not installed.

        It ends, and stores its bitmaps, when this process does or the other host cannot be reached any more.
        """

    def words(self) -> str:
        """Return the last that it has said on standard error."""

    def secret_file(self, value: bytes) -> AbstractContextManager[str]:
        """Yield the path, there, of a file with the value that nobody else may read and that goes with the block."""

    def refuse_lost(self) -> None:
        """Raise LinkLostError if that host cannot be reached any more."""


class StorageDaemon:
    """A daemon that runs while the block does, and its monitor (vbackup.qemu.monitor.Monitor). A context manager.

    At the end of the block it closes the images, which stores their bitmaps. If this process dies in any way, the
    kernel sends the daemon SIGTERM (PR_SET_PDEATHSIG), so that it closes them then too. (Only if this process is
    killed before setpriv has requested that, a daemon without images remains.) The kernel watches the thread that
    enters the block, so the same thread must leave it.

    Entering raises UnsuitableError if a program is not installed, StorageDaemonGoneError if the daemon ends too early,
    StorageError if it cannot be started, as when no descriptor or memory is left.
    """

    def __init__(
        self,
        reporter: Reporter,
        *,
        nodes: Sequence[Mapping[str, Any]] = (),
        directory: Path = Path("/"),
        is_only_read: bool = False,
        survival: Survival | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """``nodes`` (QAPI BlockdevOptions) are opened as the daemon starts; if one fails, the daemon ends.

        ``directory`` is its working directory: no name that an image has depends on where vbackup was started.
        ``is_only_read``: nothing is lost if it ends badly, and what it says of its clients is not reported.
        ``survival``: the daemon goes on if this process dies. ``elsewhere``: the host on which it runs, if that is
        not this one; it survives nothing then.
        """
        self._elsewhere = elsewhere
        self._survival = survival
        self._is_left = False
        self._directory = directory
        self._is_only_read = is_only_read
        self._reporter = reporter
        self._first_nodes = nodes
        self._numbers = itertools.count(1)
        self._secret_ids: dict[SecretRef, str] = {}
        self._chains: dict[str, tuple[str, ...]] = {}
        self._nodes: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> StorageDaemon:
        with contextlib.ExitStack() as stack:
            own_end = self._start_there() if self._elsewhere is not None else self._start_here(stack)
            stack.enter_context(own_end)
            stack.callback(self._kill_unless_left)
            # Imported only when needed: with qemu.qmp and asyncio it takes a fifth of vbackup's start-up time.
            from vbackup.qemu.qmp_socket import Socket

            self._socket = Socket(own_end, name=PROGRAM)
            try:
                stack.enter_context(self._socket)
            except ConnectionLostError as err:
                # What it says, and how it ends, is the reason; killed at once, it would seem to be the kill.
                gone = self._gone() if self._has_ended(within_s=ENDING_S) else None
                self._kill()
                self._refuse_lost()
                raise gone or StorageDaemonGoneError("did not answer", self._last_message()) from err
            self._stack = stack.pop_all()
        return self

    def _start_there(self) -> socket.socket:
        """Start the process on the other host; returns the QMP connection."""
        assert self._elsewhere is not None
        self._process, connection = self._elsewhere.start(PROGRAM, self._first_arguments(), directory=self._directory)
        return connection

    def _start_here(self, stack: contextlib.ExitStack) -> socket.socket:
        """Start the process; returns this process's end of the QMP connection."""
        for program, package in (("setpriv", "util-linux"), (PROGRAM, PROGRAM_PACKAGES)):
            if shutil.which(program) is None:
                raise UnsuitableError(
                    f"{program} is not installed, but is needed to read a domain that is off, to restore a long chain"
                    f" and to look into a backup. Install it (on Debian: {package})."
                )
        with storage_errors(f"start {PROGRAM}"):
            self._stderr = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
            own_end, daemon_end = socket.socketpair()
            with daemon_end:
                try:
                    self._process = self._start(daemon_end.fileno())
                except BaseException:
                    own_end.close()
                    raise
        return own_end

    def _first_arguments(self) -> list[str]:
        return [word for node in self._first_nodes for word in ("--blockdev", json.dumps(node))]

    def _start(self, fd: int) -> subprocess.Popen[bytes]:
        """Start the process; ``fd`` is its end of the QMP connection."""
        survival = self._survival
        name = "qmp" if survival is None else survival.mark
        return subprocess.Popen(
            [
                *(("setpriv", "--pdeathsig", "TERM", "--") if survival is None else ()),
                PROGRAM,
                *("--chardev", f"socket,id={name},fd={fd},server=off"),
                *("--monitor", f"chardev={name}"),
                *(() if survival is None or survival.monitor is None else _second_monitor(survival.monitor)),
                *self._first_arguments(),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            pass_fds=(fd, *(survival.locks if survival is not None else ())),
            cwd=self._directory,
            start_new_session=True,  # Ctrl-C goes to vbackup only; the daemon ends after the undo
        )

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        with self._stack:
            if not self._is_left:
                self._end(quiet=kind is not None)

    def leave(self) -> None:
        """Let a daemon that survives this process, or runs elsewhere, survive the end of the block too."""
        self._is_left = True
        if isinstance(self._process, subprocess.Popen):
            _LEFT.append(self._process)

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """True if the process has ended."""
        return self._process.poll() is not None

    @property
    def chains(self) -> Mapping[str, Sequence[str]]:
        """Node names of the opened backing chains by alias, the active image's first (see BlockGraph)."""
        return self._chains

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        """Execute a QMP command. A descriptor raises FdsNotNeededError: the daemon opens files with vbackup's rights.

        Raises StorageDaemonGoneError if the daemon has ended.
        """
        if fd is not None:
            raise FdsNotNeededError(f"{PROGRAM} accepts no file descriptors.")
        try:
            return self._socket.execute(command, arguments)
        except ConnectionLostError as err:
            has_ended = self._has_ended(within_s=ENDING_S)
            self._refuse_lost()  # asked last: the end of a forwarded socket may be noticed first
            if has_ended:
                raise self._gone() from err
            raise

    def next_event(self, timeout_s: float) -> Event | None:
        """Return the next job event of the daemon."""
        return self._socket.next_event(timeout_s)

    def open(
        self,
        alias: str,
        images: Sequence[Image],
        *,
        secret_value: Callable[[SecretRef], bytes],
        read_only: bool = False,
    ) -> None:
        """Open a backing chain, the active image for writing unless ``read_only``, and add its nodes to ``chains``.

        ``secret_value`` returns the passphrase of a secret. Raises QmpError if QEMU refuses to open an image; nothing
        of the chain is open then.
        """
        for image in images:
            if image.secret is not None and image.secret not in self._secret_ids:
                self._add_secret(image.secret, secret_value(image.secret))
        nodes = blockdevs(images, numbers=self._numbers, secret_ids=self._secret_ids, read_only=read_only)
        opened: list[str] = []
        for node in nodes:
            try:
                self.execute("blockdev-add", node)
            except QmpError:
                for name in reversed(opened):
                    self.execute("blockdev-del", {"node-name": name})
                raise
            opened.append(node["node-name"])
            self._nodes[node["node-name"]] = node
        self._chains[alias] = tuple(node["node-name"] for node in reversed(nodes) if is_format_node(node))

    @contextlib.contextmanager
    def writable(self, node_name: str) -> Iterator[None]:
        """Reopen a read-only layer for writing while the block runs (blockdev-reopen).

        QEMU stores its bitmaps when it becomes read-only again. Raises QmpError if QEMU refuses either, for example
        because the image also belongs to another domain's disk, or its filesystem is read-only.
        """
        node = self._nodes[node_name]
        nodes = [*(self._nodes[name] for name in reopened(node)), node]
        self.execute("blockdev-reopen", {"options": [{**options, "read-only": False} for options in nodes]})
        try:
            yield
        finally:
            self.execute("blockdev-reopen", {"options": nodes})

    def store(self, node_name: str) -> None:
        """Make QEMU store what it has in memory of a layer that is open for writing: tables, and bitmaps.

        The layer is reopened as read-only, and for writing again. Unlike closing it, this reports errors: QmpError.
        """
        node = self._nodes[node_name]
        nodes = [*(self._nodes[name] for name in reopened(node)), node]
        self.execute("blockdev-reopen", {"options": [{**options, "read-only": True} for options in nodes]})
        self.execute("blockdev-reopen", {"options": nodes})

    def close(self, alias: str) -> None:
        """Close a backing chain that ``open`` opened. Raises QmpError."""
        names = list(self._chains[alias])
        storage = [child for name in names for child in reopened(self._nodes[name])]
        for name in (*names, *storage):
            self.execute("blockdev-del", {"node-name": name})
            del self._nodes[name]
        del self._chains[alias]

    def _add_secret(self, secret: SecretRef, value: bytes) -> None:
        """Pass a passphrase in memory, so that no command line, log or filesystem contains it.

        The daemon reads it from an unnamed file through this process's /proc entry; the file disappears with the
        reply. (In the command it would be in the log of -v; an inherited descriptor would have to exist before the
        daemon starts, and would stay open in it.)
        """
        secret_id = f"secret-{len(self._secret_ids)}"
        if self._elsewhere is not None:
            with self._elsewhere.secret_file(value) as path:
                self.execute("object-add", {"qom-type": "secret", "id": secret_id, "file": path})
            self._secret_ids[secret] = secret_id
            return
        fd = os.memfd_create(secret_id, os.MFD_CLOEXEC)
        try:
            os.write(fd, value)
            arguments = {"qom-type": "secret", "id": secret_id, "file": f"/proc/{os.getpid()}/fd/{fd}"}
            self.execute("object-add", arguments)
        finally:
            os.close(fd)
        self._secret_ids[secret] = secret_id

    def _end(self, *, quiet: bool) -> None:
        """Make the daemon close the images and end: by QMP quit, SIGTERM, and SIGKILL last."""
        lost = "" if self._is_only_read else f" {_LOST}"
        # Whether the reply arrives does not matter, only that the process ends.
        if self._process.poll() is None:
            with contextlib.suppress(VbackupError):
                self._socket.execute("quit")
        if not self._has_ended(within_s=END_S):
            self._process.terminate()
            if not self._has_ended(within_s=TERMINATE_S):
                self._kill()
                self._reporter.warning(f"{PROGRAM} did not end and was killed.{lost}")
                return
        if self._process.returncode != 0:  # it did not end because of quit
            if not quiet:
                self._reporter.warning(f"{self._end_of_link() or self._gone()}{lost}")
            return
        message = self._last_message()
        if message and not self._is_only_read:
            self._reporter.warning(f"{PROGRAM} reported while closing the images: {message}")

    def _refuse_lost(self) -> None:
        """Raise LinkLostError if the daemon's host cannot be reached: that is what the user is told then."""
        if self._elsewhere is not None:
            self._elsewhere.refuse_lost()

    def _end_of_link(self) -> LinkLostError | None:
        """Return why the daemon's host cannot be reached any more; None if it can, or is this one."""
        try:
            self._refuse_lost()
        except LinkLostError as err:
            return err
        return None

    def _kill_unless_left(self) -> None:
        if not self._is_left:
            self._kill()

    def _kill(self) -> None:
        """Send SIGKILL and wait at most TERMINATE_S seconds; does nothing if the process has ended.

        A process that waits for hanging storage cannot be killed before the storage answers.
        """
        self._process.kill()
        self._has_ended(within_s=TERMINATE_S)

    def _has_ended(self, *, within_s: float) -> bool:
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def gone(self, *, remedy: str) -> StorageDaemonGoneError:
        """Return the error for a daemon that ended by itself; ``remedy``: sentences on what that means."""
        self._has_ended(within_s=ENDING_S)
        err = self._gone()
        return StorageDaemonGoneError(err.how, err.last_words, remedy=remedy)

    def last_words(self) -> str:
        """Return the last line that the daemon, or a program that it ran, wrote on standard error; "" if none."""
        return self._last_message()

    def _gone(self) -> StorageDaemonGoneError:
        status: int | None = self._process.returncode
        if status is None:
            how = "did not answer"
        else:
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        return StorageDaemonGoneError(how, self._last_message())

    def _last_message(self) -> str:
        if self._elsewhere is not None:
            text = self._elsewhere.words()
        else:
            self._stderr.seek(0)
            text = self._stderr.read().decode(errors="replace")
        lines = text.strip().splitlines()
        lines = [line for line in lines if not any(words in line for words in (_OF_SCRATCH_NODES, _OF_CLIENTS))]
        return lines[-1].removeprefix(f"{PROGRAM}: ") if lines else ""


def _second_monitor(path: Path) -> tuple[str, ...]:
    """Return the arguments for a QMP socket that QEMU makes at a path."""
    escaped = os.fspath(path).replace(",", ",,")  # as qemu_opts_parse has it
    return ("--chardev", f"socket,id=control,path={escaped},server=on,wait=off", "--monitor", "chardev=control")


def survivors(mark: str) -> list[int]:
    """Return the pids of the daemons with this mark that run on this host."""
    return [pid for pid, found in marked() if found == mark]


def marked() -> list[tuple[int, str]]:
    """Return pid and mark of the daemons that run on this host and can survive a vbackup."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            words = entry.read_bytes().split(b"\0")
            if words[0].rpartition(b"/")[2] == PROGRAM.encode():
                marks = [word[len(_MARK) :].decode(errors="replace") for word in words if word.startswith(_MARK)]
                found += [(int(entry.parent.name), mark) for mark in marks[:1]]
    return found


#: How the word of a command line begins that ends in the mark.
_MARK = b"chardev="
#: Daemons that go on alone. A Popen that is garbage-collected while its process runs gives a ResourceWarning.
_LEFT: list[subprocess.Popen[bytes]] = []
#: QEMU's warning about nodes without storage, which hold no data (vbackup.engine.scratch).
_OF_SCRATCH_NODES = "doesn't provide information about the block size"
#: Its words about clients that have gone without a goodbye, as with a lost link: they say nothing of images.
_OF_CLIENTS = "Disconnect client, due to: "
_LOST = "It could not store the disks' bitmaps, so the next backup of each disk is a full."
