"""Define a restored domain in libvirt, after libvirt itself has said that it would accept it.

No call of libvirt only checks a domain XML: VIR_DOMAIN_DEFINE_VALIDATE is a flag of defining. So ``check`` defines the
XML under a throw-away name and UUID, and undefines it at once. That makes no file but the definition's own, and takes
some 20 ms with libvirt 9.0. What a run that was killed in between has left is removed by the next one: its name is
``vbackup-check-``, the process that has made it, and its own UUID.
"""

from __future__ import annotations

import logging
import re
import uuid as uuids
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from vbackup import files
from vbackup.domain import capabilities, identity, media, tpm
from vbackup.domain.capabilities import Capabilities
from vbackup.domain.host import (
    DEFINE_VALIDATE,
    INVALID_ARGUMENT,
    NO_DOMAIN,
    NO_SUPPORT,
    UNDEFINE_ALL_FLAGS,
    UNDEFINE_FLAGS,
    DomainHandle,
    Host,
    error_code,
)
from vbackup.domain.identity import Identity
from vbackup.errors import MonitorError, UnsuitableError, VbackupError
from vbackup.process import Process

log = logging.getLogger(__name__)

_THROW_AWAY = re.compile(r"vbackup-check-(?P<pid>[0-9]{1,9})-(?P<start_ticks>[0-9]{1,19})-(?P<uuid>[0-9a-f-]{36})")


def refuse_taken(host: Host, wanted: Identity, *, is_new: bool) -> None:
    """Raise UnsuitableError if a domain of the host has this name or UUID. ``is_new``: the user has chosen the name."""
    for handle in host.domains():
        if wanted.uuid == handle.uuid or wanted.name == handle.name:
            raise UnsuitableError(_taken(handle, wanted, is_new=is_new))


def _taken(handle: DomainHandle, wanted: Identity, *, is_new: bool) -> str:
    state = "which runs" if handle.is_active() else "which is off"
    if is_new:
        return f"libvirt already has a domain {handle.name}, {state}: choose another name with --name."
    beside = "'--name NEW' restores the backup beside it, as a new domain"
    if handle.uuid != wanted.uuid:
        return f"libvirt has another domain {handle.name} (UUID {handle.uuid}), {state}: {beside}."
    known_as = "" if handle.name == wanted.name else f", as {handle.name}"
    room = f"'{handle.virsh('undefine')}' makes room for it, and leaves the disks"
    if handle.is_active():
        room = f"'{handle.virsh('shutdown')}' and then {room}"
    lost = tpm.lost_by_undefining(handle)
    if lost is not None:
        room = f"{room}; before that, save a copy of {lost}"
    return (
        f"libvirt already has domain {wanted.name} (UUID {wanted.uuid}){known_as}, {state}: {beside}; {room}; 'vbackup"
        " restore --in-place' rolls back the disks of a domain that is off."
    )


def check(host: Host, xml: str) -> None:
    """Raise UnsuitableError if libvirt would not define this XML, with what it has in place of what it lacks."""
    wanted = identity.of(xml)
    _remove_throw_aways(host)
    text = identity.renamed(xml, _throw_away())
    try:
        with host.errors(f"accept the XML of domain {wanted.name}"):
            domain = host.connection.defineXMLFlags(text, DEFINE_VALIDATE)
    except MonitorError as err:
        hint = capabilities.hint(xml, of(host))
        remedy = "Nothing was written: restore to a directory only, correct the domain.xml, and define it with virsh."
        raise UnsuitableError(" ".join([*str(err).split(), *hint.split(), remedy])) from err
    _undefine(host, domain, UNDEFINE_FLAGS)


def _throw_away() -> Identity:
    uuid, process = str(uuids.uuid4()), Process.this()
    return Identity(f"vbackup-check-{process.pid}-{process.start_ticks}-{uuid}", uuid)


def start_troubles(host: Host, xml: str, *, is_missing: Callable[[str | Path], bool] = files.is_missing) -> list[str]:
    """Return why libvirt could not start the domain on its host, apart from its disks, which are not looked at.

    It makes a QEMU command line of the XML (virConnectDomainXMLToNative), for which it needs no network and no image.
    ``is_missing``: whether the host does not have a file.
    """
    found = []
    try:
        with host.errors("make a QEMU command line of its XML"):
            host.connection.domainXMLToNative("qemu-argv", xml, 0)
    except MonitorError as err:
        if error_code(err.__cause__) != NO_SUPPORT:
            found.append(" ".join(str(err).split()).rstrip("."))
    for kind, name in sorted(identity.networks(xml)):
        if not _has_network(host, kind, name, is_missing):
            found.append(f"its {kind} {name} is not on this host")
    return found


def _has_network(host: Host, kind: str, name: str, is_missing: Callable[[str | Path], bool]) -> bool:
    if kind == "bridge":
        return not is_missing(Path("/sys/class/net", name))
    try:
        with host.errors(f"look up network {name}"):
            host.connection.networkLookupByName(name)
    except MonitorError as err:
        return error_code(err.__cause__) == NO_SUPPORT  # the driver cannot say
    return True


def has_secret(host: Host, uuid: str) -> bool:
    """Return whether libvirt has a secret of that UUID, False also if it does not say."""
    try:
        with host.errors(f"look up secret {uuid}"):
            host.connection.secretLookupByUUIDString(uuid)
    except MonitorError:
        return False
    return True


def of(host: Host) -> Capabilities:
    """Return what the host's libvirt can run."""
    return capabilities.parse(host.capabilities())


def define(host: Host, xml: str) -> DomainHandle:
    """Define the domain, and return it. Raises what libvirt's calls raise."""
    wanted = identity.of(xml)
    with host.errors(f"define domain {wanted.name}"):
        return DomainHandle(host, host.connection.defineXMLFlags(xml, DEFINE_VALIDATE))


def set_autostart(handle: DomainHandle, *, is_on: bool = True) -> None:
    """Let libvirt start the domain with its host, or not. Raises what libvirt's calls raise."""
    with handle.host.errors(f"let domain {handle.name} {'start' if is_on else 'not start'} with the host"):
        handle.domain.setAutostart(int(is_on))


def start(handle: DomainHandle) -> None:
    """Start the domain. Raises what libvirt's calls raise."""
    with handle.host.errors(f"start domain {handle.name}"):
        handle.domain.create()


def mac_addresses(host: Host) -> set[str]:
    """Return the MAC addresses of all domains of the host, in lower case."""
    found: set[str] = set()
    for handle in host.domains():
        for read in (handle.live_xml, handle.definition_xml):
            found |= _quietly(read)
    return found


def _quietly(read: Callable[[], str]) -> frozenset[str]:
    """Return the MAC addresses in an XML, none if the domain has gone or is transient."""
    try:
        return identity.mac_addresses(read())
    except VbackupError as err:
        log.debug("no MAC addresses: %s", err)
        return frozenset()


def missing_media(
    host: Host,
    xml: str,
    *,
    restored: Collection[str] = (),
    is_missing: Callable[[str | Path], bool] = files.is_missing,
) -> list[media.Medium]:
    """Return the media that the host does not have: without them libvirt does not start the domain.

    ``restored``: paths that will be there; ``is_missing`` as for ``start_troubles``.
    """
    return [one for one in media.of(xml) if one.path not in restored and not _is_there(host, one, is_missing)]


def _is_there(host: Host, medium: media.Medium, is_missing: Callable[[str | Path], bool]) -> bool:
    if medium.path is not None:
        return not is_missing(medium.path)
    try:
        host.volume_path(medium.pool or "", medium.volume or "")
    except MonitorError:
        return False
    return True


def _remove_throw_aways(host: Host) -> None:
    for handle in host.domains():
        if _is_left(handle) and not handle.is_active():
            try:
                _undefine(host, handle.domain, UNDEFINE_FLAGS)
            except MonitorError as err:
                log.debug("%s", err)


def _is_left(handle: DomainHandle) -> bool:
    """Return True for a throw-away whose process has ended; another vbackup may be checking an XML now."""
    match = _THROW_AWAY.fullmatch(handle.name)
    if match is None or match["uuid"] != handle.uuid:
        return False
    process = Process.of(int(match["pid"]))
    return process is None or process.start_ticks != int(match["start_ticks"])


def undefine(handle: DomainHandle) -> None:
    """Remove the definition and the state of its TPM; what its XML names stays. Raises what libvirt's calls raise."""
    _undefine(handle.host, handle.domain, UNDEFINE_ALL_FLAGS)


def _undefine(host: Host, domain: Any, choices: Sequence[int]) -> None:
    """Undefine a domain that is there or not, with the first of these flags that its libvirt knows."""
    for flags in choices:
        try:
            with host.errors(f"undefine domain {domain.name()}"):
                domain.undefineFlags(flags)
            return
        except MonitorError as err:
            code = error_code(err.__cause__)
            if code == NO_DOMAIN:
                return
            if code != INVALID_ARGUMENT or flags == choices[-1]:
                raise
