"""The place of UEFI variables is read from every form that libvirt's XML has for it."""

from __future__ import annotations

import pytest
from lxml import etree

from vbackup.domain import nvram_xml
from vbackup.domain.nvram_xml import UNNAMED, NvramPlace
from vbackup.model import ImageFormat


def find(system: str) -> NvramPlace:
    return nvram_xml.find(etree.fromstring(f"<domain>{system}</domain>"))


def network(host: str, more: str = "") -> str:
    return f"<os><nvram type='network'><source protocol='nbd' {more}>{host}</source></nvram></os>"


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("", NvramPlace()),
        ("<os/>", NvramPlace()),
        ("<os firmware='efi'/>", NvramPlace(trouble=UNNAMED)),
        ("<os firmware='efi'><nvram template='/t'/></os>", NvramPlace(trouble=UNNAMED)),
        ("<os><nvram/></os>", NvramPlace()),
        ("<os><nvram> /n </nvram></os>", NvramPlace(path="/n")),
        ("<os><nvram type='file'><source file='/n'/></nvram></os>", NvramPlace(path="/n")),
        ("<os><nvram type='block'><source dev='/dev/n'/></nvram></os>", NvramPlace(path="/dev/n")),
        ("<os><nvram type='volume'><source pool='p' volume='v'/></nvram></os>", NvramPlace(volume=("p", "v"))),
        ("<os><nvram format='qcow2'>/n</nvram></os>", NvramPlace(path="/n", image_format=ImageFormat.QCOW2)),
        (
            "<os><nvram type='block' format='raw'><source dev='/dev/n'/></nvram></os>",
            NvramPlace(path="/dev/n", image_format=ImageFormat.RAW),
        ),
        (
            "<os><nvram format='vmdk'>/n</nvram></os>",
            NvramPlace(trouble="UEFI variables in format vmdk, which vbackup does not read"),
        ),
        (network("<host name='h' port='1'/>", "name='a/b'"), NvramPlace(url="nbd://h:1/a%2Fb")),
        (network("<host name='::1'/>"), NvramPlace(url="nbd://[::1]:10809/")),
        (
            network("<host transport='unix' socket='/run/a&amp;b'/>", "name='v'"),
            NvramPlace(url="nbd+unix:///v?socket=/run/a%26b"),
        ),
    ],
)
def test_place_is_found(system: str, expected: NvramPlace) -> None:
    assert find(system) == expected


@pytest.mark.parametrize(
    "system",
    [
        network("<host name='h'/>", "tls='yes'"),
        network("<host name='h'/><host name='i'/>"),
        network("<host name='h?x'/>"),
        network("<host name='h' port='x'/>"),
        network("<host transport='unix'/>"),
        network(""),
        "<os><nvram type='network'><source protocol='rbd' name='x'/></nvram></os>",
        "<os><nvram type='block'/></os>",
        "<os><nvram type='volume'><source pool='p'/></nvram></os>",
    ],
)
def test_place_that_is_not_read_is_told(system: str) -> None:
    trouble = find(system).trouble
    assert trouble is not None
    assert "which vbackup does not read" in trouble
