"""Run one program of the user's: no shell, little environment, its output line by line, and a deadline.

Its input is a file, so it need not read it; standard output and error are one pipe, whose lines are reported while it
runs. It leads a process group, which is killed as a whole. A process that has left the group, or a child that the
program has left behind, is not waited for.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

log = logging.getLogger(__name__)

#: What the environment of a program has of vbackup's; everything else is set by vbackup.
_INHERITED = ("HOME", "LANG", "LANGUAGE", "LOGNAME", "TZ", "USER", "XDG_RUNTIME_DIR")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: How often to look whether vbackup is asked to stop.
TICK_S = 0.25
#: How long a program may take to end after SIGTERM, and after SIGKILL: one that waits for storage cannot end.
TERM_S, KILL_S = 5.0, 1.0
#: Output beyond these limits is read, so that the program can go on, and not reported.
LINE_BYTES, OUTPUT_BYTES = 2000, 256 * 1024
_PIECE_BYTES = 64 * 1024


class How(Enum):
    """How a program ended."""

    EXITED = "exited"
    KILLED = "killed"  #: by a signal that was not vbackup's
    LATE = "late"  #: killed at its deadline
    NOT_STARTED = "not-started"


@dataclass(frozen=True)
class End:
    """The end of a program."""

    how: How
    duration_s: float
    status: int | None = None  #: exit status, or the number of the signal
    why: str = ""  #: the reason why it was not started
    last_line: str = ""  #: of its output

    @property
    def exit_status(self) -> int | None:
        """Its exit status, None if it did not end by itself."""
        return self.status if self.how is How.EXITED else None

    @property
    def is_good(self) -> bool:
        """True if it ended with exit status 0."""
        return self.exit_status == 0

    def failure(self, *, deadline: str) -> str | None:
        """Return what went wrong, to follow the name of the program; None if nothing did."""
        said = f" (its last line: {self.last_line})" if self.last_line else ""
        if self.how is How.NOT_STARTED:
            return f"could not be started: {self.why}"
        if self.how is How.LATE:
            return f"was killed, since it had not ended {deadline}{said}"
        if self.how is How.KILLED:
            return f"was ended by {_signal_name(self.status or 0)}{said}"
        return None if self.status == 0 else f"ended with exit status {self.status}{said}"


def run(
    path: Path,
    *,
    environment: Mapping[str, str],
    document: bytes,
    deadline: float,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
    term_s: float = TERM_S,
) -> End:
    """Run the program with the document as its input, and return how it ended.

    ``deadline``: on time.monotonic's clock; the group then gets SIGTERM, and SIGKILL ``term_s`` seconds later. ``say``
    receives each line of output, and must not raise. ``check`` is called meanwhile; if it raises, the group is killed
    in the same way.
    """
    begun = time.monotonic()
    output = _Output(say)
    try:
        with _input(document) as given:
            process = subprocess.Popen(
                [os.fspath(path)],
                bufsize=0,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(environment),
                cwd="/",
                start_new_session=True,
            )
    except OSError as err:
        return End(How.NOT_STARTED, time.monotonic() - begun, why=_why(err))
    assert process.stdout is not None
    with process.stdout as pipe, _pidfd(process) as pidfd:
        running = _Running(process, pidfd, pipe.fileno(), output)
        try:
            is_late = not running.follow(deadline, check)
        except BaseException:
            running.kill(term_s)
            raise
        if is_late:
            running.kill(term_s)
        output.end()
    duration_s, status = time.monotonic() - begun, process.poll()
    if is_late or status is None:
        return End(How.LATE, duration_s, last_line=output.last_line)
    if status < 0:
        return End(How.KILLED, duration_s, -status, last_line=output.last_line)
    return End(How.EXITED, duration_s, status, last_line=output.last_line)


#: Processes that SIGKILL has not ended yet. A Popen that is garbage-collected then gives a ResourceWarning.
_LEFT: list[subprocess.Popen[bytes]] = []


class _Running:
    """A process that has been started, and the pipe with its output."""

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int | None, pipe_fd: int, output: _Output) -> None:
        os.set_blocking(pipe_fd, False)
        self._process, self._pidfd, self._pipe_fd, self._output = process, pidfd, pipe_fd, output

    def follow(self, deadline: float, check: Callable[[], None]) -> bool:
        """Report the output until the process ends, and return True; False if the deadline comes first."""
        poll = self._poll()
        poll.register(self._pipe_fd, select.POLLIN)
        while not self._has_ended():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            check()
            ready = dict(poll.poll(_ms(min(left_s, TICK_S))))
            if self._pipe_fd in ready and not self._output.read(self._pipe_fd):
                poll.unregister(self._pipe_fd)
        self._output.drain(self._pipe_fd)
        return True

    def kill(self, term_s: float) -> None:
        """End the process group. The process is not reaped meanwhile, so that no other group can have its number."""
        if term_s:
            self._signal(signal.SIGTERM)
            self._wait(term_s)
        self._signal(signal.SIGKILL)
        self._wait(KILL_S)
        self._output.drain(self._pipe_fd)
        if self._process.poll() is None:
            log.debug("process %d does not end", self._process.pid)
            _LEFT.append(self._process)

    def _signal(self, signum: signal.Signals) -> None:
        with contextlib.suppress(OSError):  # the group has ended, or has processes of other users only
            os.killpg(self._process.pid, signum)

    def _wait(self, timeout_s: float) -> None:
        poll, deadline = self._poll(), time.monotonic() + timeout_s
        while not self._has_ended() and (left_s := deadline - time.monotonic()) > 0:
            poll.poll(_ms(min(left_s, TICK_S)))

    def _poll(self) -> select.poll:
        poll = select.poll()
        if self._pidfd is not None:
            poll.register(self._pidfd, select.POLLIN)
        return poll

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class _Output:
    """The lines of a program's output."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._rest = b""
        self._left_bytes = OUTPUT_BYTES
        self.last_line = ""

    def read(self, fd: int) -> bool:
        """Report the lines that are there; return False at the end of the output."""
        try:
            data = os.read(fd, _PIECE_BYTES)
        except BlockingIOError:
            return True
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._report(line)
        if len(self._rest) > LINE_BYTES:
            self._report(self._rest)
            self._rest = b""
        return bool(data)

    def drain(self, fd: int) -> None:
        """Report what is in the pipe of a program that has ended; a child that it has left behind may write more."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        for _ in range(OUTPUT_BYTES // _PIECE_BYTES):
            if not (poll.poll(0) and self.read(fd)):
                break

    def end(self) -> None:
        """Report a last line that has no end."""
        self._report(self._rest)
        self._rest = b""

    def _report(self, line: bytes) -> None:
        text = line[:LINE_BYTES].decode(errors="replace").strip()
        if not text or self._left_bytes <= 0:
            return
        self.last_line = text
        self._left_bytes -= len(line)
        self._say(text)
        if self._left_bytes <= 0:
            self._say(f"(What it prints after these {OUTPUT_BYTES // 1024} KiB is left out.)")


@contextmanager
def _input(document: bytes) -> Iterator[int]:
    """Yield a file in memory, open at its beginning. Raises OSError."""
    fd = os.memfd_create("vbackup-script", os.MFD_CLOEXEC)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(document)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _pidfd(process: subprocess.Popen[bytes]) -> Iterator[int | None]:
    """Yield a descriptor that poll(2) finds readable when the process ends; None before Linux 5.3."""
    try:
        fd = os.pidfd_open(process.pid)
    except (OSError, AttributeError):
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _environment(members: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith("LC_")}
    return {**inherited, "PATH": _PATH, **{name: value.replace("\0", "") for name, value in members.items()}}


def _why(err: OSError) -> str:
    reason = err.strerror or str(err)
    if err.errno == errno.ENOEXEC:
        return f"{reason}; a script begins with a line such as #!/bin/sh"
    if err.errno == errno.ENOENT:
        return f"{reason}; its first line may name a program that does not exist"
    if err.errno == errno.EACCES:
        return f"{reason}; its filesystem may be mounted noexec"
    return reason


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # of real time


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
