"""Read what a domain writes to its serial consoles: QEMU connects to sockets of this process.

A file in their place could grow without limit, as the guest decides what it writes. Only the end of it is kept.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from vbackup.files import storage_errors

#: How much of the end of each console is kept.
KEPT_BYTES = 1024 * 1024
_PIECE_BYTES = 64 * 1024


class BootConsoles:
    """Listens on a socket for each console, and reads in a thread while the block runs. A context manager.

    ``owner``: user and group id of QEMU, the only user who can connect then. Entering raises StorageError.
    """

    def __init__(self, paths: Sequence[Path], *, owner: tuple[int, int] | None) -> None:
        self._paths, self._owner = paths, owner
        self._texts: dict[int, bytearray] = {}  # by the order in which QEMU has connected
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> BootConsoles:
        try:
            for path in self._paths:
                listening = socket.socket(socket.AF_UNIX)
                self._sockets.append(listening)
                with storage_errors(f"listen on {path}"):
                    listening.bind(os.fspath(path))
                    path.chmod(0o600)
                    if self._owner is not None:
                        os.chown(path, *self._owner)
                    listening.listen()
                self._selector.register(listening, selectors.EVENT_READ)
            self._reading, self._ending = socket.socketpair()
            self._sockets += [self._reading, self._ending]
            self._selector.register(self._reading, selectors.EVENT_READ)
            self._thread = threading.Thread(target=self._read, name="boot-consoles", daemon=True)
            self._thread.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.send(b"\0")
        self._thread.join()
        self._close()

    def text(self) -> str:
        """Return what the guest has written so far, one console after the other."""
        with self._lock:
            return "\n".join(bytes(text).decode(errors="replace") for text in self._texts.values())

    def _read(self) -> None:
        while True:
            for key, _ in self._selector.select():
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready is self._reading:
                    return
                if ready.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    self._accept(ready)
                else:
                    self._take(ready)

    def _accept(self, listening: socket.socket) -> None:
        connected, _ = listening.accept()
        self._sockets.append(connected)
        self._selector.register(connected, selectors.EVENT_READ)
        with self._lock:
            self._texts[connected.fileno()] = bytearray()

    def _take(self, connected: socket.socket) -> None:
        try:
            piece = connected.recv(_PIECE_BYTES)
        except OSError:
            piece = b""
        if not piece:  # QEMU has ended; its descriptor stays open, so that no other gets the number
            self._selector.unregister(connected)
            return
        with self._lock:
            text = self._texts[connected.fileno()]
            text += piece
            del text[:-KEPT_BYTES]

    def _close(self) -> None:
        self._selector.close()
        for one in self._sockets:
            one.close()
