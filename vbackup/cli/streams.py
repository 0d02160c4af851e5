"""The standard streams of the process: no output that cannot be written decides over what a command does.

A stream can be closed from the start (``>&-``), lie on a full disk, or be a pipe whose reader has gone. What cannot be
written is dropped; ``output_error`` tells the end of the command that it was. Python's own streams would raise in the
middle of the work, and the next file that is opened would get the number of a closed stream: prints would go into it.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDIN, _STDOUT, _STDERR = range(3)


@dataclass
class Result:
    """What the output of a command means."""

    command: str = "vbackup"  #: as it is called, as far as it is known
    is_the_work: bool = True  #: False for a command that changes something: it is done, whatever becomes of its words


def protect() -> None:
    """Open the standard streams that are closed, and let those for output drop what cannot be written.

    Call it first: before anything else is opened.
    """
    _occupy()
    if not sys.stdin:  # None: it was closed
        sys.stdin = os.fdopen(_STDIN, closefd=False)
    # JSON can hold half of a surrogate pair, which cannot be encoded; print it escaped instead of failing.
    sys.stdout, sys.stderr = (
        _stream(fd, present, errors="backslashreplace")
        for fd, present in ((_STDOUT, sys.stdout), (_STDERR, sys.stderr))
    )


def output_error() -> OSError | None:
    """Flush standard output and return why some of it could not be written, None if all of it could."""
    stream = sys.stdout
    try:
        stream.flush()
    except OSError as err:
        return err
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Lossy) else None


def on_standard_error() -> io.TextIOWrapper:
    """Return a text stream on the descriptor of standard error, wherever that leads now."""
    return _stream(_STDERR, sys.stderr, errors="backslashreplace")


class LostOutput(Exception):  # noqa: N818 - no error for the user: vbackup.cli.main says what is to be said
    """What was to be written cannot be, so there is no need to go on."""


class Binary(io.RawIOBase):
    """Standard output for bytes. Unlike the text on it, what cannot be written ends the work: LostOutput."""

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: ReadableBuffer) -> int:
        """Write all of the data, and return its length."""
        buffer = getattr(sys.stdout, "buffer", None)
        size_bytes = memoryview(data).nbytes
        if buffer is not None:
            buffer.write(data)
        if output_error() is not None:
            raise LostOutput
        return size_bytes


def _occupy() -> None:
    """Open the numbers 0 to 2 where they are closed, as gnulib's stdopen does.

    Standard input is opened for writing and standard output for reading, so that their use is still an error (EBADF)
    and not an empty input or a result that nobody misses. What is said on standard error goes nowhere.
    """
    for fd, flags in ((_STDIN, os.O_WRONLY), (_STDOUT, os.O_RDONLY), (_STDERR, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            try:
                opened = os.open(os.devnull, flags)  # the lowest free number, which is this one
            except OSError:  # a root directory without devices
                opened = os.open("/", os.O_RDONLY)
            os.set_inheritable(opened, True)


def _stream(fd: int, present: object, *, errors: str) -> io.TextIOWrapper:
    """Return a text stream on the descriptor, which writes as early as Python's own ``present`` one."""
    at_once = fd == _STDERR or bool(
        getattr(present, "line_buffering", False) or getattr(present, "write_through", False)
    )
    return io.TextIOWrapper(
        io.BufferedWriter(_Lossy(fd, "wb", closefd=False)),
        encoding=getattr(present, "encoding", None),
        errors=errors,
        line_buffering=at_once,
    )


class _Lossy(io.FileIO):
    """A file that takes everything: what cannot be written is dropped."""

    error: OSError | None = None  #: the first one

    def write(self, data: ReadableBuffer) -> int:
        """Write, and return the number of bytes that are done with."""
        size_bytes = memoryview(data).nbytes
        if self.error is not None and self.fileno() == _STDOUT:
            return size_bytes  # a result with a hole in it is worse than one that ends
        try:
            written: int | None = super().write(data)
        except OSError as err:
            written, self.error = None, self.error or err
        if written is None:  # also where the stream does not block, and takes no more now
            self.error = self.error or BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return size_bytes
        return written
