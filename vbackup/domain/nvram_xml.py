"""Find in a domain XML where the variables of UEFI firmware are: a file, a block device, a volume, an NBD export."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from vbackup.domain import host_state
from vbackup.model import ImageFormat

if TYPE_CHECKING:
    from lxml import etree

#: libvirt before 9.2 chooses the file when it starts the domain, and names it only while the domain runs.
UNNAMED = "the domain XML does not name the file of its UEFI variables"
_NBD_PORT = "10809"


@dataclass(frozen=True)
class NvramPlace:
    """Where the variables are; at most one of the places is given, and none without variables."""

    path: str | None = None  #: of a file or a block device
    volume: tuple[str, str] | None = None  #: pool and volume
    url: str | None = None  #: QEMU's name of it
    trouble: str | None = None  #: why they are in none of these, although the domain has them
    #: As the XML says. The guest writes the first bytes of a raw store, so what is in it tells nothing of its format.
    image_format: ImageFormat = ImageFormat.RAW


def find(root: etree._Element) -> NvramPlace:
    """Return where the variables of the domain's firmware are."""
    if not host_state.needs_nvram(root):
        return NvramPlace()
    system, nvram = root.find("os"), root.find("os/nvram")
    if nvram is None or system is None:
        return NvramPlace(trouble=UNNAMED)
    try:
        image_format = ImageFormat(nvram.get("format", ImageFormat.RAW.value))
    except ValueError:
        return NvramPlace(trouble=f"UEFI variables in format {nvram.get('format')}, which vbackup does not read")
    return replace(_place(system, nvram), image_format=image_format)


def _place(system: etree._Element, nvram: etree._Element) -> NvramPlace:
    if nvram.get("type", "file") != "file":
        return _elsewhere(nvram)
    source = nvram.find("source")
    path = (source.get("file") if source is not None else None) or (nvram.text or "").strip()
    trouble = UNNAMED if not path and system.get("firmware") == "efi" else None
    return NvramPlace(path=path or None, trouble=trouble)


def _elsewhere(nvram: etree._Element) -> NvramPlace:
    """Return the place of variables that are in no file."""
    kind, source = nvram.get("type"), nvram.find("source")
    where = None
    if source is not None:
        dev, pool, volume = source.get("dev"), source.get("pool"), source.get("volume")
        if kind == "block" and dev:
            return NvramPlace(path=dev)
        if kind == "volume" and pool and volume:
            return NvramPlace(volume=(pool, volume))
        url = _nbd_url(source) if kind == "network" else None
        if url is not None:
            return NvramPlace(url=url)
        where = source.get("protocol")
    what = f"UEFI variables on a source of type {kind} ({where or 'unnamed'})"
    return NvramPlace(trouble=f"{what}, which vbackup does not read")


def _nbd_url(source: etree._Element) -> str | None:
    """Return QEMU's name of an NBD export; None for anything else, and for one that asks for a certificate."""
    hosts = source.findall("host")
    if source.get("protocol") != "nbd" or len(hosts) != 1 or source.get("tls") == "yes":
        return None
    host, export = hosts[0], quote(source.get("name", ""), safe="")
    if host.get("transport") == "unix" and host.get("socket"):
        return f"nbd+unix:///{export}?socket={quote(host.get('socket', ''), safe='/')}"
    name, port = host.get("name", ""), host.get("port", _NBD_PORT)
    if not re.fullmatch(r"[0-9A-Za-z_.:-]+", name) or not re.fullmatch("[0-9]+", port):
        return None
    return f"nbd://{f'[{name}]' if ':' in name else name}:{port}/{export}"
