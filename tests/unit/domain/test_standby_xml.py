"""The definition of a standby says what it is, and cannot be started while it is half applied."""

from __future__ import annotations

import pytest

from tests.unit.builders import UUID, backup_id
from vbackup.domain import standby_xml
from vbackup.domain.domain_xml import root_of
from vbackup.domain.standby_xml import BARRIER, Mark, State
from vbackup.errors import MalformedError, UsageError

KERNEL = "<kernel>/boot/own</kernel>"
XML = (
    f"<domain><name>web</name><uuid>{UUID}</uuid><os><type>hvm</type></os><devices>"
    "<interface type='network'><mac address='52:54:00:00:00:0A'/></interface>"
    "<interface type='network'><mac address='52:54:00:00:00:0B'/><link state='down'/></interface>"
    "<interface type='network'><mac address='52:54:00:00:00:0C'/><link state='up'/></interface>"
    "</devices></domain>"
)
NEW = Mark(State.READY, "0123456789ab", backup_id(1), "/standby/web")


def links(xml: str) -> list[str | None]:
    return [link.get("state") for link in root_of(xml).iterfind("devices/interface/link")]


def kernel(xml: str) -> str | None:
    return root_of(xml).findtext("os/kernel")


def test_domain_without_a_mark_is_not_a_standby() -> None:
    assert standby_xml.read(XML) is None
    with pytest.raises(MalformedError, match="not that of a standby"):
        standby_xml.active(XML)


def test_new_standby_has_its_links_down() -> None:
    text, mark = standby_xml.made(XML, NEW)
    assert standby_xml.read(text) == mark
    assert (mark.state, mark.links_down) == (State.READY, ("52:54:00:00:00:0b",))
    assert links(text) == ["down", "down", "down"]
    assert kernel(text) is None
    assert standby_xml.made(XML, NEW)[1] == mark  # what later runs compare
    assert standby_xml.made(XML.replace("hvm", "xen"), NEW)[1].definition != mark.definition


@pytest.mark.parametrize("own", ["", KERNEL])
def test_half_applied_standby_boots_nothing(own: str) -> None:
    text, _ = standby_xml.made(XML.replace("</os>", f"{own}</os>"), NEW)
    for _ in range(2):  # it was interrupted, and is applied again
        text = standby_xml.half_applied(text, backup_id(2))
        mark = standby_xml.read(text)
        assert mark is not None
        assert (mark.state, mark.backup) == (State.HALF_APPLIED, backup_id(2))
        assert kernel(text) == f"/standby/web/{BARRIER}"
    text = standby_xml.ready(text, backup_id(3))
    mark = standby_xml.read(text)
    assert mark is not None
    assert (mark.state, mark.backup, mark.kernel) == (State.READY, backup_id(3), None)
    assert kernel(text) == ("/boot/own" if own else None)


def test_links_of_an_active_standby_are_those_of_the_original() -> None:
    text = standby_xml.active(standby_xml.made(XML, NEW)[0])
    mark = standby_xml.read(text)
    assert mark is not None
    assert mark.state is State.ACTIVE
    assert links(text) == ["up", "down", "up"]
    assert links(standby_xml.ready(text, backup_id(2))) == ["down", "down", "down"]


def test_other_metadata_stays() -> None:
    text = XML.replace("<os>", "<metadata><a:b xmlns:a='urn:a'/></metadata><os>")
    done = standby_xml.half_applied(standby_xml.made(text, NEW)[0], backup_id(2))
    assert len(root_of(done).findall("metadata/*")) == 2


def test_mark_of_another_version_or_a_damaged_one_is_refused() -> None:
    text, _ = standby_xml.made(XML, NEW)
    with pytest.raises(MalformedError, match="newer vbackup"):
        standby_xml.read(text.replace('state="ready"', 'state="new"'))
    with pytest.raises(MalformedError, match="names no backup"):
        standby_xml.read(text.replace(backup_id(1), "../x"))
    with pytest.raises(UsageError):
        standby_xml.made(XML, Mark(State.READY, "0123456789ab", backup_id(1), "/a\x01"))
