"""The media in a domain's CD-ROM and floppy drives: where they are, and the XML without some of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vbackup.domain.domain_xml import dev_of, root_of, text_of


@dataclass(frozen=True)
class Medium:
    """What is in a drive: a file, or a volume of a storage pool."""

    dev: str
    path: str | None
    pool: str | None = None
    volume: str | None = None

    def __str__(self) -> str:
        return self.path or f"volume {self.volume} of pool {self.pool}"


def of(xml: str) -> list[Medium]:
    """Return the media that are files, block devices or volumes; one on a network is not looked at.

    Raises MalformedError.
    """
    found = []
    for element in root_of(xml).iterfind("devices/disk"):
        source = element.find("source")
        if element.get("device") not in ("cdrom", "floppy") or source is None:
            continue
        medium = Medium(
            dev_of(element), source.get("file") or source.get("dev"), source.get("pool"), source.get("volume")
        )
        if medium.path or (medium.pool and medium.volume):
            found.append(medium)
    return found


def ejected(xml: str, devs: Collection[str]) -> str:
    """Return the XML with these drives empty. Raises MalformedError."""
    root = root_of(xml)
    for element in root.iterfind("devices/disk"):
        if dev_of(element) in devs:
            element.set("type", "file")
            for tag in ("source", "backingStore"):
                for old in element.findall(tag):
                    element.remove(old)
    return text_of(root)
