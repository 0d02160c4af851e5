"""What the server serves: it knows neither sessions nor QEMU. vbackup.operations.serve_session has the real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class MapQuery:
    """Which extents a client asks for; all but the numbers are as it has written them."""

    offset_bytes: int
    length_bytes: int | None  #: None: up to the end
    max_results: int
    kind: str
    checkpoint: str | None


class Reader(Protocol):
    """A connection that reads one disk (vbackup.qemu.nbd_client.NbdClient), by one thread at a time."""

    def read(self, start_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, memoryview | None]]:
        """Yield offset, length and content of the pieces of a range in ascending order; None for zeros.

        Raises VbackupError.
        """

    def shut_down(self) -> None:
        """Let a read that waits in another thread fail at once."""


class ServedDisk(Protocol):
    """A disk of a session. Its methods wait for QEMU: threads call them."""

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""

    def reader(self) -> AbstractContextManager[Reader]:
        """Return a new connection. Entering raises VbackupError."""

    def extents(self, query: MapQuery) -> dict[str, Any]:
        """Return the document with the extents that a client asks for. Raises VbackupError, UsageError."""


class SessionEnd(Protocol):
    """How a session stands."""

    @property
    def left_s(self) -> float:
        """Seconds until it expires; 0 if it has ended."""

    @property
    def reason(self) -> str:
        """What has become of it, as a sentence."""


class Watch(Protocol):
    """A connection that QEMU closes when the session ends."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when ``has_ended`` has to be asked."""

    def has_ended(self) -> bool:
        """Return True if QEMU has closed it."""

    def shut_down(self) -> None:
        """End it."""


class ServedSession(Protocol):
    """A session whose disks are served."""

    @property
    def disks(self) -> Mapping[str, ServedDisk]:
        """Its disks by dev."""

    def watch(self) -> AbstractContextManager[Watch]:
        """Return a new connection to watch. Entering raises VbackupError."""

    def state(self) -> SessionEnd:
        """Return how it stands now. Never raises: a session that cannot be read has ended."""
