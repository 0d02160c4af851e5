"""Give a restored domain the identity of the original, or a new one that can run beside it: XML in, XML out.

Beside its name and UUID, a domain is known by what a network, a host or its guest tells it from others by: MAC
addresses, tap devices, security labels, the generation id. Each is listed here with what libvirt does when two domains
have the same. vbackup.domain.restored_xml has already taken away what the original writes to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from lxml import etree

from vbackup.domain.domain_xml import root_of, text_of
from vbackup.errors import MalformedError

#: QEMU's and libvirt's own prefix of MAC addresses: the host part is random.
OUI = "52:54:00"
#: What libvirt names itself, and gives to the next domain when this one ends (virNetDevReserveName).
_OWN_TAPS = re.compile(r"(vnet|macvtap|macvlan|vif)[0-9]+")
#: Kinds of <virtualport> whose ids libvirt makes when the XML has none.
_GENERATED_PORTS = {"openvswitch": ("interfaceid",), "802.1Qbg": ("instanceid",)}
_AUTOMATIC = ("-1", "0")


@dataclass(frozen=True)
class Identity:
    """What libvirt knows a domain by."""

    name: str
    uuid: str


@dataclass(frozen=True)
class Identified:
    """The XML of a domain with its identity, and what a person has to know about it."""

    text: str
    identity: Identity
    notes: tuple[str, ...] = ()  #: whole sentences


def of(xml: str) -> Identity:
    """Return the identity of the domain. Raises MalformedError if it has no name or UUID."""
    root = root_of(xml)
    name, uuid = root.findtext("name"), (root.findtext("uuid") or "").strip().lower()
    if not name or not uuid:
        raise MalformedError(f"The domain XML has no {'<uuid>' if name else '<name>'}.")
    return Identity(name, uuid)


def keep(xml: str) -> Identified:
    """Return the XML for a domain that is the original, as it was at the backup.

    Its guest gets a new generation id: it has gone back in time, as Windows domain controllers need to know (Microsoft,
    "Virtual Machine Generation ID": a new one after a restore from a backup). Raises MalformedError.
    """
    root = root_of(xml)
    _forget_generation(root)
    return Identified(text_of(root), of(xml))


def renew(xml: str, identity: Identity, macs: Iterator[str], *, edit: str = "virsh edit") -> Identified:
    """Return the XML for a domain with this new identity, which can run while the original does.

    ``macs`` yields MAC addresses that no domain has; ``edit`` is the command that changes the domain later. Raises
    MalformedError.
    """
    root = root_of(xml)
    notes: list[str] = []
    rename(root, identity)
    _forget_generation(root)
    _renew_macs(root, macs)
    for interface in root.iterfind("devices/interface"):
        notes += _renew_interface(interface)
    for cid in root.iterfind("devices/vsock/cid"):
        if cid.get("auto") != "yes":
            notes.append(f"The vsock address (cid) {cid.get('address')} stays the original's: libvirt chooses another.")
            cid.attrib.pop("address", None)
            cid.set("auto", "yes")
    notes += _renew_labels(root, edit)
    places = list(dict.fromkeys(_fixed_places(root)))
    if places:
        notes.append(
            f"The new domain still has what only one domain at a time can use: {', '.join(places)}. While the original"
            f" runs, change that with '{edit}' before you start it."
        )
    return Identified(text_of(root), identity, tuple(notes))


def renamed(xml: str, identity: Identity) -> str:
    """Return the same XML with another name and UUID, and nothing else changed. Raises MalformedError."""
    root = root_of(xml)
    rename(root, identity)
    return text_of(root)


def rename(root: etree._Element, identity: Identity) -> None:
    """Give the domain this name and UUID; its firmware tables follow, or libvirt refuses the XML ("UUID mismatch")."""
    old = (root.findtext("uuid") or "").strip().lower()
    for tag, text in (("name", identity.name), ("uuid", identity.uuid)):
        element = root.find(tag)
        if element is None:
            element = etree.Element(tag)
            root.insert(0, element)
        element.text = text
    for entry in root.iterfind("sysinfo/system/entry"):
        is_uuid = entry.get("name") == "uuid"
        if is_uuid or (entry.get("name") == "serial" and old and (entry.text or "").strip().lower() == old):
            entry.text = identity.uuid


def mac_addresses(xml: str) -> frozenset[str]:
    """Return the MAC addresses of the domain's interfaces, in lower case. Raises MalformedError."""
    found = (mac.get("address", "").lower() for mac in root_of(xml).iterfind("devices/interface/mac"))
    return frozenset(filter(None, found))


def networks(xml: str) -> frozenset[tuple[str, str]]:
    """Return the networks of libvirt ("network") and bridges of the host ("bridge") that the domain is connected to.

    Raises MalformedError.
    """
    found = set()
    for interface in root_of(xml).iterfind("devices/interface"):
        kind, source = interface.get("type", ""), interface.find("source")
        name = source.get(kind) if source is not None and kind in ("network", "bridge") else None
        if name and "/" not in name:
            found.add((kind, name))
    return frozenset(found)


def new_macs(used: Collection[str]) -> Iterator[str]:
    """Yield random MAC addresses of QEMU's prefix, none of them twice, and none of ``used`` (in lower case)."""
    import secrets  # only a new identity needs it

    taken = set(used)
    while True:
        mac = ":".join([OUI, *(f"{byte:02x}" for byte in secrets.token_bytes(3))])
        if mac not in taken:
            taken.add(mac)
            yield mac


def _forget_generation(root: etree._Element) -> None:
    """Let libvirt make a new generation id: it does for an empty <genid/> (virDomainDefParseXML)."""
    for genid in root.findall("genid"):
        genid.text = None


def _renew_macs(root: etree._Element, macs: Iterator[str]) -> None:
    """Give each address another one: interfaces that share one, as the two of a <teaming> do, still share it."""
    new: dict[str, str] = {}
    for interface in root.iterfind("devices/interface"):
        mac = interface.find("mac")
        if mac is not None and mac.get("address"):
            old = mac.get("address", "").lower()
            if old not in new:
                new[old] = next(macs)
            mac.set("address", new[old])
        for parameter in interface.iterfind("filterref/parameter"):
            value = (parameter.get("value") or "").lower()
            if value in new:  # the filter would drop all that comes from the new address
                parameter.set("value", new[value])


def _renew_interface(interface: etree._Element) -> Iterable[str]:
    """Take the names and ids of an interface away that the host would find twice; yield what a person should know."""
    target = interface.find("target")
    is_the_users = target is not None and target.get("managed") == "no"
    if target is not None and target.get("dev") and not is_the_users:
        name = target.get("dev", "")
        interface.remove(target)
        if not _OWN_TAPS.fullmatch(name):
            yield f"The network device {name} stays the original's: libvirt names another one."
    for port in interface.iterfind("virtualport"):
        for parameters in port.iterfind("parameters"):
            for name in _GENERATED_PORTS.get(port.get("type", ""), ()):
                parameters.attrib.pop(name, None)


def _renew_labels(root: etree._Element, edit: str) -> Iterable[str]:
    """Drop the label of a run; yield what a person should know about one that the administrator has chosen."""
    for seclabel in root.iterfind("seclabel"):
        if seclabel.get("type", "dynamic") == "dynamic":
            for tag in ("label", "imagelabel"):
                for element in seclabel.findall(tag):
                    seclabel.remove(element)
        elif seclabel.get("type") == "static" and seclabel.get("model") != "dac":
            label = (seclabel.findtext("label") or "").strip()
            yield (
                f"The new domain has the {seclabel.get('model')} label {label} of the original: each can open the"
                f" other's images. '{edit}' changes it."
            )


def _fixed_places(root: etree._Element) -> Iterator[str]:
    """Yield the ports, sockets and devices of the host that the XML names, and that two domains cannot both have."""
    for graphics in root.iterfind("devices/graphics"):
        yield from _fixed_graphics(graphics)
    for source in root.iterfind("devices//source[@mode='bind']"):
        parent = source.getparent()
        where = source.get("path") or source.get("service")
        if where and parent is not None:
            yield f"{parent.tag!s} {'socket' if source.get('path') else 'port'} {where}"
    for interface in root.iterfind("devices/interface"):
        yield from _fixed_interface(interface)


def _fixed_graphics(graphics: etree._Element) -> Iterator[str]:
    kind = graphics.get("type", "")
    is_automatic = graphics.get("autoport") == "yes"
    for name in ("websocket",) if is_automatic else ("port", "tlsPort", "websocket"):
        if graphics.get(name, "-1") not in _AUTOMATIC:
            yield f"{kind} {name} {graphics.get(name)}"
    for element in (graphics, *graphics.iterfind("listen")):
        if element.get("socket"):
            yield f"{kind} socket {element.get('socket')}"


def _fixed_interface(interface: etree._Element) -> Iterator[str]:
    source, target = interface.find("source"), interface.find("target")
    if interface.get("type") == "hostdev":
        yield "an interface of the host (hostdev)"
    if source is not None and source.get("path") and source.get("mode") != "bind":
        yield f"interface socket {source.get('path')}"
    if target is not None and target.get("dev"):
        yield f"network device {target.get('dev')}"
    for forwarded in interface.iterfind("portForward/range"):
        yield f"forwarded port {forwarded.get('start')}"
