"""The definition of a standby: what keeps it from starting, its links, and what it is in the middle of: XML in and out.

Whatever a standby is lies in its definition, which libvirt replaces in one step, on any host. The mark is an element in
<metadata>:

    <vbackup:standby xmlns:vbackup="urn:vbackup:standby:1" state="ready" repository="..." backup="..." .../>

While its images are written, the definition boots a kernel that does not exist: so neither a person nor libvirt can
start it, without any hook script, and the name of the file says what to do. Links of network interfaces are down until
the failover. What was there before is kept in the mark.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import Enum

from lxml import etree

from vbackup import names
from vbackup.domain.domain_xml import check_path, root_of, text_of
from vbackup.errors import MalformedError

_NAMESPACE = "urn:vbackup:standby:1"
_MARK = f"{{{_NAMESPACE}}}standby"
#: The kernel that does not exist, in the directory of the standby.
BARRIER = "half-applied--run-vbackup-replicate"


class State(Enum):
    """What a standby is."""

    READY = "ready"  #: its disks are as at a backup
    HALF_APPLIED = "half-applied"  #: a backup is being applied, or that was interrupted: it cannot be started
    ACTIVE = "active"  #: it has taken over


@dataclass(frozen=True)
class Mark:
    """What the definition of a standby says of it."""

    state: State
    repository: str  #: id of the repository that its backups are in
    backup: str  #: id of the backup that its disks are as, or that is being applied
    directory: str  #: path of its images on its host
    definition: str = ""  #: digest of the definition that it was made from
    links_down: tuple[str, ...] = ()  #: MAC addresses of interfaces whose links are down also after a failover
    kernel: str | None = None  #: that it boots when it is not half applied


def read(xml: str) -> Mark | None:
    """Return the mark of a domain, None if it is no standby. Raises MalformedError."""
    found = root_of(xml).find(f"metadata/{_MARK}")
    if found is None:
        return None
    try:
        state = State(found.get("state", ""))
    except ValueError:
        raise MalformedError(
            f"The domain XML has a standby with the state {found.get('state', '')[:50]!r}; a newer vbackup has made it."
        ) from None
    backup, repository = found.get("backup", ""), found.get("repository", "")
    if not names.BACKUP_ID.fullmatch(backup) or not names.REPOSITORY_ID.fullmatch(repository):
        raise MalformedError("The mark of the standby in the domain XML names no backup of a repository.")
    return Mark(
        state,
        repository,
        backup,
        found.get("directory", ""),
        found.get("definition", ""),
        tuple(found.get("links-down", "").split()),
        found.get("kernel"),
    )


def waits(xml: str) -> bool:
    """Return True for a standby that has not taken over. Raises MalformedError."""
    mark = read(xml)
    return mark is not None and mark.state is not State.ACTIVE


def digest(xml: str) -> str:
    """Return what tells a definition from others."""
    return hashlib.sha256(xml.encode()).hexdigest()


def made(xml: str, mark: Mark) -> tuple[str, Mark]:
    """Return the definition of a standby that is ready, and its mark: from the XML of the restored domain.

    ``mark`` has no digest and no links yet. Raises MalformedError, UsageError if its directory cannot be in an XML.
    """
    check_path(mark.directory)
    root = root_of(xml)
    down = []
    for interface in root.iterfind("devices/interface"):
        link, mac = interface.find("link"), interface.find("mac")
        if link is None:
            link = etree.SubElement(interface, "link")
        elif link.get("state") == "down" and mac is not None:
            down.append(mac.get("address", "").lower())
        link.set("state", "down")
    whole = replace(mark, state=State.READY, definition=digest(xml), links_down=tuple(down), kernel=None)
    _set(root, whole)
    return text_of(root), whole


def ready(xml: str, backup: str) -> str:
    """Return the definition of the same standby that is as at that backup, and waits. Raises MalformedError."""
    root, mark = _opened(xml)
    _take_barrier(root, mark)
    for interface in root.iterfind("devices/interface"):
        _set_link(interface, "down")
    _set(root, replace(mark, state=State.READY, backup=backup, kernel=None))
    return text_of(root)


def half_applied(xml: str, backup: str) -> str:
    """Return the definition of the same standby that cannot be started, while that backup is applied.

    Raises MalformedError.
    """
    root, mark = _opened(xml)
    _take_barrier(root, mark)
    system = root.find("os")
    if system is None:
        raise MalformedError("The domain XML has no <os>.")
    kernel = system.find("kernel")
    own = None if kernel is None else kernel.text
    if kernel is None:
        kernel = etree.SubElement(system, "kernel")
    kernel.text = f"{mark.directory}/{BARRIER}"
    _set(root, replace(mark, state=State.HALF_APPLIED, backup=backup, kernel=own))
    return text_of(root)


def active(xml: str) -> str:
    """Return the definition of the same standby that has taken over: its links are as the original's.

    Raises MalformedError.
    """
    root, mark = _opened(xml)
    for interface in root.iterfind("devices/interface"):
        mac = interface.find("mac")
        stays = mac is not None and mac.get("address", "").lower() in mark.links_down
        _set_link(interface, "down" if stays else "up")
    _set(root, replace(mark, state=State.ACTIVE))
    return text_of(root)


def _opened(xml: str) -> tuple[etree._Element, Mark]:
    mark = read(xml)
    if mark is None:
        raise MalformedError("The domain XML is not that of a standby.")
    return root_of(xml), mark


def _take_barrier(root: etree._Element, mark: Mark) -> None:
    """Let the domain boot again what it booted."""
    for kernel in root.findall("os/kernel"):
        if kernel.text != f"{mark.directory}/{BARRIER}":
            continue
        if mark.kernel is None:
            kernel.getparent().remove(kernel)  # type: ignore[union-attr]
        else:
            kernel.text = mark.kernel


def _set_link(interface: etree._Element, state: str) -> None:
    link = interface.find("link")
    if link is None:
        link = etree.SubElement(interface, "link")
    link.set("state", state)


def _set(root: etree._Element, mark: Mark) -> None:
    metadata = root.find("metadata")
    if metadata is None:
        metadata = etree.Element("metadata")
        root.insert(0, metadata)
    for old in metadata.findall(_MARK):
        metadata.remove(old)
    element = etree.SubElement(metadata, _MARK, nsmap={"vbackup": _NAMESPACE})
    element.set("state", mark.state.value)
    element.set("repository", mark.repository)
    element.set("backup", mark.backup)
    element.set("directory", mark.directory)
    element.set("definition", mark.definition)
    if mark.links_down:
        element.set("links-down", " ".join(mark.links_down))
    if mark.kernel is not None:
        element.set("kernel", mark.kernel)
