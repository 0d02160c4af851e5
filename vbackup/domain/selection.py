"""Which domains a command is for: names, UUIDs, patterns, or all that can be backed up.

What libvirt has is asked once; a domain can be gone when its turn comes, which is that domain's failure then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vbackup.domain import domain_xml
from vbackup.domain.host import DomainHandle, Host
from vbackup.errors import ConnectionLostError, DomainNotFoundError, VbackupError

#: What makes a word a pattern, unless a domain has just that name.
_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True)
class Chosen:
    """A domain that was asked for."""

    name: str  #: as libvirt has it; the user's word where libvirt has none such
    uuid: str | None  #: None where libvirt has none such


@dataclass(frozen=True)
class Skipped:
    """A domain that ``--all`` does not mean."""

    name: str
    uuid: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """The answer."""

    chosen: tuple[Chosen, ...]
    skipped: tuple[Skipped, ...] = ()


def is_pattern(word: str) -> bool:
    """True if the word is a pattern, provided that no domain is called so."""
    return not _WILDCARDS.isdisjoint(word)


def is_one(word: str, host: Host) -> bool:
    """True if the word means one domain whatever others there are: no pattern, or the very name of a domain."""
    if not is_pattern(word):
        return True
    try:
        host.domain(word)
    except DomainNotFoundError:
        return False
    return True


def by_words(words: Sequence[str], host: Host) -> Selection:
    """The domains that the words mean, in their order, each once; those of a pattern by name.

    A name that libvirt does not have is chosen too: that is its own failure. Raises DomainNotFoundError for a
    pattern that no name matches.
    """
    listed = host.domains()
    chosen: dict[str, Chosen] = {}
    for word in words:
        for one in _meant(word, listed, host):
            chosen.setdefault(one.uuid or f"name {one.name}", one)
    return Selection(tuple(chosen.values()))


def _meant(word: str, listed: Sequence[DomainHandle], host: Host) -> Iterable[Chosen]:
    exact = [one for one in listed if one.name == word] or [one for one in listed if one.uuid == word.lower()]
    if exact or not is_pattern(word):
        return [_chosen(one) for one in exact] or [Chosen(word, None)]
    matching = [_chosen(one) for one in listed if fnmatchcase(one.name, word)]
    if not matching:
        raise DomainNotFoundError(word, f"at {host.real_uri}", "'virsh list --all' shows those there are")
    return matching


def all_domains(host: Host, excluded: Sequence[str]) -> Selection:
    """All domains but those whose name or UUID matches one of ``excluded``, and those that cannot be backed up.

    Raises DomainNotFoundError if none is left.
    """
    chosen, skipped = [], []
    for handle in host.domains():
        reason = "excluded by the user" if _is_excluded(handle, excluded) else _reason_to_skip(handle)
        if reason is None:
            chosen.append(_chosen(handle))
        else:
            skipped.append(Skipped(handle.name, handle.uuid, reason))
    if not chosen:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in skipped) or "libvirt has none"
        raise DomainNotFoundError("--all", f"at {host.real_uri} can be backed up", f"left out: {reasons}")
    return Selection(tuple(chosen), tuple(skipped))


def _is_excluded(handle: DomainHandle, excluded: Sequence[str]) -> bool:
    return any(word in (handle.name, handle.uuid) or fnmatchcase(handle.name, word) for word in excluded)


def _reason_to_skip(handle: DomainHandle) -> str | None:
    """Why no backup of the domain is possible, as far as that can be seen from outside."""
    try:
        xml = handle.live_xml()
        kind = domain_xml.hypervisor(xml)
        if kind not in domain_xml.OF_QEMU:
            return f"it is a domain of {kind}, not of QEMU or KVM"
        if not handle.host.is_local and not handle.is_active():
            return "it is off, and its images are on another host"
        domain = domain_xml.parse(xml)
    except ConnectionLostError:
        raise
    except VbackupError:
        # It may have gone, or not be readable: whoever backs it up tells, with the true exit status.
        return None
    if domain.disks:
        return None
    return "; ".join(f"{left.dev}: {left.reason}" for left in domain.left_out) or "it has no disk"


def _chosen(handle: DomainHandle) -> Chosen:
    return Chosen(handle.name, handle.uuid)
