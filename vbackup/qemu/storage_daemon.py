"""A qemu-storage-daemon of our own: QEMU's block layer for the disks of a domain that is off.

It is a Monitor, so that plan, jobs and undo are those of a running domain. QMP goes over a pair of
sockets that only the two processes have: there is nothing to wait for, no directory and no name that
could be left behind. vbackup.domain.source knows which images to open; vbackup.qemu.backing_chain how.
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
from typing import Any

from vbackup.errors import (
    ConnectionLostError,
    FdsNotNeededError,
    StorageDaemonGoneError,
    UnsuitableError,
    VbackupError,
)
from vbackup.model import SecretRef
from vbackup.qemu.backing_chain import Image, blockdevs
from vbackup.qemu.monitor import Event
from vbackup.report import Reporter

PROGRAM = "qemu-storage-daemon"
PROGRAM_PACKAGES = "qemu-utils, before Debian 13 qemu-system-common"
#: How long it may take to store its bitmaps and end, asked by QMP and then by SIGTERM.
END_S, TERMINATE_S = 60.0, 10.0
#: A connection that breaks off is seen a moment before the end of the process is.
ENDING_S = 2.0


class StorageDaemon:
    """A daemon for the length of a block, and its monitor (see vbackup.qemu.monitor.Monitor). A context manager.

    At the end it closes the images, which stores their bitmaps. It is told to end when this process dies, in
    whatever way (PR_SET_PDEATHSIG): SIGTERM, so that it closes them then too. (Only if we are killed before
    setpriv has asked for that, a daemon without images stays.) The kernel watches the thread that enters the
    block, which must therefore be the one that leaves it.

    Raises UnsuitableError where the program is not installed, StorageDaemonGoneError where it ends too early.
    """

    def __init__(self, reporter: Reporter, *, nodes: Sequence[Mapping[str, Any]] = ()) -> None:
        """``nodes`` are opened as it starts (QAPI BlockdevOptions); one that cannot be ends it."""
        self._reporter = reporter
        self._first_nodes = nodes
        self._numbers = itertools.count(1)
        self._secret_ids: dict[SecretRef, str] = {}
        self._chains: dict[str, tuple[str, ...]] = {}
        self._nodes: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> StorageDaemon:
        for program, package in (("setpriv", "util-linux"), (PROGRAM, PROGRAM_PACKAGES)):
            if shutil.which(program) is None:
                raise UnsuitableError(
                    f"{program} is not installed here, but needed to read a domain that is off, and to restore a long"
                    f" chain. Install it (on Debian: {package})."
                )
        with contextlib.ExitStack() as stack:
            self._stderr = stack.enter_context(tempfile.TemporaryFile())
            ours, its = socket.socketpair()
            stack.enter_context(ours)
            with its:
                self._process = self._start(its.fileno())
            stack.callback(self._kill)
            # Imported for a domain that is off only: with qemu.qmp and asyncio it is a fifth of a backup's start.
            from vbackup.qemu.qmp_socket import Socket

            self._socket = Socket(ours, name=PROGRAM)
            try:
                stack.enter_context(self._socket)
            except ConnectionLostError as err:
                self._kill()
                raise self._gone() from err
            self._stack = stack.pop_all()
        return self

    def _start(self, fd: int) -> subprocess.Popen[bytes]:
        """Start the process with ``fd`` as its end of the QMP connection."""
        return subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "TERM", "--", PROGRAM),
                *("--chardev", f"socket,id=qmp,fd={fd},server=off"),
                *("--monitor", "chardev=qmp"),
                *(word for node in self._first_nodes for word in ("--blockdev", json.dumps(node))),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            pass_fds=(fd,),
            start_new_session=True,  # a Ctrl-C of the terminal is for us; the daemon ends when all is undone
        )

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        with self._stack:
            self._end(quiet=kind is not None)

    @property
    def pid(self) -> int:
        """Of the daemon's process."""
        return self._process.pid

    @property
    def chains(self) -> Mapping[str, Sequence[str]]:
        """The nodes of what was opened, by alias, the active image's first (see BlockGraph)."""
        return self._chains

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        """See Monitor. It opens files with our own rights, so it takes no descriptors: FdsNotNeededError."""
        if fd is not None:
            raise FdsNotNeededError(f"{PROGRAM} takes no file descriptors.")
        try:
            return self._socket.execute(command, arguments)
        except ConnectionLostError as err:
            if self._has_ended(within_s=ENDING_S):
                raise self._gone() from err
            raise

    def next_event(self, timeout_s: float) -> Event | None:
        """See Monitor."""
        return self._socket.next_event(timeout_s)

    def open(self, alias: str, images: Sequence[Image], *, secret_value: Callable[[SecretRef], bytes]) -> None:
        """Open a backing chain, the active image for writing; its nodes are then in ``chains``.

        ``secret_value`` gives the passphrases. Raises QmpError where QEMU refuses; what was opened of the chain
        by then stays open until the daemon ends.
        """
        for image in images:
            if image.secret is not None and image.secret not in self._secret_ids:
                self._add_secret(image.secret, secret_value(image.secret))
        nodes = blockdevs(images, numbers=self._numbers, secret_ids=self._secret_ids)
        for node in nodes:
            self.execute("blockdev-add", node)
            self._nodes[node["node-name"]] = node
        self._chains[alias] = tuple(node["node-name"] for node in nodes[::-2])

    @contextlib.contextmanager
    def writable(self, node_name: str) -> Iterator[None]:
        """Have a layer that was opened for reading open for writing while the block runs.

        QEMU stores its bitmaps when it becomes read-only again. Raises QmpError where QEMU refuses either: the
        image is a part of another domain's disk as well, say, or its file system is read-only.
        """
        node = self._nodes[node_name]
        options = [self._nodes[node["file"]], node]
        self.execute("blockdev-reopen", {"options": [{**one, "read-only": False} for one in options]})
        try:
            yield
        finally:
            self.execute("blockdev-reopen", {"options": options})

    def _add_secret(self, secret: SecretRef, value: bytes) -> None:
        """Hand a passphrase over in memory: no command line, log or file system ever has it.

        The daemon reads it from a file without a name, through our own entry in /proc, and the file is gone
        with the reply. (Sent in the command it would be in the log of -v; an inherited descriptor would have
        to be known before the daemon starts, and would stay open in it.)
        """
        secret_id = f"secret-{len(self._secret_ids)}"
        fd = os.memfd_create(secret_id, os.MFD_CLOEXEC)
        try:
            os.write(fd, value)
            arguments = {"qom-type": "secret", "id": secret_id, "file": f"/proc/{os.getpid()}/fd/{fd}"}
            self.execute("object-add", arguments)
        finally:
            os.close(fd)
        self._secret_ids[secret] = secret_id

    def _end(self, *, quiet: bool) -> None:
        """Have it close the images and end, by the mildest means that works."""
        # A reply that is lost is no loss: what counts is that it ends.
        if self._process.poll() is None:
            with contextlib.suppress(VbackupError):
                self._socket.execute("quit")
        if not self._has_ended(within_s=END_S):
            self._process.terminate()
            if not self._has_ended(within_s=TERMINATE_S):
                self._kill()
                self._reporter.warning(f"{PROGRAM} did not end and was killed. {_LOST}")
                return
        if self._process.returncode != 0:  # not by our word
            if not quiet:
                self._reporter.warning(f"{self._gone()} {_LOST}")
            return
        said = self._last_words()
        if said:
            self._reporter.warning(f"{PROGRAM} said when it closed the images: {said}")

    def _kill(self) -> None:
        """The last means; does nothing to a process that has ended.

        One that waits for hanging storage cannot be killed before that answers, and is not waited for.
        """
        self._process.kill()
        self._has_ended(within_s=TERMINATE_S)

    def _has_ended(self, *, within_s: float) -> bool:
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _gone(self) -> StorageDaemonGoneError:
        status: int | None = self._process.returncode
        if status is None:
            how = "did not answer"
        else:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return StorageDaemonGoneError(how, self._last_words())

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        lines = [line for line in lines if _OF_SCRATCH_NODES not in line]
        return lines[-1].removeprefix(f"{PROGRAM}: ") if lines else ""


#: Said of nodes without storage, on which nothing is kept (vbackup.engine.scratch).
_OF_SCRATCH_NODES = "doesn't provide information about the block size"
_LOST = "It could not store the bitmaps of the disks, so the next backup of each is a full."
