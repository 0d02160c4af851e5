"""Run libguestfs's appliance on disks that somebody exports: guestfish, driven by its standard input.

What is in a disk of a guest is not to be trusted. The appliance is a small virtual machine: its kernel mounts the file
systems, never the host's. guestfish runs as a separate program, not as a library: a fault in it ends only that
process. Its standard input is the only way that survives everything: names need no shell, a passphrase is in no
argument list, and if this process dies, guestfish and its QEMU end.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup.errors import ApplianceError, ApplianceRefusedError, UnsuitableError
from vbackup.files import storage_errors
from vbackup.images import scratch
from vbackup.stop import Stop

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

log = logging.getLogger(__name__)

PROGRAM = "guestfish"
#: How long the appliance may take to start: 10 s under TCG, several times that on a busy host, and once to build it.
START_S = 300.0
#: How long a command may take, and how long a stream may have nothing.
COMMAND_S = 300.0
#: How long guestfish may take to end.
END_S = 20.0
#: guestfish reads its commands into 8192 bytes, and takes what is beyond for the next command (rl_gets in fish.c).
MAX_LINE_BYTES = 8000
#: What its double quotes need to have escaped (parse_quoted_string in fish.c): control characters, " and \.
_TO_ESCAPE = re.compile(rb'[\x00-\x1f"\\\x7f]')
#: libguestfs 1.48: "*stdin*:3: libguestfs: error: ...", or without a place; guestfish's own: "guestfish: ...".
_ERROR = re.compile(r"(?:^|(?<=\n))(?:\*stdin\*:\d+: )?(?:libguestfs: error|guestfish): ")
#: What mount(8) says of the kernel's log, which is the appliance's.
_ADVICE = " dmesg(1) may have more information after failed mount system call."
#: What the environment must not change: the sink of messages, the backend, and where its files are.
_NOT_INHERITED = ("LIBGUESTFS_DEBUG", "LIBGUESTFS_TRACE", "LIBGUESTFS_ATTACH_METHOD")
#: Where the user, or vbackup, says that KVM is not to be used.
_SETTINGS = "LIBGUESTFS_BACKEND_SETTINGS"
_KVM = Path("/dev/kvm")


@dataclass(frozen=True)
class Drive:
    """A disk for the appliance: an export of an NBD server on a unix socket, raw and only read."""

    socket: Path
    export: str


class Session:
    """An appliance that runs; ``session`` starts it. Not for several threads."""

    def __init__(
        self, process: subprocess.Popen[bytes], errors: io.BufferedReader, directory: Path, stop: Stop
    ) -> None:
        self._process = process
        self._errors = errors
        self._directory = directory
        self._stop = stop
        self._streams = 0
        self._is_out_of_step = False

    def run(self, *words: str, timeout_s: float = COMMAND_S, secret: bytes | None = None) -> str:
        """Run a command of guestfish and return what it prints; ``words``: its name and its arguments.

        Bytes that are no UTF-8 are surrogates, in arguments and in the answer (os.fsencode). ``secret`` is what the
        command asks for, a line without a line break. Raises ApplianceRefusedError if the command failed,
        ApplianceError if the appliance has ended or does not answer, InterruptedBySignalError.
        """
        with self._sent(words, secret) as reply:
            while not reply.is_complete:
                reply.wait(timeout_s)
        self._raise_error(words, reply)
        return os.fsdecode(bytes(reply.text))

    @contextlib.contextmanager
    def reading(self, *words: str, timeout_s: float = COMMAND_S) -> Iterator[io.BufferedReader]:
        """Run a command and yield what it writes to a file, as a stream; the word "-" stands for that file.

        Raises as ``run``, while the stream is read or at the end of the block. A block that ends early by an error also
        ends the use of the appliance.
        """
        self._streams += 1
        path = self._directory / f"stream{self._streams}"
        os.mkfifo(path, 0o600)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            argv = [os.fspath(path) if word == "-" else word for word in words]
            with self._sent(argv, None) as reply:
                raw = _Stream(fd, reply, timeout_s)
                yield io.BufferedReader(raw, buffer_size=1024 * 1024)
                while raw.readinto(bytearray(1024 * 1024)):
                    pass
            self._raise_error(words, reply)
        finally:
            os.close(fd)
            path.unlink()

    @contextlib.contextmanager
    def _sent(self, words: Sequence[str], secret: bytes | None) -> Iterator[_Reply]:
        """Send a command, and what shows its end: a word that nobody in the guest can know."""
        if self._is_out_of_step:
            raise ApplianceError("libguestfs's appliance cannot be used after a command that did not end.")
        self._is_out_of_step = True
        line = command_line(words)
        log.debug("guestfish: %s", line)
        self._errors.seek(0, os.SEEK_END)
        end = secrets.token_hex(16).encode()
        # With a dash in front guestfish does not exit when the command fails.
        given = b"-%s\n%secho %s\n" % (line, b"" if secret is None else secret + b"\n", end)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the reply says that it has ended
            self._process.stdin.write(given)
            self._process.stdin.flush()
        reply = _Reply(self, end)
        yield reply
        self._is_out_of_step = False

    def _raise_error(self, words: Sequence[str], reply: _Reply) -> None:
        said = self._said()
        log.debug("guestfish: %d bytes, %s", len(reply.text), said)
        first = _ERROR.search(said)
        if first is not None:
            text = " ".join(_ERROR.sub("", said[first.start() :]).split())
            raise ApplianceRefusedError(words[0], text.replace(_ADVICE, ""))

    def _said(self) -> str:
        """Return what was written to standard error since the command was sent."""
        return self._errors.read().decode(errors="backslashreplace").strip()

    def ended(self) -> ApplianceError:
        """Return the error for a guestfish that has ended by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        return ApplianceError(f"libguestfs's appliance ended ({self._said() or 'without a message'}). {_TEST_TOOL}")

    @property
    def stop(self) -> Stop:
        """What asks for the end of the work."""
        return self._stop

    @property
    def stdout(self) -> int:
        """The descriptor that has the replies."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()


class _Reply:
    """What a command prints, until the word that shows its end."""

    def __init__(self, session: Session, end: bytes) -> None:
        self._session = session
        self._end = end + b"\n"
        self.text = bytearray()
        self.is_complete = False

    def wait(self, timeout_s: float, *, fd: int | None = None) -> bool:
        """Wait for more of the reply, or until ``fd`` can be read, and return whether it can.

        Raises ApplianceError if nothing comes in time, or guestfish has ended, InterruptedBySignalError.
        """
        session = self._session
        with session.stop.descriptor() as stopping:
            poll = select.poll()
            for each in (stopping, session.stdout, *(() if fd is None else (fd,))):
                poll.register(each, select.POLLIN)
            found = {number for number, _ in poll.poll(timeout_s * 1000)}
        session.stop.check()
        if not found:
            raise ApplianceError(f"libguestfs's appliance did not answer within {timeout_s:.0f} s. {_TEST_TOOL}")
        if session.stdout in found:
            piece = os.read(session.stdout, 1024 * 1024)
            if not piece:
                raise session.ended()
            self.text += piece
            if self.text.endswith(self._end):
                del self.text[-len(self._end) :]
                self.is_complete = True
        return fd in found


class _Stream(io.RawIOBase):
    """What guestfish writes to a FIFO while a command runs."""

    def __init__(self, fd: int, reply: _Reply, timeout_s: float) -> None:
        self._fd = fd
        self._reply = reply
        self._timeout_s = timeout_s
        self._is_closed_by_writer = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read some bytes; 0 at the end, which is where the command has ended and the FIFO is empty."""
        while True:
            is_complete = self._reply.is_complete
            if not is_complete:
                fd = None if self._is_closed_by_writer else self._fd
                if not self._reply.wait(self._timeout_s, fd=fd):
                    continue
            try:
                length = os.readv(self._fd, [buffer])
            except BlockingIOError:  # the writer is there, but has nothing
                length = 0
            if length or is_complete:
                return length
            self._is_closed_by_writer = True


_TEST_TOOL = "'libguestfs-test-tool' shows whether libguestfs works on this host, and why not."
#: Words of guestfs(3)'s advice, which follow on the cause.
_ADVICE_OF_LAUNCH = re.compile(r"\.? (?=This usually means|Do: |For further information|You can also run|To see full)")
#: How much of libguestfs's words is shown.
_MAX_REASON_CHARACTERS = 300


def refuse_missing() -> None:
    """Raise UnsuitableError if a program is missing."""
    if shutil.which(PROGRAM) is None:
        raise UnsuitableError(
            "guestfish is not installed, but is needed to look into the file systems of a guest. Install it (on Debian:"
            " libguestfs-tools, on Fedora: guestfs-tools)."
        )
    if shutil.which("setpriv") is None:
        raise UnsuitableError("setpriv is not installed, but is needed to run guestfish. Install it: util-linux.")


@contextlib.contextmanager
def session(drives: Sequence[Drive], *, stop: Stop, step: Callable[[str], None] = log.debug) -> Iterator[Session]:
    """Run an appliance with these drives, /dev/sda and so on in this order, while the block runs.

    What it writes to them is gone at the end. The thread that enters the block must leave it. ``step`` gets a sentence
    before what takes long. Where it does not start with KVM, which some virtual machines only seem to have, it is
    started without. Raises UnsuitableError if guestfish is not installed, ApplianceError if the appliance cannot be
    started.
    """
    refuse_missing()
    with contextlib.ExitStack() as stack:
        step("Starting libguestfs's appliance.")
        try:
            opened = stack.enter_context(_launched(drives, stop=stop))
        except ApplianceError as err:
            if not _may_be_kvm() or _unreadable_kernel() is not None:
                raise
            log.debug("with KVM: %s", err)
            step("The appliance does not start with KVM; it is started without, which is slower (force_tcg).")
            opened = stack.enter_context(_launched(drives, stop=stop, is_without_kvm=True))
        yield opened


@contextlib.contextmanager
def _launched(drives: Sequence[Drive], *, stop: Stop, is_without_kvm: bool = False) -> Iterator[Session]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch.directory(Path(tempfile.gettempdir())))
        with storage_errors(f"write to {directory}"):
            # Opened twice: a descriptor that guestfish inherits would share its offset.
            errors_fd = stack.enter_context((directory / "stderr").open("ab"))
            errors = stack.enter_context((directory / "stderr").open("rb"))
        process = _start(directory, errors_fd.fileno(), {_SETTINGS: "force_tcg"} if is_without_kvm else {})
        stack.callback(_end, process)
        opened = Session(process, errors, directory, stop)
        try:
            for drive in drives:
                server = f"server:unix:{drive.socket}"
                opened.run("add-drive", drive.export, "protocol:nbd", server, "format:raw", "readonly:true")
            opened.run("run", timeout_s=START_S)
        except ApplianceRefusedError as err:
            raise ApplianceError(_not_started(err.reason)) from err
        yield opened


def _may_be_kvm() -> bool:
    """Return True if libguestfs chooses KVM; the user has not said otherwise."""
    return _SETTINGS not in os.environ and os.access(_KVM, os.R_OK | os.W_OK)


def _start(directory: Path, stderr: int, more: Mapping[str, str]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    # Without libvirt, which would run the appliance as another user; error messages in English.
    environment |= {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_TMPDIR": os.fspath(directory), "LC_ALL": "C.UTF-8"}
    environment |= more
    # Not in TMPDIR, of which there can be many: it would be built in each.
    environment.setdefault("LIBGUESTFS_CACHEDIR", "/var/tmp")  # noqa: S108 - libguestfs checks the owner
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", "--", PROGRAM, "--keys-from-stdin", "--no-progress-bars"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environment,
        cwd="/",
        start_new_session=True,  # Ctrl-C goes to vbackup only; and all of its processes can be ended by one signal
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End guestfish and its QEMU, and wait for them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what they have written is not wanted
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    _wait_for_pipe(process.stdout.fileno())
    process.stdout.close()
    process.wait()


def _wait_for_pipe(fd: int) -> None:
    """Wait until no process has the other end of the pipe, at most END_S: QEMU and its helpers have inherited it."""
    poll, until = select.poll(), time.monotonic() + END_S
    poll.register(fd, select.POLLIN)
    while (left_s := until - time.monotonic()) > 0 and poll.poll(left_s * 1000) and os.read(fd, 65536):
        pass


def _unreadable_kernel() -> Path | None:
    """Return a kernel if there are some and this user may read none, of which the appliance is made."""
    kernels = [path for path in Path("/boot").glob("vmlinuz*") if path.is_file()]
    return kernels[0] if kernels and not any(os.access(path, os.R_OK) for path in kernels) else None


def _not_started(reason: str) -> str:
    kernel = _unreadable_kernel()
    if kernel is not None:
        return (
            f"libguestfs's appliance cannot be started: this user may not read {kernel}, from which it is made."
            f" As root run: chmod +r {kernel}."
        )
    cause = _ADVICE_OF_LAUNCH.split(reason, maxsplit=1)[0].rstrip(".")
    if len(cause) > _MAX_REASON_CHARACTERS:
        cause = cause[:_MAX_REASON_CHARACTERS].rpartition(" ")[0] + " ..."
        return f"libguestfs's appliance cannot be started: {cause} {_TEST_TOOL}"
    return f"libguestfs's appliance cannot be started: {cause}. {_TEST_TOOL}"


def command_line(words: Iterable[str]) -> bytes:
    """Return the line that guestfish reads as these words, each of which can have any bytes but NUL.

    Raises UnsuitableError if it is longer than guestfish can read.
    """
    name, *arguments = words
    line = b" ".join([name.encode(), *map(_quoted, arguments)])
    if len(line) > MAX_LINE_BYTES:
        raise UnsuitableError(f"A path of {len(line)} bytes is longer than guestfish can take.")
    return line


def word_list(names: Sequence[str]) -> str:
    """Return the word that guestfish reads as a list of these (parse_string_list in its fish.c)."""
    return " ".join(map(_element, names))


def _quoted(word: str) -> bytes:
    data = os.fsencode(word)
    if b"\0" in data:
        raise UnsuitableError("A path cannot have a NUL byte.")
    return b'"%s"' % _TO_ESCAPE.sub(lambda match: b"\\x%02x" % match[0][0], data)


def _element(name: str) -> str:
    """A backslash counts only before a quote; one at the end is put after the closing quote."""
    head = name.rstrip("\\")
    escaped = head.replace("'", "\\'")
    return f"'{escaped}'" + name[len(head) :]
