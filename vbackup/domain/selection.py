"""Select the domains that a command works on: by name, UUID or pattern, or all that can be backed up.

libvirt is asked once. A domain that has disappeared when its turn comes fails by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vbackup import names
from vbackup.domain import domain_xml, standby_xml
from vbackup.domain.host import DomainHandle, Host
from vbackup.errors import ConnectionLostError, DomainNotFoundError, VbackupError

_EXCLUDED = "excluded by the user"


@dataclass(frozen=True)
class Chosen:
    """A domain that the user asked for."""

    name: str  #: in libvirt; the user's word if libvirt has no such domain
    uuid: str | None  #: None if libvirt has no such domain


@dataclass(frozen=True)
class Skipped:
    """A domain that ``--all`` leaves out."""

    name: str
    uuid: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """The selected domains, and those that ``--all`` left out."""

    chosen: tuple[Chosen, ...]
    skipped: tuple[Skipped, ...] = ()
    unmatched: tuple[str, ...] = ()  #: words of the user, patterns or exclusions, that match no domain


def is_one(word: str, host: Host) -> bool:
    """Return True if the word can only mean one domain: it is no pattern, or it is the exact name of a domain.

    Raises HostUnreachableError, MonitorError.
    """
    if not names.is_pattern(word):
        return True
    try:
        host.domain(word)
    except DomainNotFoundError:
        return False
    return True


def by_words(words: Sequence[str], host: Host, excluded: Sequence[str] = ()) -> Selection:
    """Return the domains that the words select, each once, in the order of the words; matches of a pattern by name.

    What a name, UUID or pattern in ``excluded`` matches is left out. A name that libvirt does not have is selected too,
    and fails later by itself; a pattern that matches nothing is ``unmatched``. Raises DomainNotFoundError if nothing is
    selected, ConnectionLostError, MonitorError.
    """
    selected = those_of_words(words, host, excluded)
    if not selected.chosen:
        words = " or ".join(map(repr, selected.unmatched if not selected.skipped else words))
        left_out = f"; left out: {', '.join(one.name for one in selected.skipped)}" if selected.skipped else ""
        raise DomainNotFoundError(None, f"matches {words} at {host.real_uri}{left_out}", host.elsewhere())
    return selected


def those_of_words(words: Sequence[str], host: Host, excluded: Sequence[str] = ()) -> Selection:
    """Return what ``by_words`` returns; it may be nothing. Raises ConnectionLostError, MonitorError."""
    handles = host.domains()
    chosen: dict[str, Chosen] = {}
    unmatched = []
    for word in words:
        matching = _matches(word, handles)
        if not matching:
            unmatched.append(word)
        for domain in matching:
            chosen.setdefault(domain.uuid or f"name {domain.name}", domain)
    return _without(Selection(tuple(chosen.values()), unmatched=tuple(unmatched)), excluded, handles)


def _without(selected: Selection, excluded: Sequence[str], handles: Sequence[DomainHandle]) -> Selection:
    """Return the selection without what is excluded; an exclusion that matches no domain of the host is unmatched."""
    out = [domain for domain in selected.chosen if _is_excluded(domain, excluded)]
    return Selection(
        tuple(domain for domain in selected.chosen if domain not in out),
        tuple(Skipped(domain.name, domain.uuid or "", _EXCLUDED) for domain in out if domain.uuid is not None),
        (*selected.unmatched, *_unmatched(excluded, handles)),
    )


def _unmatched(excluded: Sequence[str], handles: Sequence[DomainHandle]) -> list[str]:
    return [word for word in excluded if not any(_is_excluded(handle, [word]) for handle in handles)]


def _matches(word: str, handles: Sequence[DomainHandle]) -> list[Chosen]:
    exact = [it for it in handles if it.name == word] or [it for it in handles if it.uuid == word.lower()]
    if exact or not names.is_pattern(word):
        return [_chosen(handle) for handle in exact] or [Chosen(word, None)]
    return [_chosen(handle) for handle in handles if fnmatchcase(handle.name, word) and not _is_boot_copy(handle)]


def all_domains(host: Host, excluded: Sequence[str]) -> Selection:
    """Return all domains except those that match a name, UUID or pattern in ``excluded`` or cannot be backed up.

    Raises DomainNotFoundError if none is left, ConnectionLostError, MonitorError.
    """
    selected = those_of_all(host, excluded)
    if not selected.chosen:
        reasons = "; ".join(f"{domain.name}: {domain.reason}" for domain in selected.skipped)
        hint = f"left out: {reasons}" if reasons else f"libvirt has no domains there; {host.elsewhere()}"
        raise DomainNotFoundError(None, f"at {host.real_uri} can be backed up", hint)
    return selected


def those_of_all(host: Host, excluded: Sequence[str]) -> Selection:
    """Return what ``all_domains`` returns; it may be nothing. Raises ConnectionLostError, MonitorError."""
    chosen, skipped = [], []
    handles = host.domains()
    for handle in handles:
        reason = _EXCLUDED if _is_excluded(handle, excluded) else reason_to_skip(handle)
        if reason is None:
            chosen.append(_chosen(handle))
        else:
            skipped.append(Skipped(handle.name, handle.uuid, reason))
    return Selection(tuple(chosen), tuple(skipped), tuple(_unmatched(excluded, handles)))


def _is_excluded(one: DomainHandle | Chosen, excluded: Sequence[str]) -> bool:
    return any(word in (one.name, one.uuid) or fnmatchcase(one.name, word) for word in excluded)


def reason_to_skip(handle: DomainHandle) -> str | None:
    """Return why the domain cannot be backed up, as far as its XML and state show; None if it may be possible."""
    if _is_boot_copy(handle):
        return "it is the copy of a domain that a boot test runs"
    try:
        xml = handle.live_xml()
        reason = _reason_by_kind(xml)
        if reason is not None:
            return reason
        if not handle.host.is_local and not handle.host.has_link and not handle.is_active():
            return "it is off and its images are on another host, which is not reached by SSH"
        domain = domain_xml.parse(xml)
    except ConnectionLostError:
        raise
    except VbackupError:
        # It may have disappeared or be unreadable: its backup reports that with the right exit status.
        return None
    if domain.disks:
        return None
    return "; ".join(f"{left.dev}: {left.reason}" for left in domain.left_out) or "it has no disk"


def _reason_by_kind(xml: str) -> str | None:
    """Return why no domain of that kind is backed up, or None. Raises MalformedError."""
    kind = domain_xml.hypervisor(xml)
    if kind not in domain_xml.OF_QEMU:
        return f"it runs in {kind}, not in QEMU or KVM"
    return "it is a standby, and has not taken over" if standby_xml.waits(xml) else None


def _chosen(handle: DomainHandle) -> Chosen:
    return Chosen(handle.name, handle.uuid)


def _is_boot_copy(handle: DomainHandle) -> bool:
    return handle.name.startswith(names.BOOT_COPY_PREFIX)
