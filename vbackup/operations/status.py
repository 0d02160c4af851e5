"""Gather what is known of all that is backed up, for ``vbackup status`` and whoever tells people of it.

Repositories, the ledgers of their targets and the record of runs are read here, and libvirt is asked, for a short time,
which domains there are. What cannot be read or asked is a part of the answer. vbackup.overview judges.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Optional

from vbackup.config.model import Config, Job, Place, RepositoryEntry, TargetEntry
from vbackup.copies import ledger
from vbackup.errors import UsageError, VbackupError
from vbackup.files import reported
from vbackup.machine import this_host
from vbackup.overview import assess, remembered
from vbackup.overview.facts import DomainFacts, Facts, HostFacts, JobFacts, LiveDomain, RepositoryFacts
from vbackup.overview.state import Overview
from vbackup.repository import glance
from vbackup.repository.repository import COPIES, Repository
from vbackup.runs.record import Fault, Outcome, Run
from vbackup.runs.room_log import Entry, RoomLog, growth_bytes_day
from vbackup.runs.store import Store

#: How long libvirt, on all hosts at once, may take to answer.
TIMEOUT_S = 5.0
#: How many runs are read to find the last good one.
RUNS = 20
#: The hosts that have not answered yet. They are not asked again: that would be one more thread each time.
_UNANSWERED: set[str | None] = set()

#: Asks a host (a URI; None: libvirt's default) for its domains. Those known by UUID have backups: of the others it
#: says why they cannot be backed up, if that is so. Raises VbackupError.
Ask = Callable[[Optional[str], Collection[str]], Sequence[LiveDomain]]


@dataclass(frozen=True)
class StatusRequest:
    """What is asked."""

    jobs: tuple[str, ...] = ()  #: by name; none: all, and all repositories
    max_age_s: float | None = None  #: how old the newest backup of a domain may be, in place of what its job promises
    is_offline: bool = False  #: libvirt is not asked
    timeout_s: float = TIMEOUT_S  #: how long libvirt may take to answer


def gather(
    request: StatusRequest,
    config: Config,
    *,
    state: Path,
    ask: Ask | None = None,
    now: datetime | None = None,
) -> Overview:
    """Return the state of all that is configured.

    ``state``: vbackup.runs.store.default_directory(). ``ask``: see ``Ask`` (default: libvirt). Raises UsageError for a
    job that does not exist; a repository that cannot be read, or a host that does not answer, is in the answer.
    """
    unknown = [name for name in request.jobs if name not in config.jobs]
    if unknown:
        known = ", ".join(config.jobs) or "none"
        raise UsageError(f"No job {unknown[0]!r} in the configuration; it has {known}.")
    jobs = [job for name, job in config.jobs.items() if not request.jobs or name in request.jobs]
    wanted = {job.repository for job in jobs}
    entries = [one for name, one in config.repositories.items() if not request.jobs or name in wanted]
    return _gathered(request, jobs, entries, config.targets, state=state, ask=ask, now=now)


def of_repository(
    request: StatusRequest,
    repository: Path,
    uris: Sequence[str] = (),
    *,
    ask: Ask | None = None,
    now: datetime | None = None,
) -> Overview:
    """Return the state of one repository, of which nobody has written down who is to be backed up to it.

    With ``request.max_age_s``, all domains of libvirt are to be. Raises nothing that is not a bug.
    """
    nowhere = Place(Path(), 0)
    path = os.fspath(repository)
    job = Job("", path, nowhere, connect=tuple(uris), max_age_s=request.max_age_s)
    asking = request if request.max_age_s is not None else replace(request, is_offline=True)
    entry = RepositoryEntry(path, repository, nowhere)
    return _gathered(asking, [job], [entry], {}, state=None, ask=ask, now=now)


def _gathered(
    request: StatusRequest,
    jobs: Sequence[Job],
    entries: Sequence[RepositoryEntry],
    targets: Mapping[str, TargetEntry],
    *,
    state: Path | None,
    ask: Ask | None,
    now: datetime | None,
) -> Overview:
    time_now = datetime.now(timezone.utc) if now is None else now
    repositories = tuple(_repository(one, targets, state, time_now) for one in entries)
    known = {domain.seen.uuid for one in repositories for domain in one.domains}
    warnings: list[str] = []
    uris = {job.name: _uris(job, warnings) for job in jobs}
    hosts = {} if request.is_offline else _hosts(uris.values(), known, ask or _of_libvirt, request.timeout_s)
    silent = HostFacts(None, None)
    facts = Facts(
        time=time_now,
        host=this_host().name,
        jobs=tuple(
            JobFacts(job, tuple(hosts.get(uri, silent) for uri in uris[job.name]), *_runs(state, job.name))
            for job in jobs
        ),
        repositories=repositories,
        is_configured=state is not None,
        max_age_s=request.max_age_s,
        booted=time_now - timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME)),
        warnings=(*warnings, *(one.error for one in hosts.values() if one.error is not None)),
    )
    return assess.overview(facts)


# repositories


def _repository(
    entry: RepositoryEntry, targets: Mapping[str, TargetEntry], state: Path | None, now: datetime
) -> RepositoryFacts:
    path = os.fspath(entry.path)
    try:
        repository = Repository.open(entry.path)
        copies = ledger.of_targets(repository.path / COPIES, {name: one.url for name, one in targets.items()})
        domains = tuple(_domains(repository, copies))
        room = os.statvfs(repository.path)
    except (VbackupError, OSError) as err:
        known = reported(err)
        fault = Fault(known.code, int(known.status), str(known))
        seen = remembered.recall(state, path) if state is not None else None
        if seen is None:
            return RepositoryFacts(entry.name, path, fault)
        return RepositoryFacts(entry.name, path, fault, seen.domains, targets=seen.targets, last_read=seen.time)
    size_bytes, free_bytes = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    used_bytes = size_bytes - room.f_bfree * room.f_frsize
    growth = _growth(state, path, Entry(now, used_bytes, size_bytes)) if state is not None else None
    if state is not None:
        with suppress(VbackupError, OSError):  # who only looks need not be able to write there
            remembered.note(state, path, remembered.Seen(now, domains, frozenset(copies)))
    return RepositoryFacts(entry.name, path, None, domains, free_bytes, size_bytes, growth, frozenset(copies))


def _growth(state: Path, path: str, entry: Entry) -> float | None:
    log = RoomLog(state, path)
    entries = [*(one for one in log.read() if one.time < entry.time), entry]
    with suppress(VbackupError, OSError):  # who only looks need not be able to write there
        log.note(entry)
    return growth_bytes_day(entries)


def _domains(repository: Repository, copies: Mapping[str, ledger.Ledger]) -> Iterator[DomainFacts]:
    for uuid in repository.uuids():
        seen = glance.read(repository.path / uuid, uuid, has_images=repository.has_images)
        if seen.ids or repository.unfinished(uuid):
            yield DomainFacts(seen, {name: one.ids(uuid) for name, one in copies.items()})


# libvirt


def _uris(job: Job, warnings: list[str]) -> tuple[str | None, ...]:
    """Return the hosts of a job; a file of hosts that cannot be read is a warning."""
    if job.hosts is None:
        return job.connect or (None,)
    from vbackup.domain import hosts_file

    try:
        return (*job.connect, *hosts_file.read(os.fspath(job.hosts)))
    except UsageError as err:
        warnings.append(str(err))
        return job.connect


def _hosts(
    uris: Collection[Sequence[str | None]], known: Collection[str], ask: Ask, timeout_s: float
) -> dict[str | None, HostFacts]:
    """Ask all hosts at once. The threads of those that do not answer in time go on, and nobody listens to them."""
    answers: queue.SimpleQueue[HostFacts] = queue.SimpleQueue()
    wanted = dict.fromkeys(uri for several in uris for uri in several)

    def answer(uri: str | None) -> None:
        try:
            found = HostFacts(uri, tuple(ask(uri, known)))
        except (VbackupError, OSError) as err:
            found = HostFacts(uri, None, str(reported(err)))
        finally:
            _UNANSWERED.discard(uri)
        answers.put(found)

    asked = [uri for uri in wanted if uri not in _UNANSWERED]
    _UNANSWERED.update(asked)
    for uri in asked:
        threading.Thread(target=answer, args=(uri,), name="status-libvirt", daemon=True).start()
    found: dict[str | None, HostFacts] = {}
    deadline = time.monotonic() + timeout_s
    with suppress(queue.Empty):
        while len(found) < len(asked):
            one = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            found[one.uri] = one
    for uri in wanted:
        late = f"libvirt at {uri or 'the default URI'} did not say within {timeout_s:g} s which domains it has."
        found.setdefault(uri, HostFacts(uri, None, late))
    return {uri: found[uri] for uri in wanted}


def _of_libvirt(uri: str | None, known: Collection[str]) -> Sequence[LiveDomain]:
    from vbackup.domain import selection  # libvirt takes longer to import than a repository to be read
    from vbackup.domain.host import Host

    with Host(uri) as host:
        return [
            LiveDomain(one.name, one.uuid, None if one.uuid in known else selection.reason_to_skip(one))
            for one in host.domains()
        ]


# runs


def _runs(state: Path | None, job: str) -> tuple[tuple[Run, ...], str | None]:
    """Return the newest runs, up to the last good one of all its domains, and why they cannot be read."""
    if state is None:
        return (), None
    store = Store(state)
    try:
        runs = store.list(job, 2)
        if not any(run.outcome is Outcome.DONE and not run.is_partial for run in runs):
            runs = store.list(job, RUNS)
        if len(runs) == RUNS and all(run.is_partial or run.outcome is Outcome.RUNNING for run in runs):
            runs = store.list(job)
    except VbackupError as err:
        return (), str(err)
    return tuple(runs), None
