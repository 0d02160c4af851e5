"""Read what a libvirt can run: its QEMUs, their machine types, and the user that they run as.

Format: https://libvirt.org/formatcaps.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lxml import etree

from vbackup.domain.domain_xml import root_of
from vbackup.errors import MalformedError
from vbackup.model import SecurityLabel

#: QEMU's machine types have some 20; what is in an XML can be anything.
_MAX_MACHINE_CHARACTERS = 100
_VERSIONED = re.compile(r"(?P<family>.*?)-?(?P<version>[0-9]+(?:\.[0-9]+)*)")


@dataclass(frozen=True)
class Guest:
    """A kind of guest that libvirt can run: one of <guest> and <arch>."""

    arch: str
    emulators: tuple[str, ...]
    machines: tuple[str, ...]


@dataclass(frozen=True)
class Capabilities:
    """What libvirt can run (virConnectGetCapabilities)."""

    guests: tuple[Guest, ...] = ()
    labels: tuple[SecurityLabel, ...] = ()  #: that it gives to a QEMU whose XML has no label


def parse(xml: str) -> Capabilities:
    """Return the capabilities. Raises MalformedError."""
    root = _root(xml)
    labels = [
        SecurityLabel(model.findtext("model") or "", label.text or "")
        for model in root.iterfind("host/secmodel")
        for label in model.iterfind("baselabel[@type='qemu']")
    ]
    return Capabilities(tuple(_guest(arch) for arch in root.iterfind("guest/arch")), tuple(labels))


def host_uuid(xml: str) -> str:
    """Return the UUID of the host, of its firmware or of libvirt's configuration; "" without. Raises MalformedError."""
    return _root(xml).findtext("host/uuid") or ""


def _root(xml: str) -> etree._Element:
    try:
        return etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    except etree.XMLSyntaxError as err:
        raise MalformedError(f"The capabilities of libvirt cannot be read: {err}.") from err


def _guest(arch: etree._Element) -> Guest:
    elements = [arch, *arch.iterfind("domain")]
    emulators = [one.text or "" for element in elements for one in element.iterfind("emulator")]
    machines = [one.text or "" for element in elements for one in element.iterfind("machine")]
    return Guest(arch.get("name", ""), *(tuple(dict.fromkeys(found)) for found in (emulators, machines)))


def hint(xml: str, capabilities: Capabilities) -> str:
    """Return what this libvirt has in place of the emulator or machine type that the domain XML names, as sentences.

    Empty if it has them. Another machine type is other hardware for the guest, so nobody chooses one for the user.
    Raises MalformedError.
    """
    root = root_of(xml)
    kind, emulator = root.find("os/type"), (root.findtext("devices/emulator") or "").strip()
    arch = kind.get("arch") if kind is not None else None
    machine = kind.get("machine") if kind is not None else None
    guests = [guest for guest in capabilities.guests if arch in (None, guest.arch)]
    if not guests:
        known = ", ".join(dict.fromkeys(guest.arch for guest in capabilities.guests)) or "none"
        return f"It runs guests of the architectures {known}."
    said = []
    emulators = [one for guest in guests for one in guest.emulators]
    if emulator and emulator not in emulators:
        said.append(f"Its QEMU for {arch} is {', '.join(dict.fromkeys(emulators)) or 'none'}, not {emulator}.")
    machines = [one for guest in guests for one in guest.machines]
    nearest = None if machine is None or machine in machines else _nearest(machine, machines)
    if nearest is not None:
        said.append(f"Its nearest machine type to {machine} is {nearest}.")
    return " ".join(said)


def _nearest(machine: str, known: Iterable[str]) -> str | None:
    """Return the newest of the same family that is not newer, or else the oldest; of a vendor's, QEMU's own family."""
    wanted = _VERSIONED.fullmatch(machine) if len(machine) <= _MAX_MACHINE_CHARACTERS else None
    if wanted is None:
        return None
    families: dict[str, list[tuple[tuple[int, ...], str]]] = {}
    for one in known:
        match = _VERSIONED.fullmatch(one)
        if match is not None:
            families.setdefault(match["family"], []).append((_numbers(match["version"]), one))
    family, version = wanted["family"], _numbers(wanted["version"])
    if family in families:
        older = [one for one in families[family] if one[0] <= version]
        return max(older)[1] if older else min(families[family])[1]
    # pc-q35-rhel9.2.0: the family of QEMU's own is a part of the vendor's.
    own = [name for name in families if name and family.startswith(name)]
    return max(families[max(own, key=len)])[1] if own else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
