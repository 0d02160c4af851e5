"""Read a libvirt domain XML, and rewrite one for restored disks. Imports lxml, as only its neighbours do.

The XML may come from a repository and is not trusted: entities are not expanded, nothing is fetched, and
every name that becomes part of a path is checked.
Format: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from lxml import etree

from vbackup.domain import host_state, nvram_xml
from vbackup.errors import MalformedError, UsageError
from vbackup.model import (
    BlockDriver,
    Disk,
    Domain,
    ImageFormat,
    ImageLocation,
    LeftOut,
    SecretRef,
    SecurityLabel,
    SourceType,
)
from vbackup.names import DEV, UUID

AGENT_CHANNEL = "org.qemu.guest_agent.0"

#: Domain types that run in QEMU.
OF_QEMU = ("qemu", "kvm", "hvf")
#: Disk sources whose data does not pass through QEMU's block layer.
OUTSIDE_QEMU = frozenset(map(SourceType, ("vhostuser", "vhostvdpa", "dir")))


def parse(xml: str) -> Domain:
    """Return the Domain that ``xml`` describes: a live XML or a definition.

    Raises MalformedError if the text is not a domain XML; there is nothing that the caller can do about it.
    """
    root = root_of(xml)
    uuid = _text(root, "uuid").lower()
    if not UUID.fullmatch(uuid):
        raise MalformedError(f"The domain XML has the uuid {uuid!r}, which is not valid.")
    disks: list[Disk] = []
    left_out: list[LeftOut] = []
    seen: set[str] = set()
    for element in root.iterfind("devices/disk"):
        dev = dev_of(element)
        if dev in seen:
            raise MalformedError(f"The domain XML has two disks named {dev}.")
        seen.add(dev)
        reason = _reason_to_leave_out(element)
        if reason is None:
            disks.append(_disk(element, dev))
        else:
            left_out.append(LeftOut(dev, reason))
    agent = root.find(f"devices/channel/target[@name='{AGENT_CHANNEL}']")
    nvram = nvram_xml.find(root)
    return Domain(
        name=_text(root, "name"),
        uuid=uuid,
        disks=tuple(disks),
        left_out=tuple(left_out),
        agent_connected=agent is not None and agent.get("state") == "connected",
        nvram_path=nvram.path,
        nvram_volume=nvram.volume,
        nvram_url=nvram.url,
        nvram_trouble=nvram.trouble,
        nvram_format=nvram.image_format,
        security_labels=tuple(_security_labels(root)),
        host_state=tuple(state.left_out for state in host_state.find(root) if state.machine is None),
        xml=xml,
    )


def hypervisor(xml: str) -> str:
    """Return the domain's type (qemu, kvm, xen, ...), "" if it has none.

    Raises MalformedError if the text is not a domain XML.
    """
    return root_of(xml).get("type", "")


def with_disks(
    xml: str,
    images: Mapping[str, tuple[str, ImageFormat]],
    *,
    block_devices: Collection[str] = (),
    nvram_path: str | None = None,
    nvram_format: ImageFormat | None = None,
) -> str:
    """Return the XML with the disks in ``images`` (by dev) pointing at the given path and format.

    The paths of those in ``block_devices`` are block devices, the others files.
    What described the old image (backing chain, encryption, slices, startup policy, login) is removed, and what libvirt
    refuses for the new format. ``nvram_path`` is where the NVRAM is then, wherever the XML had it; None changes
    nothing. ``nvram_format``: None keeps the format that the XML gives. Raises MalformedError if the text is not a
    domain XML, UsageError if a path cannot be written in XML; the caller can choose another directory.
    """
    root = root_of(xml)
    for path in (*(path for path, _ in images.values()), nvram_path or ""):
        check_path(path)
    for element in root.iterfind("devices/disk"):
        dev = dev_of(element)
        if dev not in images or element.get("device", "disk") != "disk":
            continue
        path, image_format = images[dev]
        is_device = dev in block_devices
        element.set("type", "block" if is_device else "file")
        for name in ("source", "backingStore", "mirror", "encryption", "auth"):
            for old in element.findall(name):
                element.remove(old)
        source = etree.Element("source")
        source.set("dev" if is_device else "file", path)
        target = element.find("target")
        assert target is not None  # dev_of has read it
        target.addprevious(source)
        driver = element.find("driver")
        if driver is None:
            driver = etree.Element("driver")
            driver.set("name", "qemu")
            element.insert(0, driver)
        driver.set("type", image_format.value)
        if image_format is ImageFormat.RAW:
            _drop_what_only_qcow2_has(driver)
    if nvram_path is not None:
        point_nvram(root, nvram_path, nvram_format)
    return text_of(root)


def point_nvram(root: etree._Element, path: str, image_format: ImageFormat | None) -> None:
    """Let the UEFI variables be in a file of that path; ``image_format``: None keeps the format that the XML gives."""
    system = root.find("os")
    if system is None:
        return
    nvram = system.find("nvram")
    if nvram is None:
        # Where libvirt chooses the firmware, the XML need not name a store; its own choice is the original's.
        nvram = etree.SubElement(system, "nvram")
    for source in nvram.findall("source"):
        nvram.remove(source)
    nvram.attrib.pop("type", None)
    if image_format is ImageFormat.QCOW2:
        nvram.set("format", image_format.value)
    elif image_format is not None:
        nvram.attrib.pop("format", None)
    nvram.text = path


def text_of(root: etree._Element) -> str:
    """Return the text of a domain XML."""
    text: str = etree.tostring(root, encoding="unicode")
    return text + "\n"


def _drop_what_only_qcow2_has(driver: etree._Element) -> None:
    """Remove what libvirt refuses for a raw image (virDomainDiskDefDriverSourceLUNValidate and its neighbours)."""
    driver.attrib.pop("discard_no_unref", None)
    for element in driver.findall("metadata_cache"):
        driver.remove(element)


def check_path(path: str) -> None:
    """Raise UsageError if the path cannot be written in XML."""
    try:
        etree.Element("source").set("file", path)
    except ValueError:
        raise UsageError(
            f"{path!r} cannot be written into a domain XML, which allows only UTF-8 and no control characters; choose"
            " another directory."
        ) from None


def root_of(xml: str) -> etree._Element:
    """Return the root element of an untrusted domain XML. Raises MalformedError."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(xml.encode(), parser)
    except (etree.XMLSyntaxError, UnicodeEncodeError) as err:
        raise MalformedError(f"The domain XML cannot be read: {err}.") from err
    if root.getroottree().docinfo.doctype:
        raise MalformedError("The domain XML has a document type declaration, which libvirt never writes.")
    if root.tag != "domain":
        raise MalformedError(f"The root element of the domain XML is <{root.tag!s}>, not <domain>.")
    return root


def _text(root: etree._Element, tag: str) -> str:
    text = root.findtext(tag)
    if not text:
        raise MalformedError(f"The domain XML has no <{tag}>.")
    return text


def dev_of(element: etree._Element) -> str:
    """Return the target of a <disk>, which can be a part of a path. Raises MalformedError."""
    target = element.find("target")
    dev = target.get("dev", "") if target is not None else ""
    if not DEV.fullmatch(dev):
        raise MalformedError(f"The domain XML has a disk with the target {dev!r}, which is not a valid device name.")
    return dev


def _reason_to_leave_out(element: etree._Element) -> str | None:
    device = element.get("device", "disk")
    if device != "disk":
        return {"lun": "LUN passed through to the guest"}.get(device, device)
    for flag, reason in (
        ("readonly", "read-only"),
        ("shareable", "shareable: other domains write to it too"),
        ("transient", "transient: its changes are discarded"),
    ):
        if element.find(flag) is not None:
            return reason
    source_type = _source_type(element)
    return f"{source_type}: its data does not pass through QEMU" if source_type in OUTSIDE_QEMU else None


def _disk(element: etree._Element, dev: str) -> Disk:
    alias = element.find("alias")
    image_format = _format(element.find("driver")) or BlockDriver.RAW
    top = _image_source(element, image_format)
    images, ends = _chain(element, top)
    return Disk(
        dev=dev,
        alias=(alias.get("name") if alias is not None else None) or dev,
        path=top.path,
        format=image_format,
        encrypted=element.find("encryption") is not None or element.find("source/encryption") is not None,
        images=images,
        chain_ends=ends,
    )


def _chain(element: etree._Element, top: ImageLocation) -> tuple[tuple[ImageLocation, ...], bool]:
    """Return the images from ``top`` down that the XML lists, and whether it says that the chain ends there.

    libvirt writes the whole chain into the live XML, and ends it with an empty <backingStore/>. For a domain that
    is off, it writes only what the user defined: often nothing, and then the image headers count.
    """
    images = [top]
    below = element.find("backingStore")
    while below is not None:
        if below.find("source") is None:
            return tuple(images), True
        images.append(_image_source(below, _format(below.find("format"))))
        below = below.find("backingStore")
    return tuple(images), False


def _image_source(element: etree._Element, image_format: BlockDriver | None) -> ImageLocation:
    """Return the location of the image that a <disk> or <backingStore> element describes, without its chain."""
    source = element.find("source")
    encryption = element.find("encryption")
    if source is None:
        source = etree.Element("source")
    if encryption is None:
        encryption = source.find("encryption")
    return ImageLocation(
        source_type=_source_type(element),
        format=image_format,
        path=source.get("file") or source.get("dev"),
        pool=source.get("pool"),
        volume=source.get("volume"),
        secret=_secret(encryption),
        oddity=_oddity(source, encryption),
    )


def _source_type(element: etree._Element) -> SourceType:
    """Return the type of a <disk> or <backingStore> element, which is file if the XML does not give one."""
    source_type = element.get("type")
    return SourceType.FILE if source_type is None else SourceType(source_type)


def _format(element: etree._Element | None) -> BlockDriver | None:
    """Return the image format that a <driver> or <format> element gives, or None."""
    image_format = element.get("type") if element is not None else None
    return BlockDriver(image_format) if image_format else None


def _secret(encryption: etree._Element | None) -> SecretRef | None:
    secret = encryption.find("secret") if encryption is not None else None
    return SecretRef(secret.get("uuid"), secret.get("usage")) if secret is not None else None


def _oddity(source: etree._Element, encryption: etree._Element | None) -> str | None:
    if source.find("slices") is not None:
        return "it is a slice of a larger image"
    if encryption is None:
        return None
    if encryption.get("format") != "luks" or encryption.get("engine", "qemu") != "qemu":
        return f"it is encrypted with {encryption.get('engine') or encryption.get('format')}, not with LUKS in QEMU"
    if len(encryption.findall("secret")) != 1:
        return "the XML does not name exactly one secret for its encryption"
    return None


def _security_labels(root: etree._Element) -> Iterator[SecurityLabel]:
    """Yield the labels of the QEMU process. Type none confines nothing; a label not yet chosen has no text."""
    for element in root.iterfind("seclabel"):
        model, label = element.get("model"), element.findtext("label")
        if model and label and element.get("type") != "none":
            yield SecurityLabel(model, label)
