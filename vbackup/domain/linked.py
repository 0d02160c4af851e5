"""The SSH link to libvirt's host: one for all threads that work with that host, made when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from vbackup.remote import address

if TYPE_CHECKING:
    from vbackup.remote.link import Link


class Linked:
    """Makes the link to the host of a URI, and makes it again after it was lost. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._link: Link | None = None

    def link(self, uri: str, *, check: Callable[[], None]) -> Link:
        """Return the link; ``check`` is called while it is made, and raises to give up.

        The URI has an address (``has_address``). Raises SshError, HelperError.
        """
        with self._lock:
            if self._link is not None and self._link.is_lost:
                self._link.close()
                self._link = None
            if self._link is None:
                place = address.parse(uri)
                assert place is not None
                from vbackup.remote.link import Link  # most commands need none

                self._link = Link(place, check=check).__enter__()
            return self._link

    def close(self) -> None:
        """End the link; twice is fine."""
        with self._lock:
            if self._link is not None:
                self._link.close()
                self._link = None


def has_address(uri: str) -> bool:
    """Return True if a link can lead to the host of the URI: its transport is SSH."""
    return address.parse(uri) is not None
