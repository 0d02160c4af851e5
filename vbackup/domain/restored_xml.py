"""Make the definition of a restored domain from what a backup has: exactly its disks, and nothing of the original's.

A restored domain must not write to what belongs to the original. Its disks are taken from the XML of the domain that
was backed up: while it runs, its definition can have other disks, or another image under the same name. What is not in
the backup is removed, or moved to the output directory where libvirt or QEMU then makes a new file.
vbackup.domain.domain_xml.with_disks writes the paths of the restored images.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

from lxml import etree

from vbackup.domain import host_state, machine_xml
from vbackup.domain.domain_xml import check_path, dev_of, root_of, text_of
from vbackup.domain.machine_xml import NOWHERE, Places
from vbackup.model import LeftOut

#: Attributes of <source> that say which image it is, for all types of disks.
_PLACE = ("file", "dev", "dir", "pool", "volume", "protocol", "name", "path", "namespace")
#: What describes an image, or a device of the running QEMU, and not the disk.
_OF_THE_RUN = ("backingStore", "mirror")
#: More threads than any domain has.
MAX_IOTHREADS = 1000
#: Elements of the XML that state is found by, and that get a new path instead of being removed.
_MOVED = {"varstore": "varstore", "pstore": "pstore"}


@dataclass(frozen=True)
class RestoredXml:
    """The definition of a restored domain, before the paths of its images are written."""

    text: str
    left_out: tuple[LeftOut, ...]  #: what the original has and this domain has not
    shared: tuple[LeftOut, ...]  #: what this domain still has of the original's
    has_nvram: bool  #: its UEFI firmware stores variables in a file
    new_files: tuple[str, ...] = ()  #: paths in the output directory where libvirt or QEMU makes files when it starts
    keeps_others: bool = False  #: only some disks were asked for, and the rest is as in the definition
    nvram_place: str | None = None  #: where the original has its UEFI variables, in one word
    loader: str | None = None  #: UEFI firmware that the definition names and no template of variables for


def rework(
    definition: str,
    live: str | None,
    devs: Mapping[str, str | None],
    *,
    output: str,
    keep_others: bool,
    places: Places = NOWHERE,
) -> RestoredXml:
    """Return the definition for a domain whose restored disks are ``devs``, each with the path of its original image.

    ``live`` is the XML of the running domain, None if it was off or the backup does not have it. ``output`` is the
    directory of the restored files. ``keep_others``: what was not asked for stays as it is in the definition, and is
    reported as shared. ``places`` has the files of the machine that are restored too: the domain uses them. Raises
    MalformedError if a text is no domain XML, UsageError if ``output`` cannot be written in XML; the caller can choose
    another directory.
    """
    check_path(output)
    root = root_of(definition)
    report = _Report()
    _other_disks(root, devs, report, media=places.media, keep_others=keep_others)
    _place_disks(root, None if live is None else root_of(live), devs, report)
    for state in host_state.find(root):
        if state.machine is None or state.machine not in places.kinds:
            _detach(state, output, report, keep_others=keep_others)
    machine_xml.place(root, places)
    _remove_leases(root, report, keep_others=keep_others)
    _move_output(root, output, report, keep_others=keep_others)
    for dev, entry in _disks(root).items():
        source = entry.find("source")
        if dev in devs and entry.get("type") == "volume" and source is not None:
            volume = f"volume {source.get('volume')} of pool {source.get('pool')}"
            report.left_out.append(LeftOut(dev, f"{volume}: domain.xml has the path of the restored disk"))
    return RestoredXml(
        text_of(root),
        tuple(report.left_out),
        tuple(report.shared),
        has_nvram=host_state.needs_nvram(root),
        new_files=tuple(report.new_files),
        keeps_others=keep_others,
        nvram_place=_nvram_place(root),
        loader=_loader_without_template(root),
    )


def nvram_left_out(xml: RestoredXml, *, is_in_backup: bool, path: str) -> LeftOut | None:
    """Return what the user has to know about the UEFI variables of the restored domain, which are at ``path``, or None.

    ``is_in_backup``: they are restored there. Otherwise libvirt makes new ones from a template, which it has for the
    firmware that it chose itself (qemuPrepareNVRAM in libvirt's qemu_process.c: "unable to find any master var store").
    """
    if not xml.has_nvram or (is_in_backup and not xml.keeps_others):
        return None
    if is_in_backup:  # which surprises who has asked for disks only
        was = xml.nvram_place or "UEFI variables in the place that libvirt chooses"
        return LeftOut("nvram", f"{was}: the domain gets those of the backup, {path}", kind="nvram")
    reason = "UEFI variables: they are not in the backup, and libvirt makes new ones when the domain starts"
    if xml.loader is not None:
        reason += f" if it knows a template for {xml.loader}; if not, copy one that fits that firmware to {path}"
    return LeftOut("nvram", reason, kind="nvram")


def _nvram_place(root: etree._Element) -> str | None:
    nvram = root.find("os/nvram")
    if nvram is None:
        return None
    source = nvram.find("source")
    names = ("file", "dev", "volume", "name")
    place = None if source is None else next((source.get(name) for name in names if source.get(name)), None)
    return place or (nvram.text or "").strip() or None


def _loader_without_template(root: etree._Element) -> str | None:
    system, nvram = root.find("os"), root.find("os/nvram")
    if system is None or system.get("firmware") == "efi" or (nvram is not None and nvram.get("template")):
        return None
    return (system.findtext("loader") or "").strip() or "its firmware"


class _Report:
    """Collects what differs from the original, and what does not."""

    def __init__(self) -> None:
        self.left_out: list[LeftOut] = []
        self.shared: list[LeftOut] = []
        self.new_files: list[str] = []


# the disks of the backup


def _place_disks(
    root: etree._Element, live: etree._Element | None, devs: Mapping[str, str | None], report: _Report
) -> None:
    """Give the definition an entry for each restored disk, as the domain had it that was backed up."""
    defined = _disks(root)
    running = {} if live is None else _disks(live)
    for dev, path in devs.items():
        entry, origin = defined.get(dev), running.get(dev)
        if entry is not None and _is_disk(entry) and (_same(entry, origin) if live is not None else True):
            if live is None and path is not None and _path(entry) not in (None, path):
                report.left_out.append(LeftOut(dev, f"the definition's {_path(entry)} is {host_state.NOT_IN_BACKUP}"))
            continue
        if entry is not None:
            what = _path(entry) or "a drive without a medium"
            report.left_out.append(
                LeftOut(
                    dev, f"{entry.get('device', 'disk')} {what}: only the definition had it, and another disk is {dev}"
                )
            )
        _insert(root, entry, _new_entry(root, live, origin, dev, instead_of=entry))


def _new_entry(
    root: etree._Element,
    live: etree._Element | None,
    origin: etree._Element | None,
    dev: str,
    *,
    instead_of: etree._Element | None,
) -> etree._Element:
    """Return a <disk> for the definition, made from that of the running domain if it is known."""
    if origin is None or live is None:
        # A backup without the XML of the running domain: libvirt chooses the bus by the name.
        entry = etree.Element("disk", type="file", device="disk")
        etree.SubElement(entry, "target", dev=dev)
        return entry
    entry = deepcopy(origin)
    entry.tail = None
    for name in _OF_THE_RUN:
        for old in entry.findall(name):
            entry.remove(old)
    _clean(entry, [device for device in root.iterfind("devices/*") if device is not instead_of])
    _drop_iothread(entry, root)
    for boot in entry.findall("boot") if root.find("os/boot") is not None else ():
        entry.remove(boot)  # libvirt accepts only one of the two ways
    _bring_controller(root, live, entry)
    return entry


def _clean(element: etree._Element, others: Sequence[etree._Element]) -> None:
    """Remove from a device of the running domain what only that had, or what the definition has given to another."""
    alias, address, boot = element.find("alias"), element.find("address"), element.find("boot")
    if alias is not None and not alias.get("name", "").startswith("ua-"):  # the user's own
        element.remove(alias)
    if address is not None and _key(address) in {_key(other) for one in others for other in one.iterfind("address")}:
        element.remove(address)
    if boot is not None and boot.get("order") in {
        other.get("order") for one in others for other in one.iterfind("boot")
    }:
        element.remove(boot)


def _drop_iothread(entry: etree._Element, root: etree._Element) -> None:
    """Remove the assignment to iothreads that the definition does not have."""
    driver = entry.find("driver")
    if driver is None:
        return
    known = _iothreads(root)
    if driver.get("iothread") not in known:
        driver.attrib.pop("iothread", None)
    for threads in driver.findall("iothreads"):
        if any(thread.get("id") not in known for thread in threads.iterfind("iothread")):
            driver.remove(threads)


def _bring_controller(root: etree._Element, live: etree._Element, entry: etree._Element) -> None:
    """Copy the SCSI controller of a disk: libvirt would add one of another model, which the guest may not know."""
    address = entry.find("address")
    if address is None or address.get("type") != "drive" or _bus(entry) != "scsi":
        return
    number = address.get("controller", "0")

    def controllers(of: etree._Element) -> Iterator[etree._Element]:
        return (one for one in of.iterfind("devices/controller") if (one.get("type"), one.get("index")) == key)

    key = ("scsi", number)
    controller = next(controllers(live), None)
    if controller is not None and next(controllers(root), None) is None:
        copied = deepcopy(controller)
        _clean(copied, list(root.iterfind("devices/*")))
        _devices(root).append(copied)


def _insert(root: etree._Element, entry: etree._Element | None, new: etree._Element) -> None:
    devices = _devices(root)
    if entry is not None:
        new.tail = entry.tail
        devices.replace(entry, new)
        return
    disks = devices.findall("disk")
    if disks:
        disks[-1].addnext(new)
    else:
        devices.append(new)


# what is not in the backup


def _other_disks(
    root: etree._Element, devs: Collection[str], report: _Report, *, media: Collection[str], keep_others: bool
) -> None:
    """Remove the disks that are not restored and that the guest would write to; ``media`` are restored too."""
    for dev, element in _disks(root).items():
        if dev in devs or (dev in media and not _is_disk(element)):
            continue
        device, place = element.get("device", "disk"), _path(element)
        if device == "cdrom" or (device == "floppy" and place is None):
            continue
        entry = LeftOut(dev, f"{device} {place or 'without a path'}")
        if element.find("readonly") is not None or element.find("transient") is not None:
            report.shared.append(LeftOut(dev, f"{entry.reason}, which is only read"))
        elif keep_others:
            report.shared.append(LeftOut(dev, f"{entry.reason}, which the domain writes to"))
        elif device == "floppy":
            for source in element.findall("source"):
                element.remove(source)
            report.left_out.append(LeftOut(dev, f"{entry.reason}: the drive is empty"))
        else:
            _remove(element)
            report.left_out.append(LeftOut(dev, f"{entry.reason}: it is {host_state.NOT_IN_BACKUP}"))


def _detach(state: host_state.HostState, output: str, report: _Report, *, keep_others: bool) -> None:
    """Remove what else the domain would write to on the host, or give it a file in the output directory."""
    entry, element = state.left_out, state.element
    if state.is_only_read or keep_others:
        report.shared.append(entry)
        return
    report.left_out.append(entry)
    if entry.kind in _MOVED:
        report.new_files.append(f"{output}/{_MOVED[entry.kind]}")
    if entry.kind == "varstore":
        # Without a path libvirt takes one with the domain's name, which is the original's.
        element.set("path", f"{output}/{_MOVED[entry.kind]}")
    elif entry.kind == "pstore":
        for path in element.findall("path"):
            element.remove(path)
        etree.SubElement(element, "path").text = f"{output}/{_MOVED[entry.kind]}"
    else:
        _remove(element)


def _remove_leases(root: etree._Element, report: _Report, *, keep_others: bool) -> None:
    for lease in root.findall("devices/lease"):
        target = lease.find("target")
        path = target.get("path") if target is not None else None
        entry = LeftOut(f"lease {lease.findtext('key')}", f"lock of the original ({path})", kind="lease")
        if keep_others:
            report.shared.append(entry)
            continue
        report.left_out.append(entry)
        _remove(lease)


def _move_output(root: etree._Element, output: str, report: _Report, *, keep_others: bool) -> None:
    """Let the domain write its logs and the output of its ports to the output directory."""
    new: dict[str, str] = {}
    for element, attribute in _output_files(root):
        old = element.get(attribute, "")
        if old not in new:
            parent = element.getparent()
            owner = element if element.tag in ("audio", "backend") or parent is None else parent
            tag = str(owner.tag)
            new[old] = old if keep_others else f"{output}/{tag}{len(new)}.log"
            if keep_others:
                report.shared.append(LeftOut(f"{tag} {old}", "output file, which the domain writes to", kind=tag))
            else:
                report.new_files.append(new[old])
                report.left_out.append(LeftOut(f"{tag} {old}", f"output file, now {new[old]}", kind=tag))
        element.set(attribute, new[old])


def _output_files(root: etree._Element) -> Iterator[tuple[etree._Element, str]]:
    """Yield the elements and the attribute with the path of a file that QEMU writes and does not read."""
    for source in root.iterfind("devices//source"):
        parent = source.getparent()
        is_port = parent is not None and parent.tag not in ("disk", "filesystem") and parent.get("type") == "file"
        if is_port and source.get("path"):
            yield source, "path"
    for log in root.iterfind("devices//log"):
        if log.get("file"):
            yield log, "file"
    for audio in root.iterfind("devices/audio"):
        if audio.get("type") == "file" and audio.get("path"):
            yield audio, "path"
    for backend in root.iterfind("devices/interface/backend"):
        if backend.get("logFile"):
            yield backend, "logFile"


# parts of the XML


def _disks(root: etree._Element) -> dict[str, etree._Element]:
    return {dev_of(element): element for element in root.iterfind("devices/disk")}


def _devices(root: etree._Element) -> etree._Element:
    devices = root.find("devices")
    return etree.SubElement(root, "devices") if devices is None else devices


def _is_disk(element: etree._Element) -> bool:
    return element.get("device", "disk") == "disk"


def _same(one: etree._Element, other: etree._Element | None) -> bool:
    """Return True if both describe the same image on the same bus."""
    if other is None:
        return False
    return [_is_disk(one), _bus(one), *_place(one)] == [_is_disk(other), _bus(other), *_place(other)]


def _place(element: etree._Element) -> list[str | None]:
    source = element.find("source")
    if source is None:
        return []
    hosts = [host.get(name) for host in source.iterfind("host") for name in ("name", "port", "socket")]
    return [element.get("type", "file"), *(source.get(name) for name in _PLACE), *hosts]


def _path(element: etree._Element) -> str | None:
    """Return the place of the image in one word, for messages."""
    source = element.find("source")
    if source is None:
        return None
    return next(
        (source.get(name) for name in ("file", "dev", "dir", "volume", "name", "path") if source.get(name)), None
    )


def _bus(element: etree._Element) -> str | None:
    target = element.find("target")
    return target.get("bus") if target is not None else None


def _key(address: etree._Element) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((str(name), str(value)) for name, value in address.items() if name != "multifunction"))


def _iothreads(root: etree._Element) -> set[str | None]:
    """Return the ids that a disk of the definition can name, and None."""
    named = {thread.get("id") for thread in root.iterfind("iothreadids/iothread")}
    text = (root.findtext("iothreads") or "").strip()
    count = min(int(text), MAX_IOTHREADS) if re.fullmatch("[0-9]{1,9}", text) else 0
    return {None, *named, *((named and ()) or map(str, range(1, count + 1)))}


def _remove(element: etree._Element) -> None:
    parent = element.getparent()
    assert parent is not None  # no caller has the root
    parent.remove(element)


def only_defined(definition: str, live: str) -> list[LeftOut]:
    """Return the disks that only the definition has, or that are another image there, with the reason.

    Raises MalformedError if a text is no domain XML.
    """
    running = _disks(root_of(live))
    found = []
    for dev, entry in _disks(root_of(definition)).items():
        if not _is_disk(entry) or _same(entry, running.get(dev)):
            continue
        other = running.get(dev)
        why = (
            "the running domain has no such disk"
            if other is None
            else f"the running domain has {_path(other)} as {dev}"
        )
        found.append(LeftOut(dev, f"only the definition has {_path(entry) or 'it'}: {why}"))
    return found
