"""Make the definition with which a domain runs while its data still comes from a backup, and the plain one after it.

During a live restore each disk is an overlay at home, and the backup is its backing file: an NBD export on a unix
socket. The backing file is named explicitly, or libvirt would look for one itself (and change the owner of what it
finds). Both error policies are "stop": with only one, a write is lost as EIO if the server dies (measured, QEMU 7.2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from lxml import etree

from vbackup.domain.domain_xml import AGENT_CHANNEL, check_path, dev_of, root_of, text_of

_POLICIES = ("error_policy", "rerror_policy")


@dataclass(frozen=True)
class FormatOptions:
    """Options of a disk's qcow2 node that QEMU does not tell, as libvirt passes them (QAPI BlockdevOptionsQcow2)."""

    discard: str | None = None
    discard_no_unref: bool | None = None
    cache_bytes: int | None = None

    def document(self) -> dict[str, object]:
        """Return those that are set, by QAPI's names."""
        options = {
            "discard": self.discard,
            "discard-no-unref": self.discard_no_unref,
            "cache-size": self.cache_bytes,
        }
        return {name: value for name, value in options.items() if value is not None}


def live(xml: str, devs: Collection[str], socket: str) -> str:
    """Return the XML with the export of the same name, on the socket, as the backing file of each of these disks.

    Raises MalformedError if the text is no domain XML, UsageError if the path cannot be written in XML.
    """
    check_path(socket)
    root = root_of(xml)
    for dev, disk in _disks(root):
        if dev not in devs:
            continue
        driver = disk.find("driver")
        assert driver is not None  # with_disks makes one
        for policy in _POLICIES:
            driver.set(policy, "stop")
        for old in disk.findall("backingStore"):
            disk.remove(old)
        target = disk.find("target")
        assert target is not None  # dev_of has read it
        target.addprevious(_backing(dev, socket))
    return text_of(root)


def plain(definition: str, original: str, devs: Collection[str]) -> str:
    """Return the definition without what ``live`` has added to these disks; ``original`` is what that was added to.

    What the user has changed of the definition meanwhile stays. Raises MalformedError.
    """
    root, before = root_of(definition), dict(_disks(root_of(original)))
    for dev, disk in _disks(root):
        if dev not in devs:
            continue
        for old in disk.findall("backingStore"):
            disk.remove(old)
        driver = disk.find("driver")
        earlier = before[dev].find("driver") if dev in before else None
        for policy in _POLICIES if driver is not None else ():
            assert driver is not None
            value = earlier.get(policy) if earlier is not None else None
            if value is None:
                driver.attrib.pop(policy, None)
            else:
                driver.set(policy, value)
    return text_of(root)


def pending(xml: str, socket: str) -> tuple[str, ...]:
    """Return the disks (dev) that still have an export on the socket in their backing chain. Raises MalformedError."""
    found = []
    for dev, disk in _disks(root_of(xml)):
        sockets = {host.get("socket") for host in disk.iterfind(".//backingStore/source/host")}
        if socket in sockets:
            found.append(dev)
    return tuple(found)


def waits_for_agent(xml: str) -> bool:
    """Return True if a running domain has a channel for the guest agent, and none is connected yet: its guest boots.

    Raises MalformedError.
    """
    targets = root_of(xml).findall(f"devices/channel/target[@name='{AGENT_CHANNEL}']")
    return bool(targets) and all(target.get("state") != "connected" for target in targets)


def images(xml: str) -> Mapping[str, str]:
    """Return the path of the active image of each disk that is a file. Raises MalformedError."""
    found = {}
    for dev, disk in _disks(root_of(xml)):
        source = disk.find("source")
        path = source.get("file") if source is not None else None
        if path:
            found[dev] = path
    return found


def format_options(xml: str, dev: str) -> FormatOptions:
    """Return what the XML of a running domain says of the qcow2 node of a disk. Raises MalformedError."""
    driver = dict(_disks(root_of(xml)))[dev].find("driver")
    if driver is None:
        return FormatOptions()
    no_unref = driver.get("discard_no_unref")
    size = driver.findtext("metadata_cache/max_size")
    return FormatOptions(
        discard=driver.get("discard"),
        discard_no_unref=None if no_unref is None else no_unref == "on",
        cache_bytes=int(size) if size is not None and size.strip().isdecimal() else None,
    )


def _disks(root: etree._Element) -> Iterator[tuple[str, etree._Element]]:
    return ((dev_of(element), element) for element in root.iterfind("devices/disk"))


def _backing(dev: str, socket: str) -> etree._Element:
    backing = etree.Element("backingStore", type="network")
    etree.SubElement(backing, "format", type="raw")
    source = etree.SubElement(backing, "source", protocol="nbd", name=dev)
    etree.SubElement(source, "host", transport="unix", socket=socket)
    etree.SubElement(backing, "backingStore")  # the chain ends here
    return backing
