"""Standbys of domains at other hosts: keep them warm, let them take over, and bring them back."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from vbackup.api.connected import Connected
from vbackup.api.hosts import Hosts
from vbackup.errors import VbackupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vbackup.domain.host import Host
    from vbackup.operations.boot_test import BootRequest
    from vbackup.operations.failback import FailbackRequest, FailedBack
    from vbackup.operations.failover import FailedOver, FailoverRequest
    from vbackup.operations.failover_test import TriedFailover
    from vbackup.operations.replicate import Replicated, ReplicateRequest
    from vbackup.operations.standby_status import StandbyStatus
    from vbackup.report import Reporter
    from vbackup.stop import Stop


class Standbys(Connected):
    """Calls about standbys. The connection's own libvirt is that of the original."""

    def replicate(
        self, request: ReplicateRequest, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> Replicated:
        """Bring a standby at the libvirt ``request.to`` to the newest backup, or make it; the original is not asked.

        Raises DomainNotFoundError, UnsuitableError (the standby runs or has taken over; a domain there is not a
        standby; its images cannot be written from here), UsageError (the first call needs ``request.directory``),
        ChainError, StorageError, NoSpaceError, BusyError, HostUnreachableError, InterruptedBySignalError. The standby
        is as it was then, unless a warning says that it is half applied: it cannot be started until the same call has
        repaired it.
        """
        from vbackup.operations import replicate

        asked = replace(request, domain=self.uuid_of(request.domain, reporter=reporter))
        with ExitStack() as stack:
            host = _opened(request.to, stack)
            return replicate.run(
                asked,
                host=host,
                repository=self.repository,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )

    def failover(
        self,
        request: FailoverRequest,
        *,
        asks_original: bool = True,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> FailedOver:
        """Let a standby take over: its links come up, and it starts.

        ``asks_original``: the connection's libvirt is that of the original, which must not run; if it cannot be
        reached, as when its host is dead, a warning says so. Raises DomainNotFoundError, UnsuitableError (the standby
        is half applied or older than the newest backup, or the original runs), HostUnreachableError, BusyError,
        MonitorError (libvirt does not start it: it is a standby as before then).
        """
        from vbackup.operations import failover

        asked = replace(request, domain=self.uuid_of(request.domain, reporter=reporter))
        with ExitStack() as stack:
            host, original = _opened(request.to, stack), None
            if asks_original:
                try:
                    original = stack.enter_context(self._host())
                except VbackupError as err:
                    self._reporter(reporter).warning(f"The libvirt of the original cannot be asked: {err}")
            return failover.run(
                asked,
                host=host,
                original=original,
                repository=self.repository,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )

    def test_failover(
        self,
        domain: str,
        to: str,
        request: BootRequest | None = None,
        *,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> TriedFailover:
        """Boot a copy of a standby at the libvirt ``to``, without network, of which nothing is kept.

        ``request``: what has to be reached, as for ``verify`` with a boot; None: what can show best that it has booted.
        That it does not boot is a result. Raises what ``failover`` raises, and DiskError.
        """
        from vbackup.operations import failover_test
        from vbackup.operations.boot_test import BootRequest

        with ExitStack() as stack:
            return failover_test.run(
                BootRequest() if request is None else request,
                self.uuid_of(domain, reporter=reporter),
                to,
                host=_opened(to, stack),
                repository=self.repository,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )

    def failback(
        self, request: FailbackRequest, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> FailedBack:
        """Bring what the guest of a standby has written back to the original, which the connection's libvirt has.

        Both are off. Raises DomainNotFoundError, UnsuitableError (one of them runs, or the standby has not taken over),
        and what ``backup``, ``replicate`` and ``restore_in_place`` raise. Nothing is lost then: the same call goes on,
        or the standby takes over again.
        """
        from vbackup.operations import failback

        asked = replace(request, domain=self.uuid_of(request.domain, reporter=reporter))
        with ExitStack() as stack:
            host = _opened(request.standby, stack)
            return failback.run(
                asked,
                host=host,
                original=stack.enter_context(self._host()),
                repository=self.repository,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )

    def standbys(self, domains: Sequence[str] = (), *, reporter: Reporter | None = None) -> list[StandbyStatus]:
        """Return the standbys of these domains, or of all that have one, and what their libvirt says of them.

        Raises DomainNotFoundError, ChainError (a record is damaged), StorageError.
        """
        from vbackup.operations import standby_status

        uuids = self.uuids_of(domains, reporter=reporter) if domains else self.repository.uuids()
        return standby_status.run(uuids, self.repository, _connected)


@contextmanager
def _connected(uri: str) -> Iterator[Host]:
    with ExitStack() as stack:
        yield _opened(uri, stack)


def _opened(uri: str, stack: ExitStack) -> Host:
    """Return a connection to a libvirt, until the stack is closed. Raises HostUnreachableError."""
    hosts = Hosts(uri)
    stack.callback(hosts.close)
    return stack.enter_context(hosts.one())
