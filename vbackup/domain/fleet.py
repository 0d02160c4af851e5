"""Select domains on several hosts, as vbackup.domain.selection does on one.

A host that cannot be reached has an error, and the others go on. One that is named twice, by different URIs, counts
once; a UUID that several hosts have is judged by vbackup.domain.twins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlsplit

from vbackup import names
from vbackup.domain import capabilities, selection, twins
from vbackup.domain.host import Host
from vbackup.domain.selection import Chosen, Selection, Skipped
from vbackup.domain.twins import Twin
from vbackup.errors import DomainNotFoundError, VbackupError

#: What of a URI's query leads to another libvirt of the same host.
_OTHER_DAEMON = frozenset(("socket", "root"))
_NOTHING = Selection(())


@dataclass(frozen=True)
class Reached:
    """A host that was asked for."""

    uri: str
    host: Host | None  #: None if it could not be reached
    error: VbackupError | None = None  #: why


@dataclass(frozen=True)
class HostSelection:
    """What was selected on one host."""

    uri: str
    name: str  #: of the host; the URI if it was not reached, or if another one has the name
    selection: Selection
    refused: tuple[tuple[Chosen, VbackupError], ...] = ()  #: domains that are not backed up, and why
    error: VbackupError | None = None  #: why nothing is known of its domains


@dataclass(frozen=True)
class FleetSelection:
    """What was selected on several hosts."""

    hosts: tuple[HostSelection, ...]
    unmatched: tuple[str, ...] = ()  #: patterns and exclusions that match no domain of any host
    unknown: tuple[str, ...] = ()  #: names that no host has
    remarks: tuple[str, ...] = ()  #: what the user should know, for people


def by_words(words: Sequence[str], hosts: Sequence[Reached], excluded: Sequence[str] = ()) -> FleetSelection:
    """Return the domains that the words select on each host, but those that ``excluded`` names or matches.

    A name that one host has need not be on the others. Raises DomainNotFoundError if nothing is selected although all
    hosts were reached.
    """
    selected = _on_each(hosts, lambda host: _present(selection.those_of_words(words, host, excluded)))
    nowhere = _on_none(selected, words)
    unmatched = tuple(word for word in nowhere if names.is_pattern(word))
    unknown = tuple(word for word in nowhere if not names.is_pattern(word))
    unmatched += tuple(_on_none(selected, excluded))
    if not unknown:
        _refuse_nothing(selected, "matches " + " or ".join(map(repr, words)))
    return replace(selected, unmatched=unmatched, unknown=unknown)


def all_domains(hosts: Sequence[Reached], excluded: Sequence[str]) -> FleetSelection:
    """Return the domains of all hosts that can be backed up, but those that ``excluded`` names or matches.

    Raises DomainNotFoundError if there is none although all hosts were reached.
    """
    selected = _on_each(hosts, lambda host: selection.those_of_all(host, excluded))
    _refuse_nothing(selected, "can be backed up")
    return replace(selected, unmatched=tuple(_on_none(selected, excluded)))


def _present(selected: Selection) -> Selection:
    """Return the selection without the names that this host does not have."""
    here = tuple(domain for domain in selected.chosen if domain.uuid is not None)
    missing = [domain.name for domain in selected.chosen if domain.uuid is None]
    return replace(selected, chosen=here, unmatched=(*selected.unmatched, *missing))


def _on_none(selected: FleetSelection, words: Sequence[str]) -> list[str]:
    reached = [one.selection.unmatched for one in selected.hosts if one.error is None]
    return [word for word in dict.fromkeys(words) if all(word in unmatched for unmatched in reached)]


def _refuse_nothing(selected: FleetSelection, what: str) -> None:
    if any(one.error or one.selection.chosen or one.refused for one in selected.hosts):
        return
    left_out = "; ".join(
        f"{one.name}/{domain.name}: {domain.reason}" for one in selected.hosts for domain in one.selection.skipped
    )
    hint = f"left out: {left_out}" if left_out else "'virsh -c URI list --all' lists the domains of a host"
    raise DomainNotFoundError(None, f"at {', '.join(one.uri for one in selected.hosts)} {what}", hint)


def _on_each(hosts: Sequence[Reached], select: Callable[[Host], Selection]) -> FleetSelection:
    distinct, remarks = _distinct(hosts)
    labels = _labels(distinct)
    parts = [_part(one, labels[one.uri], select) for one in distinct]
    by_uuid: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        for domain in part.selection.chosen:
            by_uuid.setdefault(domain.uuid or "", []).append(number)
    for uuid, numbers in by_uuid.items():
        if uuid and len(numbers) > 1:
            remark = _settle(uuid, numbers, parts, distinct)
            remarks += [remark] if remark is not None else []
    return FleetSelection(tuple(parts), remarks=tuple(remarks))


def _part(one: Reached, name: str, select: Callable[[Host], Selection]) -> HostSelection:
    if one.host is None:
        return HostSelection(one.uri, name, _NOTHING, error=one.error)
    try:
        return HostSelection(one.uri, name, select(one.host))
    except VbackupError as err:
        return HostSelection(one.uri, name, _NOTHING, error=err)


def _settle(uuid: str, numbers: Sequence[int], parts: list[HostSelection], hosts: Sequence[Reached]) -> str | None:
    """Take out of the parts what is not backed up of the domains with this UUID; return a remark for the user."""
    found = []
    for number in numbers:
        host = hosts[number].host
        assert host is not None  # something of it was selected
        domain = next(one for one in parts[number].selection.chosen if one.uuid == uuid)
        state, has_taken_over = twins.state(host, uuid), twins.has_taken_over(host, uuid)
        found.append(Twin(domain.name, uuid, parts[number].name, state, has_taken_over))
    for number, verdict in zip(numbers, twins.judge(found)):
        if verdict.left_out is None and verdict.error is None:
            continue
        part = parts[number]
        domain = next(one for one in part.selection.chosen if one.uuid == uuid)
        left = tuple(one for one in part.selection.chosen if one is not domain)
        skipped, refused = part.selection.skipped, part.refused
        if verdict.left_out is not None:
            skipped += (Skipped(domain.name, uuid, verdict.left_out),)
        if verdict.error is not None:
            refused += ((domain, verdict.error),)
        parts[number] = replace(part, selection=replace(part.selection, chosen=left, skipped=skipped), refused=refused)
    return twins.remark(found)


def _distinct(hosts: Sequence[Reached]) -> tuple[list[Reached], list[str]]:
    """Return each host once, and what is to be said of those that were named twice."""
    kept: list[Reached] = []
    known: dict[tuple[str, ...], str] = {}
    remarks = []
    for one in hosts:
        identity = _identity(one)
        if identity is not None and identity in known:
            remarks.append(f"{one.uri} is the same host as {known[identity]}, and is left out.")
            continue
        if identity is not None:
            known[identity] = one.uri
        kept.append(one)
    return kept, remarks


def _identity(one: Reached) -> tuple[str, ...] | None:
    """Return what tells the libvirt that was reached from others, or None if it does not say.

    The UUID of a host alone is not enough: some machines have that of their model, and one host can have several
    libvirts, the system's and those of users.
    """
    if one.host is None:
        return None
    try:
        parts = urlsplit(one.host.real_uri)
        more = sorted(value for key, value in parse_qsl(parts.query) if key in _OTHER_DAEMON)
        uuid = capabilities.host_uuid(one.host.capabilities())
        return (uuid, one.host.hostname, parts.scheme.partition("+")[0], parts.path, *more)
    except VbackupError:
        return None


def _labels(hosts: Sequence[Reached]) -> dict[str, str]:
    """Return what people call each host, by URI: the short name, the whole name, or the URI."""
    wholes = {one.uri: _hostname(one) for one in hosts}
    shorts = {uri: whole.partition(".")[0] for uri, whole in wholes.items()}
    of_short, of_whole = Counter(shorts.values()), Counter(wholes.values())
    return {
        uri: (shorts[uri] if of_short[shorts[uri]] == 1 else whole if of_whole[whole] == 1 else uri) if whole else uri
        for uri, whole in wholes.items()
    }


def _hostname(one: Reached) -> str:
    try:
        return "" if one.host is None else one.host.hostname
    except VbackupError:
        return ""
