"""One ssh process with the helper at its other end: requests and replies as lines, and a heartbeat in both directions.

A single thread reads and writes all of the time, so that no request, however slow, delays the heartbeat. When nothing
has come back for a while, or ssh ends, the connection is lost: ssh is killed, so that all forwarded sockets close, and
every request that waits, and every later one, raises LinkLostError.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import queue
import select
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vbackup.errors import HelperError, LinkLostError, RemoteError, SshError
from vbackup.remote import command
from vbackup.remote.host_key import ChangedKey

log = logging.getLogger(__name__)

#: How often the helper gets a sign of life.
BEAT_S = 1.0
#: After how long a silence the helper takes the connection for lost, and while it has a frozen guest to thaw.
SILENCE_S, THAW_SILENCE_S = 10.0, 3.0
#: The same on this side. Replies may queue behind the data of many disks on a slow link, signs of life do not.
REPLY_SILENCE_S = 20.0
#: How long the NBD server behind a forwarded socket may take to greet.
GREETING_S = 10.0
#: How long a vbackup that lives, and only lost its link, has to undo its work in QEMU before the helper does.
GRACE_S = 5.0
#: How long ssh and the helper may take to be there: ssh's own limit, and the login.
HELLO_S = command.CONNECT_S + 15.0
#: How often to look meanwhile whether vbackup is asked to stop.
TICK_S = 0.25
#: How long a request may take that has no limit of its own there.
REQUEST_S = 120.0
#: How long the helper has to undo what is left, and ssh to end.
END_S = 10.0
#: The version of the helper's protocol.
_VERSION = 1
#: What a login script may print before the helper speaks, and how much of standard error is kept.
_NOISE_BYTES, _WORDS_BYTES = 64 * 1024, 16 * 1024
#: The longest message: what a program there may print (OUTPUT_BYTES of the helper) in base64, with room for the rest.
#: A hypervisor that sends more, without an end of the line, would otherwise fill the memory of this host.
LINE_BYTES = 96 * 1024 * 1024
#: The exit status of ssh if it was ssh that failed, and not what it ran.
_SSH_FAILED = 255


class Connection:
    """A running helper; ``argv`` is the command line of ssh, ``host`` what the hypervisor is called in messages."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        host: str,
        try_first: str,
        changed_key: Callable[[str], ChangedKey | None] = lambda _said: None,
    ) -> None:
        """``changed_key``: finds in what ssh says that the host key has changed."""
        self.host = host
        self._try_first, self._changed_key = try_first, changed_key
        self._wake_r, self._wake_w = os.pipe()
        for fd in (self._wake_r, self._wake_w):
            os.set_blocking(fd, False)
        self._out: collections.deque[bytes] = collections.deque()
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[Mapping[str, Any] | None]] = {}
        self._number = 0
        self._lost: str | None = None
        self._is_closing = False
        self._words = b""
        self.thawed: set[str] = set()  #: UUIDs of the domains that the helper has thawed
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C goes to vbackup only, which needs the connection to undo its work
            )
        except OSError as err:
            self._close_pipe()
            raise SshError(host, f"{argv[0]}: {err.strerror}", try_first=try_first) from err
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        self._in_fd, self._out_fd, self._err_fd = (
            stream.fileno()
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr)
            if stream is not None
        )
        self._thread = threading.Thread(target=self._run, name=f"ssh-{host}", daemon=True)
        self._poll = select.poll()
        for fd in (self._out_fd, self._err_fd, self._wake_r):
            self._poll.register(fd, select.POLLIN)
        self._heard = time.monotonic()
        self._rest = bytearray()
        self._searched = 0  #: how much of the rest is known to have no end of a line

    # Begin and end

    def begin(self, libvirt: str, *, check: Callable[[], None]) -> Mapping[str, Any]:
        """Start the helper; returns what it says of itself.

        ``libvirt``: the URI of its libvirt. ``check`` raises to give up.

        Raises SshError if ssh cannot connect, HelperError if the helper cannot run there.
        """
        self._out += [command.packed(source()), json.dumps(orders(libvirt)).encode() + b"\n"]
        deadline = time.monotonic() + HELLO_S
        noise = b""
        try:
            while True:
                check()
                self._step(TICK_S)
                for line in self._lines(most=_NOISE_BYTES):
                    hello = _hello(line)
                    if hello is not None:
                        self._thread.start()
                        return hello
                    noise = line
                if self._lost is not None or time.monotonic() > deadline:
                    raise self._not_begun(noise)
        except BaseException:
            self._kill()
            self._close_streams()
            raise

    def _not_begun(self, noise: bytes) -> SshError | HelperError:
        """Return the error; ``noise``: the last line that came in place of the helper's."""
        if self._lost is None:
            return HelperError(self.host, f"it did not start within {HELLO_S:.0f} s")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        while self._read(self._err_fd):
            pass
        status = self._process.returncode
        if status == _SSH_FAILED:
            key = self._changed_key(self._words.decode(errors="replace"))
            if key is not None:
                return SshError(self.host, key.reason, try_first=self._try_first, remedy=key.remedy)
            return SshError(self.host, self.words(), try_first=self._try_first)
        said = self.words() or (bytes(self._rest) or noise).decode(errors="replace").strip()[-200:]
        return HelperError(self.host, f"it ended with status {status}" + (f": {said}" if said else ""))

    def words(self) -> str:
        """Return the last that ssh, or a program there, has said on standard error."""
        lines = [line.strip() for line in self._words.decode(errors="replace").splitlines()]
        return " ".join(line for line in lines if line and not line.startswith("@"))[-400:]

    def close(self) -> None:
        """Say goodbye, and wait until the helper has undone what is left; closing twice is fine."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._lost is None:
            self._send({"do": "bye"})
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S if self._lost is None else 0)
        self._kill()
        self._lose("is closed")
        self._wake()
        self._thread.join(END_S)
        self._close_streams()

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _close_streams(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with suppress(OSError):
                stream.close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        with self._lock:  # whoever still wakes the thread must not write to a file that gets the number next
            pipe, self._wake_r, self._wake_w = (self._wake_r, self._wake_w), -1, -1
        for fd in pipe:
            with suppress(OSError):
                os.close(fd)

    # Requests

    @property
    def is_lost(self) -> bool:
        """True once the connection is known to be lost, or is closed."""
        return self._lost is not None

    def refuse_lost(self) -> None:
        """Raise LinkLostError if the connection is lost."""
        if self._lost is not None:
            raise LinkLostError(self.host, self._lost)

    def call(self, do: str, *, what: str, timeout_s: float = REQUEST_S, **parameters: Any) -> Any:
        """Send a request and return its reply; ``what`` completes "vbackup could not ...". Any thread may call this.

        Raises LinkLostError, RemoteError.
        """
        replies: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        with self._lock:
            self.refuse_lost()
            self._number += 1
            number = self._number
            self._waiting[number] = replies
        try:
            self._send({"id": number, "do": do, **parameters})
            reply = replies.get(timeout=timeout_s)
        except queue.Empty:
            raise RemoteError(self.host, what, f"there was no answer within {timeout_s:.0f} s") from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if reply is None:
            self.refuse_lost()
            raise LinkLostError(self.host, "is closed")
        error = reply.get("error")
        if error is None:
            return reply.get("return")
        if not isinstance(error, dict) or not isinstance(error.get("errno"), int):
            raise RemoteError(self.host, what, f"what came back is no answer of vbackup's helper: {error!r:.100}")
        raise RemoteError(self.host, what, str(error.get("text")), errno=error["errno"])

    def _send(self, message: Mapping[str, Any]) -> None:
        self._out.append(json.dumps(message).encode() + b"\n")
        self._wake()

    def _wake(self) -> None:
        with self._lock, suppress(OSError):  # it is full, which wakes too, or closed
            os.write(self._wake_w, b"x")

    # The thread

    def _run(self) -> None:
        try:
            self._pump()
        finally:  # whatever ended this thread: nobody may wait for a reply, nor QEMU for a socket
            self._lose("is closed")
            if not self._is_closing:
                self._process.kill()

    def _pump(self) -> None:
        beats, number = time.monotonic(), 0
        while self._lost is None:
            now = time.monotonic()
            if now >= beats:
                number += 1
                beats = now + BEAT_S
                self._out.append(json.dumps({"beat": number}).encode() + b"\n")
            self._step(max(0.0, beats - now))
            for line in self._lines():
                self._take(line)
            if time.monotonic() - self._heard > REPLY_SILENCE_S:
                self._lose(f"was silent for {REPLY_SILENCE_S:.0f} s")
        if not self._is_closing:
            log.warning("The SSH connection to %s %s%s", self.host, self._lost, self._said())

    def _said(self) -> str:
        words = self.words()
        return f": {words}" if words else ""

    def _step(self, timeout_s: float) -> None:
        """Write what can be written, and read what has come."""
        has_more = bool(self._out)
        if has_more:
            self._poll.register(self._in_fd, select.POLLOUT)
        events = dict(self._poll.poll(timeout_s * 1000))
        if has_more:
            self._poll.unregister(self._in_fd)
        if self._in_fd in events:
            self._write()
        if self._wake_r in events:
            with suppress(OSError):
                os.read(self._wake_r, 1 << 16)
        if self._err_fd in events and not self._read(self._err_fd):
            self._poll.unregister(self._err_fd)
        if self._out_fd in events and not self._read(self._out_fd):
            self._lose("has ended")

    def _write(self) -> None:
        try:
            written = os.write(self._in_fd, self._out[0])
        except BlockingIOError:
            return
        except OSError as err:
            log.debug("ssh to %s takes nothing: %s", self.host, err)
            self._out.clear()  # the end of its output shows it
            return
        if written == len(self._out[0]):
            self._out.popleft()
        else:
            self._out[0] = self._out[0][written:]

    def _read(self, fd: int) -> bool:
        """Read what has come; returns False at the end."""
        try:
            data = os.read(fd, 1 << 20)
        except BlockingIOError:
            return fd == self._out_fd
        except OSError:
            return False
        if fd == self._err_fd:
            self._words = (self._words + data)[-_WORDS_BYTES:]
        else:
            self._rest += data
            self._heard = time.monotonic()
        return bool(data)

    def _lines(self, *, most: int | None = None) -> list[bytes]:
        end = self._rest.rfind(b"\n", self._searched)
        if end < 0:
            if most is not None:
                del self._rest[:-most]
            elif len(self._rest) > LINE_BYTES:
                self._lose("has sent a message without an end")
            self._searched = len(self._rest)
            return []
        lines = bytes(self._rest[:end]).split(b"\n")
        del self._rest[: end + 1]
        self._searched = len(self._rest)
        return lines

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            log.warning("%s: %r is no message of vbackup's helper", self.host, line[:100])
            return
        if isinstance(message.get("thawed"), str):
            self.thawed.add(message["thawed"])
        number = message.get("id")
        if number is not None and not isinstance(number, int):
            return
        with self._lock:
            replies = self._waiting.get(number) if number is not None else None
        if replies is not None:
            replies.put(message)

    def _lose(self, how: str) -> None:
        with self._lock:
            if self._lost is None:
                self._lost = "is closed" if self._is_closing else how
            for replies in self._waiting.values():
                replies.put(None)


def _hello(line: bytes) -> Mapping[str, Any] | None:
    """Return what the helper says of itself; None for a line that a login script has printed."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("hello") == _VERSION else None


def orders(libvirt: str) -> Mapping[str, Any]:
    """Return what the helper has to know; ``libvirt``: the URI of its libvirt."""
    return {
        "uri": libvirt,
        "silence_s": SILENCE_S,
        "thaw_silence_s": THAW_SILENCE_S,
        "greeting_s": GREETING_S,
        "grace_s": GRACE_S,
    }


def source() -> str:
    """Return the source of the helper."""
    return Path(__file__).with_name("helper.py").read_text(encoding="utf-8")
