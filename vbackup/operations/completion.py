"""What a shell can complete a word with: names that the repository, libvirt and the configuration know.

Somebody waits with a key pressed, and has not asked for an error: what is not known in time is left out. Each source is
asked in a separate thread, so that a libvirt that does not answer, or a repository on a dead network filesystem, holds
up neither the other one nor the shell; the process ends without waiting for it (vbackup.cli.command).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from vbackup.repository import known_names

log = logging.getLogger(__name__)

#: How long to wait for all sources together. A libvirt that systemd has to start first takes longer.
LIMIT_S = 0.4


class ValueKind(Enum):
    """What a word can be. The command line's parsers say which (vbackup.cli.grammar)."""

    DOMAINS = "domains"  #: those that libvirt has, or those of the repository if libvirt does not say
    RECORDED_DOMAINS = "recorded-domains"  #: those of the repository
    BACKUPS = "backups"
    DISKS = "disks"  #: those that the domain has, or those of its newest backup if libvirt does not say
    RECORDED_DISKS = "recorded-disks"  #: those of the backup
    HOSTS = "hosts"  #: those that domains of the repository have been on
    SESSIONS = "sessions"
    TRACKERS = "trackers"
    JOBS = "jobs"  #: of the configuration, as all that follow
    NOTIFIERS = "notifiers"
    TARGETS = "targets"
    TARGET_URLS = "target-urls"  #: what the targets are: directories or URLs
    REPOSITORIES = "repositories"  #: the directories of the repositories


@dataclass(frozen=True)
class ValuesRequest:
    """What is known of the command line when its next word is completed."""

    kinds: Sequence[ValueKind]
    repository: str | None = None  #: or a directory with copies
    uris: Sequence[str] = ()  #: of libvirt
    domain: str | None = None
    backup: str | None = None
    config: str | None = None  #: file of the configuration, in place of that of this user


#: Where the configuration has what is wanted: the table, and there a key of each entry, or the name.
_CONFIGURED = {
    ValueKind.JOBS: ("job", None),
    ValueKind.NOTIFIERS: ("notify", None),
    ValueKind.TARGETS: ("target", None),
    ValueKind.TARGET_URLS: ("target", "url"),
    ValueKind.REPOSITORIES: ("repository", "path"),
}

_Source = Callable[[], "Sequence[str] | None"]


def values(request: ValuesRequest, *, limit_s: float = LIMIT_S) -> list[str]:
    """Return what the word can be, each once, in the order in which to offer it. Raises nothing.

    Names that a line of a terminal cannot show are left out, and those that would be taken for options.
    """
    deadline = time.monotonic() + limit_s
    asked = [_asked(kind, request) for kind in request.kinds]
    found = [value for sources in asked for value in _first(sources, deadline)]
    return [value for value in dict.fromkeys(found) if value.isprintable() and value[:1] not in ("", "-")]


class _Answer:
    """What a source says, as soon as it does."""

    def __init__(self, source: _Source) -> None:
        self.values: Sequence[str] | None = None
        self._source = source
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self.values = self._source()
        except Exception:  # of libvirt, of the filesystem: there is nobody to tell
            log.debug("completion", exc_info=True)

    def wait(self, deadline: float) -> Sequence[str] | None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return self.values


def _asked(kind: ValueKind, request: ValuesRequest) -> list[list[_Answer]]:
    """Ask for values of a kind; return the answers, the preferred ones first. All of one list count together."""
    recorded = _recorded(kind, request)
    sources = [[recorded]] if recorded is not None else []
    if kind in (ValueKind.DOMAINS, ValueKind.DISKS):
        sources.insert(0, [_of_libvirt(kind, uri, request) for uri in request.uris or (None,)])
    return [[_Answer(source) for source in alike] for alike in sources]


def _first(sources: Sequence[Sequence[_Answer]], deadline: float) -> list[str]:
    """Return the values of the first sources, and those of the next ones if one of them does not say."""
    found: list[str] = []
    for alike in sources:
        answers = [answer.wait(deadline) for answer in alike]
        found += [value for answer in answers if answer is not None for value in answer]
        if None not in answers:
            break
    return found


def _of_libvirt(kind: ValueKind, uri: str | None, request: ValuesRequest) -> _Source:
    def ask() -> Sequence[str] | None:
        from vbackup.domain import known_names as libvirt_names  # which a question to the repository does without

        if kind is ValueKind.DOMAINS:
            return libvirt_names.domains(uri)
        return [] if request.domain is None else libvirt_names.disks(uri, request.domain)

    return ask


def _recorded(kind: ValueKind, request: ValuesRequest) -> _Source | None:
    """Return what reads the record, or None if no repository is given."""
    if kind in (ValueKind.SESSIONS, ValueKind.TRACKERS):
        return lambda: _of_sessions(kind)
    if kind in _CONFIGURED:
        return lambda: _of_configuration(kind, request.config)
    if not request.repository:
        return None
    path, domain = Path(request.repository), request.domain
    sources: dict[ValueKind, _Source] = {
        ValueKind.DOMAINS: lambda: known_names.domains(path),
        ValueKind.RECORDED_DOMAINS: lambda: known_names.domains(path),
        ValueKind.BACKUPS: lambda: known_names.backups(path, domain),
        ValueKind.HOSTS: lambda: known_names.hosts(path, domain),
    }
    return sources.get(kind, lambda: [] if domain is None else known_names.disks(path, domain, request.backup))


def _of_sessions(kind: ValueKind) -> list[str]:
    from vbackup.sessions.store import Store, default_directory  # which few words are of

    store = Store(default_directory())
    if kind is ValueKind.TRACKERS:
        return sorted({name for uuid in store.uuids() for name in store.tracker_names(uuid)})
    return sorted((one for uuid in store.uuids() for one in store.session_ids(uuid)), reverse=True)


def _of_configuration(kind: ValueKind, file: str | None) -> list[str]:
    """Return what the configuration has, whatever faults it has elsewhere."""
    from vbackup.config import documents  # vbackup.config.loading checks every key, which takes longer than this may

    table, key = _CONFIGURED[kind]
    entries = documents.read(documents.default_paths() if file is None else [Path(file)]).tables.get(table)
    if not isinstance(entries, dict):
        return []
    if key is None:
        return list(entries)
    places = [entry.get(key) for entry in entries.values() if isinstance(entry, dict)]
    return [place for place in places if isinstance(place, str)]
