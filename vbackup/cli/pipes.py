"""Standard input and output as pipes of bytes: a stream is written and read in full, or the command fails.

A pipe that nobody reads must not keep a signal from ending the command, so each wait is also for a request to stop.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from vbackup.api import ReadStream, WriteStream
from vbackup.cli import streams
from vbackup.cli.output import plain
from vbackup.errors import ConsumerGoneError, InterruptedBySignalError, UsageError, VbackupError
from vbackup.files import storage_errors
from vbackup.stop import Stop

_STDIN, _STDOUT, _STDERR = range(3)


@contextmanager
def output(stop: Stop) -> Iterator[WriteStream]:
    """Yield what writes to standard output: all that it gets, or it raises ConsumerGoneError or StorageError.

    If whoever reads goes before anything is written, ``stop`` is requested, and the block ends with ConsumerGoneError
    too: QEMU may copy for hours before there is something to write. Raises UsageError if standard output is a terminal.
    """
    if os.isatty(_STDOUT):
        raise UsageError("A stream is not written to a terminal: send standard output to a pipe or a file.")
    sys.stdout.flush()
    was_blocking = os.get_blocking(_STDOUT)
    is_pipe = _is_pipe(_STDOUT)
    if is_pipe:
        os.set_blocking(_STDOUT, False)

    def write(data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            stop.check()
            with storage_errors("write the stream to standard output"):
                written_bytes = _write_some(left)
            left = left[written_bytes:]
            if not written_bytes:
                _wait(_STDOUT, select.POLLOUT, stop)

    try:
        with _watched(stop) if is_pipe else nullcontext():
            yield write
    except InterruptedBySignalError as err:
        if err.signum == signal.SIGPIPE:
            raise ConsumerGoneError from err
        raise
    finally:
        if is_pipe:
            os.set_blocking(_STDOUT, was_blocking)


@contextmanager
def _watched(stop: Stop) -> Iterator[None]:
    """Request a stop when nobody has the other end of standard output any more."""
    ended, end = os.pipe2(os.O_CLOEXEC)

    def watch() -> None:
        poll = select.poll()
        poll.register(_STDOUT, 0)  # errors are reported anyway
        poll.register(ended, 0)
        if any(fd == _STDOUT for fd, _ in poll.poll()):
            stop.request(signal.SIGPIPE)

    thread = threading.Thread(target=watch, name="pipe", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(end)
        thread.join()
        os.close(ended)


def _write_some(data: memoryview) -> int:
    """Return how much was written; nothing if the pipe is full."""
    try:
        return os.write(_STDOUT, data)
    except BlockingIOError:
        return 0
    except BrokenPipeError as err:
        raise ConsumerGoneError from err


@contextmanager
def given(stop: Stop) -> Iterator[ReadStream]:
    """Yield what reads standard input. Raises UsageError if that is a terminal."""
    if os.isatty(_STDIN):
        raise UsageError("A stream is not typed on a terminal: give it on standard input.")
    buffer = bytearray()

    def read(size_bytes: int) -> bytes:
        nonlocal buffer
        if not buffer:
            _wait(_STDIN, select.POLLIN, stop)
            with storage_errors("read the stream from standard input"):
                buffer = bytearray(os.read(_STDIN, max(size_bytes, select.PIPE_BUF * 16)))
        piece = bytes(buffer[:size_bytes])
        del buffer[:size_bytes]
        return piece

    yield read


@contextmanager
def logged_to(path: Path | None) -> Iterator[None]:
    """Let standard error be the end of this file during the block. Raises StorageError.

    A director can be waiting on the pipe that standard error is, and not read it: nothing may be written there.
    """
    if path is None:
        yield
        return
    with storage_errors(f"write {path}"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    sys.stderr.flush()
    earlier, stream = os.dup(_STDERR), sys.stderr
    os.dup2(fd, _STDERR)
    os.close(fd)
    sys.stderr = streams.on_standard_error()
    try:
        yield
    except VbackupError as err:
        print(f"vbackup: {plain(str(err))}", file=sys.stderr)  # it is printed again where standard error is now
        raise
    finally:
        sys.stderr.flush()
        sys.stderr = stream
        os.dup2(earlier, _STDERR)
        os.close(earlier)


def _is_pipe(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _wait(fd: int, event: int, stop: Stop) -> None:
    """Wait until the descriptor is ready. Raises InterruptedBySignalError."""
    with stop.descriptor() as stopped:
        poll = select.poll()
        poll.register(fd, event)
        poll.register(stopped, select.POLLIN)
        poll.poll()
    stop.check()
