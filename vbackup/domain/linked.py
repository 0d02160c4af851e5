"""The SSH link to libvirt's host: one for all threads that work with that host, made when it is first needed.

What is sure to need it lets it be made while libvirt connects: both take as long, and wait for the other host.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent import futures
from typing import TYPE_CHECKING

from vbackup.errors import UsageError
from vbackup.remote import address
from vbackup.remote.address import Address

if TYPE_CHECKING:
    from vbackup.remote.link import Link


log = logging.getLogger(__name__)

#: How often to look, while another thread makes the link, whether to give up.
_TICK_S = 0.1


class _NotNeededError(Exception):
    """Ends the thread that makes a link which nobody waits for any more."""


class Linked:
    """Makes the link to the host of a URI, and makes it again after it was lost. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._begun: _Begun | None = None

    def begin(self, uri: str) -> None:
        """Begin to make the link in a thread, unless it is there; ``link`` says what became of it.

        Does nothing if no link leads to the host of the URI.
        """
        try:
            place = address.parse(uri)
        except UsageError:  # libvirt's own words come first
            return
        with self._lock:
            if place is not None and self._link is None and self._begun is None:
                self._begun = _Begun(place)

    def link(self, uri: str, *, check: Callable[[], None]) -> Link:
        """Return the link; ``check`` is called while it is made, and raises to give up.

        The URI has an address (``has_address``). Raises SshError, HelperError.
        """
        place = address.parse(uri)
        assert place is not None
        with self._lock:
            if self._begun is not None:
                self._link = self._taken(self._begun, place, check=check)
            if self._link is not None and self._link.is_lost:
                self._link.close()
                self._link = None
            if self._link is None:
                self._link = _made(place, check=check)
            return self._link

    def _taken(self, begun: _Begun, place: Address, *, check: Callable[[], None]) -> Link | None:
        """Return what was begun; None if it leads elsewhere. If ``check`` raises, it is left to be ended."""
        if begun.place != place:
            self._end_begun()
            return None
        begun.wait(check=check)
        self._begun = None
        return begun.link()

    def _end_begun(self) -> None:
        if self._begun is not None:
            self._begun.end()
            self._begun = None

    def close(self) -> None:
        """End the link; twice is fine."""
        with self._lock:
            self._end_begun()
            if self._link is not None:
                self._link.close()
                self._link = None


class _Begun:
    """A link that a thread makes."""

    def __init__(self, place: Address) -> None:
        self.place = place
        self._is_ended = threading.Event()
        self._future: futures.Future[Link] = futures.Future()
        threading.Thread(target=self._make, name="link", daemon=True).start()

    def wait(self, *, check: Callable[[], None]) -> None:
        """Wait until it is there or has failed; ``check`` raises to give up."""
        while not futures.wait([self._future], _TICK_S).done:
            check()

    def link(self) -> Link:
        """Return the link. Raises what making it raised."""
        return self._future.result()

    def end(self) -> None:
        """Give it up, or end it if it is there."""
        self._is_ended.set()
        error = self._future.exception()
        if error is None:
            self.link().close()
        elif not isinstance(error, _NotNeededError):
            log.debug("%s", error)  # nobody has asked for the link

    def _make(self) -> None:
        try:
            made = _made(self.place, check=self._check)
        except BaseException as err:  # noqa: BLE001 - the thread that waits gets it
            self._future.set_exception(err)
        else:
            self._future.set_result(made)

    def _check(self) -> None:
        if self._is_ended.is_set():
            raise _NotNeededError


def _made(place: Address, *, check: Callable[[], None]) -> Link:
    from vbackup.remote.link import Link  # most commands need none

    return Link(place, check=check).__enter__()


def has_address(uri: str) -> bool:
    """Return True if a link can lead to the host of the URI: its transport is SSH."""
    return address.parse(uri) is not None
