"""Whether libvirt would define a domain is asked before it does, and nothing stays of the question.

libvirt's test driver does what the one of QEMU does here; tests/end_to_end/test_define.py has that.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import libvirt
import pytest

from tests.unit.builders import UUID
from vbackup.domain import defining, identity
from vbackup.domain.host import NO_SUPPORT, Host, error_code
from vbackup.domain.identity import Identity
from vbackup.errors import MonitorError, Status, UnsuitableError
from vbackup.process import Process

OTHER = "f0000000-0000-4000-8000-000000000002"


def xml(name: str, uuid: str, *, devices: str = "", more: str = "", arch: str = "i686") -> str:
    return (
        f"<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>1024</memory>{more}"
        f"<os><type arch='{arch}'>hvm</type></os><devices>{devices}</devices></domain>"
    )


def names(host: Host) -> list[str]:
    return [handle.name for handle in host.domains()]


# what libvirt would say


def test_good_xml_is_checked_and_leaves_nothing(host: Host) -> None:
    defining.check(host, xml("web", UUID))
    assert names(host) == []


def test_xml_is_refused_by_the_schema_with_what_the_host_has(host: Host) -> None:
    text = xml("web", UUID, more="<nonsense/>", devices="<emulator>/opt/qemu</emulator>")
    with pytest.raises(UnsuitableError) as caught:
        defining.check(host, text)
    said = str(caught.value)
    assert said.startswith("libvirt could not accept the XML of domain web: XML document failed to validate")
    assert "extra content: nonsense" in said
    assert "\n" not in said
    assert (
        "Its QEMU for i686 is /usr/bin/test-hv, not /opt/qemu. Nothing was written: restore to a directory only" in said
    )
    assert caught.value.status == Status.UNSUITABLE
    assert names(host) == []


def test_what_a_killed_check_has_left_is_removed(host: Host) -> None:
    """And nothing else: neither a domain of the user's with such a name, nor one that runs."""
    this = Process.this()
    left, users = f"vbackup-check-{this.pid}-1-{UUID}", f"vbackup-check-{this.pid}-1-{UUID.upper()}"
    host.connection.defineXML(xml(left, UUID))
    host.connection.defineXML(xml(users, OTHER))
    defining.check(host, xml("web", "f0000000-0000-4000-8000-000000000003"))
    assert names(host) == [users]
    host.connection.createXML(xml(left, UUID))
    defining.check(host, xml("web", "f0000000-0000-4000-8000-000000000003"))
    assert names(host) == [users, left]


def test_check_of_another_vbackup_is_left_alone(host: Host) -> None:
    this = Process.this()
    others = f"vbackup-check-{this.pid}-{this.start_ticks}-{UUID}"
    host.connection.defineXML(xml(others, UUID))
    defining.check(host, xml("web", OTHER))
    assert names(host) == [others]


def test_throw_away_that_another_vbackup_has_removed_is_no_error(host: Host) -> None:
    made = defining.DomainHandle(host, host.connection.defineXML(xml("web", UUID)))
    made.domain.undefine()
    defining._undefine(host, made.domain, (0,))
    assert names(host) == []


def test_host_that_cannot_say_has_no_troubles(host: Host) -> None:
    with pytest.raises(MonitorError) as caught, host.errors("ask"):
        host.connection.domainXMLToNative("qemu-argv", xml("web", UUID), 0)
    assert error_code(caught.value.__cause__) == NO_SUPPORT
    assert defining.start_troubles(host, xml("web", UUID)) == []


def test_network_that_is_not_there(host: Host) -> None:
    nets = (
        "<interface type='network'><source network='default'/></interface>"
        "<interface type='bridge'><source bridge='nobridge0'/></interface>"
        "<interface type='bridge'><source bridge='lo'/></interface>"
    )
    long = f"<interface type='bridge'><source bridge='{'x' * 300}'/></interface>"
    assert len(defining.start_troubles(host, xml("web", UUID, devices=long))) == 1
    text = xml("web", UUID, devices=nets)
    expected = ["its bridge nobridge0 is not on this host", "its network default is not on this host"]
    assert defining.start_troubles(host, text) == expected
    host.connection.networkDefineXML("<network><name>default</name></network>")
    assert defining.start_troubles(host, text) == expected[:1]


# who is there


@pytest.mark.parametrize("runs", [True, False])
def test_domain_with_the_same_uuid_or_name_is_in_the_way(host: Host, runs: bool) -> None:
    made = host.connection.defineXML(xml("web", UUID))
    if runs:
        made.create()
    state = "which runs" if runs else "which is off"
    for wanted, said in (
        (
            Identity("web", UUID),
            f"already has domain web (UUID {UUID}), {state}: '--name NEW' restores the backup besi",
        ),
        (Identity("old", UUID), f"already has domain old (UUID {UUID}), as web, {state}"),
        (Identity("web", OTHER), f"has another domain web (UUID {UUID}), {state}: '--name NEW' restores"),
    ):
        with pytest.raises(UnsuitableError) as caught:
            defining.refuse_taken(host, wanted, is_new=False)
        assert said in str(caught.value)
        at = f"virsh -c {shlex.quote(str(host.uri))}"
        assert (f"'{at} shutdown web' and then '{at} undefine web' makes room" in str(caught.value)) is (
            runs and wanted.uuid == UUID
        )
    with pytest.raises(UnsuitableError, match=r"already has a domain web, .*: choose another name with --name"):
        defining.refuse_taken(host, Identity("web", OTHER), is_new=True)
    defining.refuse_taken(host, Identity("old", OTHER), is_new=False)


def test_advice_to_undefine_names_the_tpm_whose_state_that_deletes(host: Host) -> None:
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    host.connection.defineXML(xml("web", UUID, devices=tpm))
    with pytest.raises(UnsuitableError) as caught:
        defining.refuse_taken(host, Identity("web", UUID), is_new=False)
    assert (
        "makes room for it, and leaves the disks; before that, save a copy of the state of its emulated TPM, which"
        " undefining deletes;"
    ) in str(caught.value)


def test_addresses_of_all_domains_are_known(host: Host) -> None:
    for number, name in enumerate(("web", "db")):
        nic = f"<interface type='user'><mac address='52:54:00:00:00:0{number}'/></interface>"
        host.connection.defineXML(xml(name, UUID if number else OTHER, devices=nic))
    assert defining.mac_addresses(host) == {"52:54:00:00:00:00", "52:54:00:00:00:01"}


def test_media_that_the_host_does_not_have(host: Host, tmp_path: Path) -> None:
    (tmp_path / "cd.iso").touch()
    drives = "".join(
        f"<disk type='file' device='cdrom'><source file='{path}'/><target dev='sd{letter}'/></disk>"
        for letter, path in (("a", tmp_path / "cd.iso"), ("b", tmp_path / "gone.iso"))
    ) + ("<disk type='volume' device='cdrom'><source pool='isos' volume='one'/><target dev='sdc'/></disk>")
    text = xml("web", UUID, devices=drives)
    assert [one.dev for one in defining.missing_media(host, text)] == ["sdb", "sdc"]
    assert [one.dev for one in defining.missing_media(host, text, restored=[str(tmp_path / "gone.iso")])] == ["sdc"]
    text = text.replace("gone.iso", "x" * 300)
    assert [one.dev for one in defining.missing_media(host, text)] == ["sdb", "sdc"]


# doing it


def test_domain_is_defined_and_started_with_its_host(host: Host) -> None:
    handle = defining.define(host, xml("web", UUID))
    assert (handle.name, handle.uuid, handle.is_active()) == ("web", UUID, False)
    defining.set_autostart(handle)
    assert handle.domain.autostart() == 1
    defining.start(handle)
    assert handle.is_active()
    with pytest.raises(MonitorError, match="libvirt could not start domain web: "):
        defining.start(handle)


def test_define_is_refused_with_libvirts_reason(host: Host) -> None:
    with pytest.raises(MonitorError, match="libvirt could not define domain web: XML document failed"):
        defining.define(host, xml("web", UUID, more="<nonsense/>"))


def test_throw_away_name_is_one_that_libvirt_takes() -> None:
    """The name and the UUID are all that differs from what is defined at the end."""
    text = xml("web", UUID)
    renamed = identity.renamed(text, Identity(f"vbackup-check-{OTHER}", OTHER))
    assert identity.renamed(renamed, Identity("web", UUID)) == identity.renamed(text, Identity("web", UUID))


def test_driver_without_flags_undefines_too(host: Host) -> None:
    domain = host.connection.defineXML(xml("web", UUID))
    with pytest.raises(libvirt.libvirtError, match="unsupported flags"):
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    defining.check(host, xml("db", OTHER))
    assert names(host) == ["web"]
