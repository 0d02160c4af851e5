"""Connections to libvirt for the threads of one ``vbackup.api.Connection``, opened when they are needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vbackup.errors import UsageError

if TYPE_CHECKING:
    from vbackup.domain.host import Host
    from vbackup.domain.linked import Linked


class Hosts:
    """The open connections to one URI: those in use, each by one thread, and those that wait for the next call.

    A thread that loses its connection opens it again (vbackup.domain.host.Host.reopen), so no two threads share one.
    The embedded driver is the exception: its connection cannot break, and opening it again restarts it.
    """

    def __init__(self, uri: str | None) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._idle: list[Host] = []
        self._embedded: Host | None = None
        self._linked: Linked | None = None
        self._expects_link = False
        self._is_closed = False

    @contextmanager
    def one(self) -> Iterator[Host]:
        """Yield a connection for the calling thread. Raises HostUnreachableError, UsageError after ``close``."""
        host = self._take()
        try:
            yield host
        finally:
            self._give_back(host)

    def expect_link(self) -> None:
        """Have the first connection made together with the link to its host, if there can be one (Linked.begin)."""
        self._expects_link = True

    def close(self) -> None:
        """Close the connections; those in use are closed when their threads give them back. Twice is fine."""
        with self._lock:
            self._is_closed = True
            hosts, self._idle = self._idle, []
        # The embedded driver has no threads of others in it, as nothing works on a connection that is closed.
        hosts += [self._embedded] if self._embedded is not None else []
        for host in hosts:
            host.close()
        if self._linked is not None:
            self._linked.close()

    def _take(self) -> Host:
        with self._lock:
            if self._is_closed:
                raise UsageError("The connection is closed: open another with vbackup.api.connect().")
            host = self._idle.pop() if self._idle else None
        if host is not None and host.is_alive():
            return host
        if host is not None:
            host.close()
        return self._open()

    def _open(self) -> Host:
        from vbackup.domain import host as hosts  # libvirt takes longer to import than a repository to be listed
        from vbackup.domain import linked

        with self._opening:
            if self._embedded is not None:
                return self._embedded
            if self._linked is None:
                self._linked = linked.Linked()
                if self._expects_link and self._uri is not None:
                    self._linked.begin(self._uri)
            host = hosts.Host(self._uri, linked=self._linked)
            if host.is_embedded:
                self._embedded = host
        return host

    def _give_back(self, host: Host) -> None:
        if host is self._embedded:
            return
        with self._lock:
            if not self._is_closed:
                self._idle.append(host)
                return
        host.close()
