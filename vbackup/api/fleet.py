"""Several hosts and one repository: what ``vbackup.api.connect_all`` returns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vbackup.api.connected import listed
from vbackup.api.connection import Connection
from vbackup.errors import UsageError, VbackupError
from vbackup.report import Reporter
from vbackup.stop import Stop

if TYPE_CHECKING:
    from vbackup.domain.fleet import FleetSelection, Reached
    from vbackup.engine.plan import BackupPlan
    from vbackup.model import Backup
    from vbackup.operations.backup import BackupRequest
    from vbackup.operations.batch import Batch, Result
    from vbackup.operations.fleet import Limits
    from vbackup.repository.repository import Repository
    from vbackup.scripts.runner import Settings

#: How many hosts are connected to at once: each may take minutes to be found out of reach.
_CONNECTING = 16


class Fleet:
    """Several hosts and a repository. A context manager that closes the connections; see ``connect_all``."""

    def __init__(
        self,
        uris: Sequence[str],
        *,
        repository: str | os.PathLike[str] | Repository | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> None:
        distinct = list(dict.fromkeys(listed(uris)))
        if not distinct:
            raise UsageError("No host given: connect_all() needs the URI of at least one.")
        # One for what needs no host: the repository, and what is said by default.
        self._all = Connection(repository=repository, reporter=reporter, stop=stop)
        self._connections = {uri: Connection(uri) for uri in distinct}

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to libvirt; twice is fine. No call may be running in another thread."""
        for connection in self._connections.values():
            connection.close()

    @property
    def uris(self) -> list[str]:
        """The URIs of the hosts, each once, as they were given."""
        return list(self._connections)

    @property
    def repository(self) -> Repository:
        """The repository. Raises UsageError if none was given."""
        return self._all.repository

    def select(self, words: Sequence[str], exclude: Sequence[str] = ()) -> FleetSelection:
        """Return the domains that words name on each host: names, UUIDs and patterns such as "web*".

        What ``exclude`` names or matches is left out. A host that cannot be reached has its error in the answer, and is
        not asked again by ``backup_all``. Raises DomainNotFoundError if nothing is selected although all hosts were
        reached.
        """
        from vbackup.domain import fleet

        with ExitStack() as stack:
            return fleet.by_words(listed(words), self._reach(self.uris, stack), listed(exclude))

    def select_all(self, exclude: Sequence[str] = ()) -> FleetSelection:
        """Return all domains of all hosts that can be backed up, but those that ``exclude`` names or matches.

        What is left out is in the answer, with the reason: also a domain that a migration has left off on one host, if
        it runs on another. The rest is as for ``select``.
        """
        from vbackup.domain import fleet

        with ExitStack() as stack:
            return fleet.all_domains(self._reach(self.uris, stack), listed(exclude))

    def backup_all(
        self,
        domains: FleetSelection | Sequence[str],
        request: BackupRequest | None = None,
        *,
        parallel: int | None = None,
        parallel_per_host: int | None = None,
        total_speed_bytes_s: int | None = None,
        scripts: Settings | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> list[Result[Backup]]:
        """Back up domains of several hosts, some at a time; return the backup or the error of each.

        ``parallel``: how many at once on all hosts together (default: 4); ``parallel_per_host``: on each of them
        (default: as many). Each result has its ``host`` and ``uri``. The hosts that could not be reached are in the
        selection only. The rest is as for ``Connection.backup_all``; what the reporter is given names a domain
        HOST/DOMAIN.
        """
        from vbackup.operations import fleet

        with ExitStack() as stack:
            selected = self._selected(domains)
            batches = self._batches(
                selected, request, stack, total_speed_bytes_s, scripts=scripts, reporter=reporter, stop=stop
            )
            return fleet.run(selected, batches, _limits(parallel, parallel_per_host))

    def plan_all(
        self,
        domains: FleetSelection | Sequence[str],
        request: BackupRequest | None = None,
        *,
        parallel: int | None = None,
        parallel_per_host: int | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> list[Result[BackupPlan]]:
        """Return the plan or the error of each domain: what ``backup_all`` would do. Nothing is copied or kept."""
        from vbackup.operations import fleet

        with ExitStack() as stack:
            selected = self._selected(domains)
            batches = self._batches(selected, request, stack, None, scripts=None, reporter=reporter, stop=stop)
            return fleet.dry_run(selected, batches, _limits(parallel, parallel_per_host))

    def _selected(self, domains: FleetSelection | Sequence[str]) -> FleetSelection:
        from vbackup.domain.fleet import FleetSelection

        return domains if isinstance(domains, FleetSelection) else self.select(domains)

    def _reach(self, uris: Sequence[str], stack: ExitStack) -> list[Reached]:
        """Connect to the hosts, all at once: one that is out of reach does not keep the others waiting."""
        from vbackup.domain.fleet import Reached

        def reach(uri: str) -> Reached:
            try:
                return Reached(uri, stack.enter_context(self._connections[uri]._host()))
            except VbackupError as err:
                return Reached(uri, None, err)

        if not uris:
            return []
        with ThreadPoolExecutor(max_workers=min(_CONNECTING, len(uris)), thread_name_prefix="host") as pool:
            return list(pool.map(reach, uris))

    def _batches(
        self,
        selected: FleetSelection,
        request: BackupRequest | None,
        stack: ExitStack,
        total_bytes_s: int | None,
        *,
        scripts: Settings | None,
        reporter: Reporter | None,
        stop: Stop | None,
    ) -> list[Batch | VbackupError]:
        """Return for each host of the selection its batch, or why there is none."""
        from vbackup.operations.backup import BackupRequest
        from vbackup.operations.batch import Batch
        from vbackup.scripts import runner

        wanted = {part.uri: part for part in selected.hosts if part.selection.chosen}
        reached = {one.uri: one for one in self._reach(list(wanted), stack)}
        batches: list[Batch | VbackupError] = []
        for part in selected.hosts:
            one = reached.get(part.uri)
            if one is None or one.host is None:
                why = part.error if one is None else one.error
                batches.append(why or UsageError(f"Nothing is selected on {part.uri}."))
                continue
            batches.append(
                Batch(
                    BackupRequest("") if request is None else request,
                    one.host,
                    repository=self.repository,
                    reporter=self._all._labelling(reporter),
                    stop=self._all._stop(stop),
                    total_bytes_s=total_bytes_s,
                    scripts=runner.Settings() if scripts is None else scripts,
                    host_name=part.name,
                )
            )
        return batches


def _limits(parallel: int | None, per_host: int | None) -> Limits:
    from vbackup.operations.fleet import Limits

    return Limits(per_host=per_host) if parallel is None else Limits(parallel, per_host)


def connect_all(
    uris: Sequence[str],
    *,
    repository: str | os.PathLike[str] | Repository | None = None,
    reporter: Reporter | None = None,
    stop: Stop | None = None,
) -> Fleet:
    """Return a connection to several libvirt hosts and one repository for the domains of all.

    ``uris``: of libvirt, such as "qemu+ssh://root@hv1/system", each host once; ``read_hosts`` reads them from a file.
    The rest is as for ``connect``. Raises UsageError without a URI, StorageError.
    """
    fleet = Fleet(uris, repository=repository, reporter=reporter, stop=stop)
    if fleet._all.has_repository:
        _ = fleet.repository
    return fleet


def read_hosts(path: str | os.PathLike[str]) -> list[str]:
    """Return the URIs of hosts in a file: one a line; empty lines, and what follows a "#", are comments.

    Raises UsageError, with file and line, for a line that is no URI, a host that is in it twice, or a file that cannot
    be read or names no host.
    """
    from vbackup.domain import hosts_file

    return hosts_file.read(os.fspath(path))
