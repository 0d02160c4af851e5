"""Find in a domain XML which files of the host a machine needs beside its disks, and point it to restored ones.

These are what a backup can have: variables of UEFI firmware, the state of an emulated TPM, what the host boots the
guest with, and media. What no backup has is found by vbackup.domain.host_state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lxml import etree

from vbackup.domain.domain_xml import check_path, dev_of, root_of
from vbackup.model import MachineKind

#: What a direct boot names, and what that is called.
_BOOT_FILES = {
    MachineKind.KERNEL: "kernel",
    MachineKind.INITRD: "initial RAM disk",
    MachineKind.DTB: "device tree",
}


@dataclass(frozen=True)
class NamedFile:
    """A file of the host that the domain XML names."""

    kind: MachineKind
    what: str  #: for people: "initial RAM disk", "cdrom"
    path: str
    dev: str | None = None  #: the drive that a medium is in


@dataclass(frozen=True)
class TpmState:
    """Where the state of an emulated TPM is."""

    version: str  #: "2.0" or "1.2"
    path: str | None  #: as the XML gives it; None: libvirt has a directory for it
    is_file: bool = False  #: the path is one file, not a directory
    secret: str | None = None  #: UUID of libvirt's secret that it is encrypted with

    @property
    def directory(self) -> str:
        """Name of its directory in that of the domain (qemuTPMEmulatorStorageBuildPath)."""
        return "tpm1.2" if self.version == "1.2" else "tpm2"


@dataclass(frozen=True)
class Places:
    """Where the files of a restored machine are."""

    kinds: Mapping[MachineKind, str] = field(default_factory=dict)  #: paths; for a TPM of its directory
    media: Mapping[str, str] = field(default_factory=dict)  #: paths of media by dev
    knows_tpm_source: bool = False  #: the XML can name the place of a TPM's state: libvirt 10.10 and later


#: Nothing but disks is restored.
NOWHERE = Places()


def boot_files(xml: str) -> list[NamedFile]:
    """Return what the host boots the guest with: kernel, initrd, dtb. Raises MalformedError."""
    root = root_of(xml)
    found = [(kind, what, (root.findtext(f"os/{kind.value}") or "").strip()) for kind, what in _BOOT_FILES.items()]
    return [NamedFile(kind, what, path) for kind, what, path in found if path]


def media(xml: str) -> tuple[list[NamedFile], list[NamedFile]]:
    """Return the media in CD-ROM and floppy drives: raw image files, and those that are none. Raises MalformedError."""
    files: list[NamedFile] = []
    others: list[NamedFile] = []
    for element in _drives(root_of(xml)):
        path = _raw_file(element)
        found = NamedFile(MachineKind.MEDIUM, element.get("device", ""), path or "", dev_of(element))
        (files if path else others).append(found)
    return files, others


def _drives(root: etree._Element) -> Iterator[etree._Element]:
    """Yield the drives in which something is."""
    for element in root.iterfind("devices/disk"):
        if element.get("device") in ("cdrom", "floppy") and element.find("source") is not None:
            yield element


def _raw_file(drive: etree._Element) -> str | None:
    """Return the path of the medium if that is a raw file of the host and nothing else."""
    source, driver = drive.find("source"), drive.find("driver")
    if source is None or source.find("slices") is not None or drive.find("encryption") is not None:
        return None
    return source.get("file") if driver is None or driver.get("type", "raw") == "raw" else None


def varstore(xml: str) -> tuple[bool, str | None]:
    """Return whether the firmware has a varstore, and the path of it if the XML gives one. Raises MalformedError."""
    element = root_of(xml).find("os/varstore")
    return element is not None, None if element is None else element.get("path")


def loader(xml: str) -> str | None:
    """Return the path of the firmware that the XML names, None if libvirt chooses it. Raises MalformedError."""
    return (root_of(xml).findtext("os/loader") or "").strip() or None


def tpm(xml: str) -> TpmState | None:
    """Return where the state of the emulated TPM is, None if the domain has none. Raises MalformedError."""
    backend = _emulator(root_of(xml))
    if backend is None:
        return None
    source = backend.find("source")
    path = source.get("path") if source is not None else None
    is_file = source is not None and source.get("type") == "file"
    encryption = backend.find("encryption")
    secret = encryption.get("secret") if encryption is not None else None
    return TpmState(backend.get("version", "2.0"), path, is_file=is_file, secret=secret)


def _emulator(root: etree._Element) -> etree._Element | None:
    return root.find("devices/tpm/backend[@type='emulator']")


def place(root: etree._Element, places: Places) -> None:
    """Write the paths of restored files into a domain, where it names such files at all.

    Variables of UEFI firmware in an NVRAM are for vbackup.domain.domain_xml.with_disks. Raises UsageError if a path
    cannot be written in XML; the caller can choose another directory.
    """
    for path in (*places.kinds.values(), *places.media.values()):
        check_path(path)
    for kind in _BOOT_FILES:
        for element in root.iterfind(f"os/{kind.value}") if kind in places.kinds else ():
            element.text = places.kinds[kind]
    for element in root.iterfind("os/varstore") if MachineKind.VARSTORE in places.kinds else ():
        element.set("path", places.kinds[MachineKind.VARSTORE])
    backend = _emulator(root)
    if backend is not None and MachineKind.TPM in places.kinds:
        _place_tpm(backend, places)
    for element in list(_drives(root)):
        if dev_of(element) in places.media:
            _place_medium(element, places.media[dev_of(element)])


def _place_tpm(backend: etree._Element, places: Places) -> None:
    path, name = places.kinds[MachineKind.TPM], None
    for source in backend.findall("source"):
        if source.get("type") == "file":
            name = source.get("path", "").rpartition("/")[2]
        backend.remove(source)
    if places.knows_tpm_source:
        kind = {"type": "dir", "path": path} if not name else {"type": "file", "path": f"{path}/{name}"}
        backend.insert(0, etree.Element("source", kind))


def _place_medium(element: etree._Element, path: str) -> None:
    element.set("type", "file")
    source = element.find("source")
    assert source is not None  # _drives has seen it
    new = etree.Element("source", {"file": path})
    new.tail = source.tail
    element.replace(source, new)
