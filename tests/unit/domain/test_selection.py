"""Words select domains: exact names before patterns, each domain once; --all selects all that can be backed up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.unit.builders import UUID, backup_id
from vbackup.domain import selection, standby_xml
from vbackup.domain.selection import Chosen
from vbackup.errors import ConnectionLostError, DomainNotFoundError, MonitorError

DISK = "<disk type='file' device='disk'><source file='/a'/><target dev='vda'/></disk>"
CDROM = "<disk type='file' device='cdrom'><target dev='hda'/></disk>"


def uuid(number: int) -> str:
    return UUID[:-1] + str(number)


@dataclass
class FakeHandle:
    host: FakeHost
    name: str
    uuid: str
    kind: str = "kvm"
    devices: str = DISK
    active: bool = True
    error: Exception | None = None

    def is_active(self) -> bool:
        return self.active

    def live_xml(self) -> str:
        if self.error is not None:
            raise self.error
        return (
            f"<domain type='{self.kind}'><name>x</name><uuid>{self.uuid}</uuid>"
            f"<devices>{self.devices}</devices></domain>"
        )


class FakeHost:
    real_uri = "qemu:///system"

    def elsewhere(self) -> str:
        return "look elsewhere"

    def __init__(self, *names: str, is_local: bool = True) -> None:
        self.is_local, self.has_link = is_local, False
        self.handles = [FakeHandle(self, name, uuid(number)) for number, name in enumerate(names)]

    def domains(self) -> list[FakeHandle]:
        return sorted(self.handles, key=lambda one: one.name)

    def domain(self, name: str) -> FakeHandle:
        for one in self.handles:
            if name in (one.name, one.uuid):
                return one
        raise DomainNotFoundError(name, "at qemu:///system", "look")

    def __getitem__(self, name: str) -> FakeHandle:
        return self.domain(name)


def chosen(host: Any, *words: str) -> list[str]:
    return [one.name for one in selection.by_words(words, host).chosen]


def test_patterns_are_shell_s_and_names_are_sorted() -> None:
    host = FakeHost("web-2", "web-10", "web-1", "db", "Web-3", "käse")
    assert chosen(host, "web-*") == ["web-1", "web-10", "web-2"]
    assert chosen(host, "web-?") == ["web-1", "web-2"]
    assert chosen(host, "[!w]*") == ["Web-3", "db", "käse"]
    assert chosen(host, "k?se") == ["käse"]


def test_order_is_that_of_the_words_and_each_counts_once() -> None:
    host = FakeHost("a", "b", "c")
    assert chosen(host, "c", "*", uuid(1).upper(), "a", "a") == ["c", "a", "b"]


def test_copy_that_a_boot_test_runs_is_no_domain_to_back_up() -> None:
    host: Any = FakeHost("a", "vbackup-boot-01234567")
    assert chosen(host, "*") == ["a"]
    [skipped] = selection.all_domains(host, []).skipped
    assert skipped.reason == "it is the copy of a domain that a boot test runs"


def test_exact_name_of_a_domain_is_not_a_pattern() -> None:
    host = FakeHost("[x]", "x", "*")
    assert chosen(host, "[x]") == ["[x]"]
    assert chosen(host, "*") == ["*"]
    assert chosen(host, "[*]") == ["*"]
    assert chosen(host, "?") == ["*", "x"]
    assert selection.is_one("[x]", host)  # type: ignore[arg-type]
    assert not selection.is_one("[y]", host)  # type: ignore[arg-type]
    assert selection.is_one("nobody", host)  # type: ignore[arg-type]


def test_name_of_one_is_before_the_uuid_of_another() -> None:
    host = FakeHost("a", uuid(0))
    assert selection.by_words([uuid(0)], host).chosen == (Chosen(uuid(0), uuid(1)),)  # type: ignore[arg-type]


def test_name_that_is_not_there_is_chosen_and_fails_by_itself() -> None:
    host = FakeHost("a")
    found = selection.by_words(["b", "a", "b"], host).chosen  # type: ignore[arg-type]
    assert found == (Chosen("b", None), Chosen("a", uuid(0)))


def test_pattern_that_matches_nothing_is_told_and_the_others_go_on() -> None:
    host: Any = FakeHost("a")
    selected = selection.by_words(["a", "c*"], host)
    assert ([one.name for one in selected.chosen], selected.unmatched) == (["a"], ("c*",))


def test_patterns_that_all_match_nothing_are_an_error() -> None:
    with pytest.raises(DomainNotFoundError, match=r"^No domain matches 'c\*' or 'd\*' at qemu:///system; "):
        chosen(FakeHost("a"), "c*", "d*")


def test_what_matches_a_pattern_can_be_excluded() -> None:
    host: Any = FakeHost("web-1", "web-2", "web-test", "db")
    selected = selection.by_words(["web-*", "gone"], host, ["*-test", uuid(1), "x*"])
    assert [one.name for one in selected.chosen] == ["web-1", "gone"]
    assert [(one.name, one.reason) for one in selected.skipped] == [
        ("web-2", "excluded by the user"),
        ("web-test", "excluded by the user"),
    ]
    assert selected.unmatched == ("x*",)


def test_patterns_of_which_all_matches_are_excluded_are_an_error() -> None:
    host: Any = FakeHost("web-test")
    with pytest.raises(DomainNotFoundError, match=r"matches 'web-\*' at qemu:///system; left out: web-test; "):
        selection.by_words(["web-*"], host, ["*-test"])


def test_exclusion_that_matches_nothing_is_told() -> None:
    host: Any = FakeHost("web", "test-1")
    assert selection.all_domains(host, ["tset*", "test*"]).unmatched == ("tset*",)


# all


def all_of(host: Any, *excluded: str) -> tuple[list[str], dict[str, str]]:
    found = selection.all_domains(host, excluded)
    return [one.name for one in found.chosen], {one.name: one.reason for one in found.skipped}


def test_all_are_those_that_can_be_backed_up() -> None:
    host = FakeHost("kvm", "qemu", "xen", "cdrom", "diskless", "off")
    host["qemu"].kind, host["xen"].kind = "qemu", "xen"
    host["cdrom"].devices, host["diskless"].devices = CDROM, ""
    host["off"].active = False
    assert all_of(host) == (
        ["kvm", "off", "qemu"],
        {
            "cdrom": "hda: cdrom",
            "diskless": "it has no disk",
            "xen": "it runs in xen, not in QEMU or KVM",
        },
    )


def test_domain_that_is_off_on_another_host_is_left_out() -> None:
    host = FakeHost("on", "off", is_local=False)
    host["off"].active = False
    assert all_of(host) == (
        ["on"],
        {"off": "it is off and its images are on another host, which is not reached by SSH"},
    )


@pytest.mark.parametrize("pattern", ["test*", "test-1", uuid(1)])
def test_excluded_domains_are_reported(pattern: str) -> None:
    assert all_of(FakeHost("web", "test-1"), pattern) == (["web"], {"test-1": "excluded by the user"})


def test_domain_that_cannot_be_looked_at_is_not_left_out_silently() -> None:
    """It has disappeared, or is unreadable: it fails when its turn comes, with the right reason and status."""
    host = FakeHost("a", "b")
    host["b"].error = MonitorError("libvirt could not read the XML of domain b: it is gone.")
    assert all_of(host) == (["a", "b"], {})
    host["b"].error = ConnectionLostError("broken")
    with pytest.raises(ConnectionLostError):
        all_of(host)


def test_nothing_left_of_all_is_an_error_that_tells_why() -> None:
    with pytest.raises(DomainNotFoundError, match="a: excluded by the user"):
        all_of(FakeHost("a"), "*")
    with pytest.raises(DomainNotFoundError, match="libvirt has no domains"):
        all_of(FakeHost())


def test_standby_is_left_out_until_it_has_taken_over() -> None:
    host = FakeHost("db", "web")
    mark = standby_xml.Mark(standby_xml.State.READY, "0123456789ab", backup_id(1), "/standby")
    text, _ = standby_xml.made(host["web"].live_xml(), mark)
    host["web"].live_xml = lambda: text  # type: ignore[method-assign]
    found = selection.all_domains(host, [])  # type: ignore[arg-type]
    assert [one.name for one in found.chosen] == ["db"]
    assert [one.reason for one in found.skipped] == ["it is a standby, and has not taken over"]
    active = standby_xml.active(text)
    host["web"].live_xml = lambda: active  # type: ignore[method-assign]
    assert len(selection.all_domains(host, []).chosen) == 2  # type: ignore[arg-type]
