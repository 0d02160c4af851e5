"""Words select on every host; a host that is out of reach is no reason to leave the others alone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.domain import test_selection
from vbackup.domain import fleet
from vbackup.domain.fleet import FleetSelection, Reached
from vbackup.errors import ConnectionLostError, DomainNotFoundError, HostUnreachableError

CAPABILITIES = "<capabilities><host><uuid>{}</uuid></host></capabilities>"


class FakeHandle(test_selection.FakeHandle):
    def refuse_migration(self) -> None:
        """It does not migrate."""


class FakeHost(test_selection.FakeHost):
    """A host whose domains have UUIDs of their own, unless they are given."""

    def __init__(self, name: str, *domains: str, uuid: str | None = None, **uuids: str) -> None:
        super().__init__(is_local=True)
        self.hostname, self.host_uuid = name, uuid or f"uuid of {name}"
        self.real_uri = f"qemu+ssh://{name}/system"
        self.handles = [FakeHandle(self, domain, uuids.get(domain, f"{domain} of {name}")) for domain in domains]

    def capabilities(self) -> str:
        return CAPABILITIES.format(self.host_uuid)


def reached(*hosts: Any) -> list[Reached]:
    return [Reached(f"uri://{number}", host) for number, host in enumerate(hosts, start=1)]


LOST = Reached("uri://lost", None, HostUnreachableError("uri://lost", "refused"))


def chosen(selected: FleetSelection) -> list[str]:
    return [f"{host.name}/{one.name}" for host in selected.hosts for one in host.selection.chosen]


def test_all_of_each_host_and_the_one_that_is_lost_has_its_error() -> None:
    selected = fleet.all_domains(
        [*reached(FakeHost("hv1.example.com", "web", "db"), FakeHost("hv2", "web")), LOST], ["db", "no*"]
    )
    assert chosen(selected) == ["hv1/web", "hv2/web"]
    assert [(one.name, one.error) for one in selected.hosts][2] == ("uri://lost", LOST.error)
    assert [one.name for one in selected.hosts[0].selection.skipped] == ["db"]
    assert selected.unmatched == ("no*",)


def test_name_that_one_host_has_need_not_be_on_the_others() -> None:
    selected = fleet.by_words(
        ["db", "web*", "nobody", "x*"], reached(FakeHost("hv1", "web"), FakeHost("hv2", "db", "web-2"))
    )
    assert chosen(selected) == ["hv1/web", "hv2/db", "hv2/web-2"]
    assert (selected.unknown, selected.unmatched) == (("nobody",), ("x*",))


def test_what_is_excluded_is_left_out_on_each_host() -> None:
    hosts = reached(FakeHost("hv1", "web-1", "db"), FakeHost("hv2", "web-2"))
    selected = fleet.by_words(["web-*"], hosts, ["web-2", "x*"])
    assert chosen(selected) == ["hv1/web-1"]
    assert selected.unmatched == ("x*",)


def test_nothing_selected_is_an_error_unless_a_host_is_lost() -> None:
    empty = reached(FakeHost("hv1"), FakeHost("hv2", "out"))
    with pytest.raises(DomainNotFoundError, match=r"uri://1, uri://2 can be backed up.*hv2/out: excluded"):
        fleet.all_domains(empty, ["out"])
    with pytest.raises(DomainNotFoundError, match=r"matches 'x\*'"):
        fleet.by_words(["x*"], empty)
    assert chosen(fleet.all_domains([*empty, LOST], ["out"])) == []
    assert fleet.by_words(["nobody"], empty).unknown == ("nobody",)  # which fails by itself


def test_host_that_is_named_twice_counts_once() -> None:
    again = FakeHost("hv1", "web", uuid="one")
    again.real_uri = "qemu+tls://10.0.0.1/system"
    selected = fleet.all_domains(reached(FakeHost("hv1", "web", uuid="one"), again), [])
    assert chosen(selected) == ["hv1/web"]
    assert selected.remarks == ("uri://2 is the same host as uri://1, and is left out.",)


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("hv2", "qemu+ssh://hv2/system"),  # machines of one model can have one UUID
        ("hv1", "qemu+ssh://hv1/session"),
        ("hv1", "qemu+unix:///system?socket=/elsewhere"),
    ],
)
def test_another_libvirt_is_another_host(name: str, uri: str) -> None:
    other = FakeHost(name, "db", uuid="one")
    other.real_uri = uri
    first = FakeHost("hv1", "web", uuid="one")
    first.real_uri = "qemu+ssh://hv1/system"
    selected = fleet.all_domains(reached(first, other), [])
    assert [one.uri for one in selected.hosts] == ["uri://1", "uri://2"]
    assert len({one.name for one in selected.hosts}) == 2


def test_host_that_does_not_answer_has_an_error() -> None:
    class Mute(FakeHost):
        def domains(self) -> Any:
            raise ConnectionLostError("gone")

    selected = fleet.all_domains(reached(Mute("hv1"), FakeHost("hv2", "web")), [])
    assert [type(one.error) for one in selected.hosts] == [ConnectionLostError, type(None)]
    assert chosen(selected) == ["hv2/web"]


def test_uuid_on_two_hosts_is_settled() -> None:
    first, second = FakeHost("hv1", "web", "db", web="same"), FakeHost("hv2", "web", web="same")
    assert chosen(fleet.all_domains(reached(first, second), [])) == ["hv1/db", "hv1/web", "hv2/web"]
    assert "runs on hv1 and hv2" in fleet.all_domains(reached(first, second), []).remarks[0]
    second["web"].active = False
    selected = fleet.by_words(["web"], reached(first, second))
    assert chosen(selected) == ["hv1/web"]
    assert selected.hosts[1].selection.skipped[0].reason.startswith("it is off here and runs on hv1")
    first["web"].active = False
    selected = fleet.by_words(["web"], reached(first, second))
    assert chosen(selected) == []
    assert [domain.name for one in selected.hosts for domain, _ in one.refused] == ["web", "web"]
