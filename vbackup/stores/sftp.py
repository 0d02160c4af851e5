"""The protocol of SFTP servers (version 3, draft-ietf-secsh-filexfer-02), over a program that carries its bytes.

Requests have numbers, so several threads share one connection, and a transfer keeps many requests under way. Of
OpenSSH's extensions these are used where the server has them: fsync, hard links and larger packets.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from vbackup.errors import StorageError, StoreUnreachableError

_INIT, _VERSION = 1, 2
_OPEN, _CLOSE, _READ, _WRITE, _LSTAT, _FSTAT, _OPENDIR, _READDIR, _REMOVE, _MKDIR, _RMDIR, _REALPATH, _RENAME = (
    3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 18,
)  # fmt: skip
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS = 101, 102, 103, 104, 105
_EXTENDED, _EXTENDED_REPLY = 200, 201
_FLAG_READ, _FLAG_WRITE, _FLAG_CREATE, _FLAG_EXCLUSIVE = 1, 2, 8, 32
_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES, _HAS_EXTENDED = 1, 2, 4, 8, 0x80000000
_FSYNC, _HARDLINK = "fsync@openssh.com", "hardlink@openssh.com"
_LIMITS, _ROOM = "limits@openssh.com", "statvfs@openssh.com"
#: What every server takes in one packet, and the largest that is sent if the server says that it takes more.
_DATA_BYTES, _MAX_DATA_BYTES = 32 * 1024, 255 * 1024
_MAX_PACKET_BYTES = 1024 * 1024
#: Bytes under way in each direction: what a link with 100 ms and 80 MB/s carries.
_WINDOW_BYTES = 8 * 1024 * 1024
_WORDS_BYTES = 4096
#: A server that leaves requests without an answer for so long hangs, also if its host still answers ssh. An fsync on a
#: slow disk takes minutes.
SILENCE_S = 900.0


class Fault(IntEnum):
    """Why a server refuses a request."""

    EOF = 1
    MISSING = 2
    DENIED = 3
    FAILURE = 4  #: anything else, also a name that is taken


class SftpError(Exception):
    """The server refused a request."""

    def __init__(self, fault: int, words: str) -> None:
        self.fault = fault
        super().__init__(words or f"status {fault}")


class _NotSftpError(Exception):
    """What comes is no packet."""


@dataclass(frozen=True)
class Attributes:
    """What a server says of a file; None: it does not say it."""

    size_bytes: int | None
    mode: int | None
    modified: int | None  #: seconds since 1970


class _Reply:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.kind = 0
        self.data = b""


class Sftp:
    """A connection to an SFTP server; can be used from several threads."""

    def __init__(self, argv: Sequence[str], host: str) -> None:
        """Start the program that connects, and agree on the version. Raises StoreUnreachableError with its words."""
        self._host = host
        self._number = 0
        self._waiting: dict[int, _Reply] = {0: _Reply()}  # the answer to the first packet, which has no number
        self._heard_s = time.monotonic()
        self._is_closed = threading.Event()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._lost: StoreUnreachableError | None = None
        self._words: deque[bytes] = deque(maxlen=50)
        try:
            # A session of its own: Ctrl-C asks vbackup to stop, and must not end the connection before that.
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as err:
            raise StoreUnreachableError(host, f"{argv[0]} cannot be started: {err.strerror}") from err
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._to, self._from, self._errors = self._process.stdin, self._process.stdout, self._process.stderr
        self._listener = threading.Thread(target=self._listen, name="ssh-errors", daemon=True)
        self._listener.start()
        self._watch = threading.Thread(target=self._end_if_silent, name="sftp-silence", daemon=True)
        self._watch.start()
        try:
            self._to.write(struct.pack(">IBI", 5, _INIT, 3))
            self._to.flush()
            kind, data = self._packet()
            if kind != _VERSION:
                raise _NotSftpError
        except _NotSftpError:
            self._kill()
            self.close()
            raise StoreUnreachableError(
                host, "it answers with something else than SFTP; does a shell there print text when it starts?"
            ) from None
        except (OSError, EOFError):
            error = self._end()
            self.close()
            raise error from None
        del self._waiting[0]
        self._extensions = _extensions(data[4:])
        self._reader = threading.Thread(target=self._read_replies, name="sftp", daemon=True)
        self._reader.start()
        self._read_bytes, self._write_bytes = self._limits()

    def close(self) -> None:
        """End the connection; requests under way fail."""
        self._is_closed.set()
        with contextlib.suppress(OSError):
            self._to.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        for thread in (self._listener, self._watch, getattr(self, "_reader", None)):
            if thread is not None:
                thread.join(timeout=5)
        for pipe in (self._from, self._errors):
            with contextlib.suppress(OSError):
                pipe.close()

    def _kill(self) -> None:
        """Kill ssh, and what it has started, such as a ProxyCommand."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def can_link(self) -> bool:
        """True if the server can make hard links."""
        return _HARDLINK in self._extensions

    def real_path(self, path: str) -> str:
        """Return the absolute path."""
        fields = _Fields(self._ask(_REALPATH, _text(path), _NAME))
        fields.integer()  # the number of names: one
        return fields.text()

    def status(self, path: str) -> Attributes | None:
        """Return what is at the path, a symbolic link itself; None: nothing."""
        try:
            return _Fields(self._ask(_LSTAT, _text(path), _ATTRS)).attributes()
        except SftpError as err:
            if err.fault == Fault.MISSING:
                return None
            raise

    def names(self, path: str) -> Iterator[tuple[str, Attributes]]:
        """Yield the names in a directory, without "." and "..", and what they are."""
        handle = self._ask(_OPENDIR, _text(path), _HANDLE)
        try:
            while True:
                try:
                    fields = _Fields(self._ask(_READDIR, handle, _NAME))
                except SftpError as err:
                    if err.fault == Fault.EOF:
                        return
                    raise
                for _ in range(fields.integer()):
                    name = fields.text()
                    fields.text()  # a line as of ls -l
                    attributes = fields.attributes()
                    if name not in (".", ".."):
                        yield name, attributes
        finally:
            self._close(handle)

    def make_directory(self, path: str) -> None:
        """Make a directory that only its owner can enter."""
        self._ask(_MKDIR, _text(path) + struct.pack(">II", _HAS_MODE, 0o700), _STATUS)

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""
        self._ask(_RMDIR, _text(path), _STATUS)

    def remove(self, path: str) -> None:
        """Remove a file."""
        self._ask(_REMOVE, _text(path), _STATUS)

    def link(self, path: str, new_path: str) -> None:
        """Give a file a second name that no other has."""
        self._ask(_EXTENDED, _text(_HARDLINK) + _text(path) + _text(new_path), _STATUS)

    def rename(self, path: str, new_path: str) -> None:
        """Rename a file; as the protocol has it, a name that is taken is refused."""
        self._ask(_RENAME, _text(path) + _text(new_path), _STATUS)

    def fsync(self, path: str) -> None:
        """Wait until a file or a directory is on the disk, if the server can do that."""
        if _FSYNC in self._extensions:
            handle = self._open(path, _FLAG_READ)
            try:
                self._ask(_EXTENDED, _text(_FSYNC) + handle, _STATUS)
            finally:
                self._close(handle)

    def room_bytes(self, path: str) -> int | None:
        """Return how much can still be written below a directory; None: the server does not say it."""
        if _ROOM not in self._extensions:
            return None
        fields = _Fields(self._ask(_EXTENDED, _text(_ROOM) + _text(path), _EXTENDED_REPLY))
        fields.long()  # the preferred size of a block
        block_bytes, _, _, available = (fields.long() for _ in range(4))
        return block_bytes * available

    def write_new(self, path: str, pieces: Iterator[bytes]) -> None:
        """Write a file that must not exist yet, and wait until it is on the disk, if the server can do that."""
        handle = self._open(path, _FLAG_WRITE | _FLAG_CREATE | _FLAG_EXCLUSIVE)
        under_way: deque[_Reply] = deque()
        most = max(2, _WINDOW_BYTES // self._write_bytes)
        offset = 0
        try:
            for piece in pieces:
                for start in range(0, len(piece), self._write_bytes):
                    if len(under_way) >= most:
                        self._result(under_way.popleft(), _STATUS)
                    data = piece[start : start + self._write_bytes]
                    header = handle + struct.pack(">QI", offset, len(data))
                    under_way.append(self._send(_WRITE, header, data))
                    offset += len(data)
            while under_way:
                self._result(under_way.popleft(), _STATUS)
            if _FSYNC in self._extensions:
                self._ask(_EXTENDED, _text(_FSYNC) + handle, _STATUS)
        finally:
            self._close(handle)

    def read(
        self, path: str, offset: int, length: int | None, *, check: Callable[[Attributes], None] = lambda found: None
    ) -> Iterator[bytes]:
        """Yield the content of a file from ``offset`` on; SftpError comes before the first piece if there is none.

        ``check`` is called first, with what the file is that was opened, and may raise.
        """
        handle = self._open(path, _FLAG_READ)
        try:
            attributes = _Fields(self._ask(_FSTAT, handle, _ATTRS)).attributes()
            check(attributes)
            size = attributes.size_bytes or 0
            end = size if length is None else min(size, offset + length)
            under_way: deque[tuple[int, int, _Reply]] = deque()
            most = max(2, _WINDOW_BYTES // self._read_bytes)
            at = offset
            while at < end or under_way:
                while at < end and len(under_way) < most:
                    under_way.append(self._ask_for(handle, at, min(self._read_bytes, end - at)))
                    at += min(self._read_bytes, end - at)
                start, wanted, reply = under_way.popleft()
                data = _Fields(self._result(reply, _DATA)).bytes()
                if not data:
                    raise SftpError(Fault.FAILURE, "it became shorter while it was read")
                if len(data) < wanted:  # allowed: the rest is asked for again
                    under_way.appendleft(self._ask_for(handle, start + len(data), wanted - len(data)))
                yield data
        finally:
            self._close(handle)

    def _ask_for(self, handle: bytes, offset: int, length: int) -> tuple[int, int, _Reply]:
        return offset, length, self._send(_READ, handle + struct.pack(">QI", offset, length))

    def _open(self, path: str, flags: int) -> bytes:
        body = _text(path) + struct.pack(">III", flags, _HAS_MODE, 0o600)
        return self._ask(_OPEN, body, _HANDLE)

    def _close(self, handle: bytes) -> None:
        with contextlib.suppress(SftpError, StorageError):
            self._ask(_CLOSE, handle, _STATUS)

    def _limits(self) -> tuple[int, int]:
        """Return the largest data of a read and of a write."""
        if _LIMITS not in self._extensions:
            return _DATA_BYTES, _DATA_BYTES
        try:
            fields = _Fields(self._ask(_EXTENDED, _text(_LIMITS), _EXTENDED_REPLY))
            fields.long()
            read, write = fields.long(), fields.long()
        except SftpError:
            return _DATA_BYTES, _DATA_BYTES
        return tuple(min(limit or _DATA_BYTES, _MAX_DATA_BYTES) for limit in (read, write))  # type: ignore[return-value]

    def _ask(self, kind: int, body: bytes, wanted: int) -> bytes:
        """Send a request and return what its answer has after the number; of a handle, as it is sent again."""
        return self._result(self._send(kind, body), wanted)

    def _send(self, kind: int, body: bytes, data: bytes = b"") -> _Reply:
        reply = _Reply()
        with self._lock:
            if self._lost is not None:
                raise self._lost
            self._number = (self._number + 1) & 0xFFFFFFFF
            number = self._number
            if not self._waiting:
                self._heard_s = time.monotonic()
            self._waiting[number] = reply
        try:
            with self._writing:
                self._to.write(struct.pack(">IBI", 5 + len(body) + len(data), kind, number) + body + data)
                self._to.flush()
        except (OSError, ValueError):
            raise self._end() from None
        return reply

    def _result(self, reply: _Reply, wanted: int) -> bytes:
        reply.done.wait()
        if reply.kind == 0:
            raise self._end()
        if reply.kind == _STATUS:
            fields = _Fields(reply.data)
            fault = fields.integer()
            if fault or wanted != _STATUS:
                raise SftpError(fault, fields.text() if fields.left else "")
        elif reply.kind != wanted:
            raise StorageError(f"The SFTP server of {self._host} answers with what was not asked for.")
        return reply.data

    def _packet(self) -> tuple[int, bytes]:
        header = self._exactly(5)
        length, kind = struct.unpack(">IB", header)
        if not 1 <= length <= _MAX_PACKET_BYTES:
            raise _NotSftpError  # of text, the first letters are the length
        return kind, self._exactly(length - 1)

    def _exactly(self, count: int) -> bytes:
        data = self._from.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def _read_replies(self) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError, struct.error, _NotSftpError):
            while True:
                kind, data = self._packet()
                (number,) = struct.unpack_from(">I", data)
                with self._lock:
                    self._heard_s = time.monotonic()
                    reply = self._waiting.pop(number, None)
                if reply is not None:
                    reply.kind, reply.data = kind, data[4:]
                    reply.done.set()
        self._end()

    def _end_if_silent(self) -> None:
        while not self._is_closed.wait(min(15.0, SILENCE_S / 4)):
            with self._lock:
                if not self._waiting or time.monotonic() - self._heard_s < SILENCE_S:
                    continue
                if self._lost is None:
                    why = f"its SFTP server has not answered for {SILENCE_S / 60:.0f} minutes"
                    self._lost = StoreUnreachableError(self._host, why)
            self._kill()  # who waits for an answer, or to write, gets the error
            return

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in iter(lambda: self._errors.readline(_WORDS_BYTES), b""):
                self._words.append(line)

    def _end(self) -> StoreUnreachableError:
        """Let all requests fail, and return the error with what ssh said."""
        if threading.current_thread() is not self._listener:
            self._listener.join(timeout=2)
        with self._lock:
            if self._lost is None:
                self._lost = StoreUnreachableError(self._host, _said(self._words))
            waiting, self._waiting = self._waiting, {}
        for reply in waiting.values():
            reply.done.set()
        return self._lost


class _Fields:
    """Reads the fields of a packet. One that ends too early is an SftpError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def integer(self) -> int:
        return self._number(">I", 4)

    def long(self) -> int:
        return self._number(">Q", 8)

    def _number(self, form: str, size: int) -> int:
        if self.left < size:
            raise SftpError(Fault.FAILURE, "a packet that ends too early")
        (number,) = struct.unpack_from(form, self._data, self._at)
        self._at += size
        return int(number)

    def bytes(self) -> bytes:
        length = self.integer()
        found = self._data[self._at : self._at + length]
        self._at += length
        return found

    def text(self) -> str:
        return self.bytes().decode(errors="surrogateescape")

    def attributes(self) -> Attributes:
        flags = self.integer()
        size = self.long() if flags & _HAS_SIZE else None
        if flags & _HAS_OWNER:
            self.integer(), self.integer()
        mode = self.integer() if flags & _HAS_MODE else None
        modified = None
        if flags & _HAS_TIMES:
            self.integer()
            modified = self.integer()
        if flags & _HAS_EXTENDED:
            for _ in range(self.integer()):
                self.bytes(), self.bytes()
        return Attributes(size, mode, modified)


def _text(text: str) -> bytes:
    data = text.encode(errors="surrogateescape")
    return struct.pack(">I", len(data)) + data


def _extensions(data: bytes) -> frozenset[str]:
    fields = _Fields(data)
    found = set()
    with contextlib.suppress(SftpError):
        while fields.left:
            found.add(fields.text())
            fields.text()
    return frozenset(found)


def _said(words: Sequence[bytes]) -> str:
    lines = [line.decode(errors="replace").strip() for line in words]
    lines = [line for line in lines if line and not set(line) <= {"@"}]
    if any("REMOTE HOST IDENTIFICATION HAS CHANGED" in line for line in lines):
        return "its host key is not the one that is known, so somebody may be listening in. ssh: " + lines[-1]
    return f"ssh: {lines[-1]}" if lines else "the connection ended"
