"""The libvirt host, on libvirt's test driver: domains are found, and errors are translated."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from vbackup.domain import host as hosts
from vbackup.domain.host import DomainHandle, Host, library_version
from vbackup.errors import (
    ConnectionLostError,
    DomainNotFoundError,
    HostUnreachableError,
    MigratingError,
    MonitorError,
    Status,
    UnsuitableError,
)
from vbackup.model import SecretRef
from vbackup.stop import Stop

DOMAIN = "<domain type='test'><name>{}</name><uuid>{}</uuid><memory>1024</memory><os><type>hvm</type></os></domain>"
WEB, OFF = "f0000000-0000-4000-8000-000000000001", "f0000000-0000-4000-8000-000000000002"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A private host with a running domain web."""
    path = tmp_path / "node.xml"
    path.write_text(f"<node>{DOMAIN.format('web', WEB)}</node>")
    with Host(f"test://{path}") as made:
        yield made


def off(host: Host) -> DomainHandle:
    """A domain that is shut off."""
    host.connection.defineXML(DOMAIN.format("off &amp; &lt;on&gt;", OFF))
    return host.domain("off & <on>")


def test_domain_is_found_by_name_and_by_uuid(host: Host) -> None:
    for name in ("web", WEB, WEB.upper()):
        found = host.domain(name)
        assert (found.name, found.uuid) == ("web", WEB)


@pytest.mark.parametrize(
    "name", ["other", "", "WEB", "web ", "f0000000", "f0000000-0000-4000-8000-000000000009", "a" * 999]
)
def test_unknown_domain_is_an_error_that_says_where(host: Host, name: str) -> None:
    with pytest.raises(DomainNotFoundError, match="at test:///") as caught:
        host.domain(name)
    assert caught.value.domain == name


def test_name_that_is_like_an_unknown_one_is_told(host: Host) -> None:
    with pytest.raises(
        DomainNotFoundError, match=r"No domain 'wbe' at test:///.*; the closest is 'web'; 'virsh -c test:"
    ):
        host.domain("wbe")


def test_libvirt_of_one_user_is_told_with_where_the_system_s_domains_are(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "real_uri", "qemu:///session")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(DomainNotFoundError) as caught:
        host.domain("other")
    assert str(caught.value) == (
        "No domain 'other' at qemu:///session; that is the libvirt of the user nobody alone. The domains of the system"
        " are at qemu:///system: run vbackup as root, or with -c qemu:///system as a member of the group libvirt."
    )


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("foo:///system", "Is the URI right"),
        ("qemu+unix:///system?socket=/nonexistent", "libvirtd (or virtqemud) running there?"),
    ],
)
def test_unreachable_libvirt_is_told_with_a_remedy(uri: str, remedy: str) -> None:
    with pytest.raises(HostUnreachableError, match=f"Cannot reach libvirt at {re.escape(uri)}: .*{re.escape(remedy)}"):
        Host(uri)


def test_running_domain_is_active_and_one_that_is_off_is_not(host: Host) -> None:
    assert host.domain("web").is_active()
    assert not off(host).is_active()


class Migrating:
    """A domain of libvirt that has this state, and this operation or error for an answer to jobStats."""

    def __init__(self, state: tuple[int, int], answer: int | None) -> None:
        self._state, self._answer = state, answer

    def name(self) -> str:
        return "web"

    def UUIDString(self) -> str:  # noqa: N802
        return WEB

    def state(self) -> tuple[int, int]:
        return self._state

    def jobStats(self) -> dict[str, int]:  # noqa: N802
        if self._answer is None:
            error = libvirt.libvirtError("migration statistics are available only on the source host")
            error.err = (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, 0, "", libvirt.VIR_ERR_ERROR, "", None, None, 0, 0)
            raise error
        return {libvirt.VIR_DOMAIN_JOB_OPERATION: self._answer} if self._answer else {}


RUNS = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)
PAUSED = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
ARRIVING = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)


@pytest.mark.parametrize(
    ("state", "answer", "where"),
    [
        (ARRIVING, None, "from another host"),
        (ARRIVING, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN, "from another host"),
        (RUNS, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT, "to another host.*on the host where"),
        (PAUSED, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT, "to another host"),
    ],
    ids=["arrives, libvirt 9.0 to 12.8", "arrives", "leaves", "leaves paused"],
)
def test_domain_that_migrates_is_busy(host: Host, state: tuple[int, int], answer: int | None, where: str) -> None:
    with pytest.raises(MigratingError, match=where) as caught:
        DomainHandle(host, Migrating(state, answer)).refuse_migration()
    assert caught.value.status == Status.BUSY


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        (RUNS, 0),
        (PAUSED, 0),
        (ARRIVING, 0),  # restored paused
        (RUNS, libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP),
        (RUNS, None),
        (PAUSED, None),
    ],
)
def test_domain_that_stays_is_not_refused(host: Host, state: tuple[int, int], answer: int | None) -> None:
    DomainHandle(host, Migrating(state, answer)).refuse_migration()


def test_guest_that_does_not_run_is_told(host: Host) -> None:
    handle = host.domain("web")
    assert handle.halted() is None
    handle.domain.suspend()
    assert handle.halted() == "paused"


def test_managed_save_is_reported(host: Host) -> None:
    handle = host.domain("web")
    assert not handle.has_managed_save()
    handle.domain.managedSave(0)
    assert (handle.is_active(), handle.has_managed_save()) == (False, True)


def test_volume_is_found_in_its_pool(host: Host) -> None:
    pool = host.connection.storagePoolCreateXML(
        "<pool type='dir'><name>images</name><target><path>/images</path></target></pool>"
    )
    pool.createXML("<volume><name>v.qcow2</name><capacity>1</capacity></volume>")
    assert host.volume_path("images", "v.qcow2") == "/images/v.qcow2"
    for missing in (("images", "w"), ("other", "v.qcow2")):
        with pytest.raises(MonitorError, match=f"volume {missing[1]} of pool {missing[0]}"):
            host.volume_path(*missing)


def test_secret_of_a_libvirt_without_secrets_is_an_error_of_libvirt(host: Host) -> None:
    with pytest.raises(MonitorError, match=r"secret with the usage /x"):
        host.secret_value(SecretRef(usage="/x"))


def test_domain_that_vanished_is_not_active(host: Host) -> None:
    """A transient domain disappears when it stops."""
    handle = off(host)
    handle.domain.undefine()
    assert not handle.is_active()


def test_xml_of_a_domain_that_vanished_is_an_error_of_libvirt(host: Host) -> None:
    handle = off(host)
    handle.domain.undefine()
    with pytest.raises(MonitorError, match="libvirt could not read the XML of domain off & <on>"):
        handle.live_xml()


def test_xml_is_read_live_and_as_defined(host: Host) -> None:
    handle = host.domain("web")
    assert "<domain type='test' id='1'>" in handle.live_xml()
    assert "id='1'" not in handle.definition_xml()


def test_host_that_cannot_be_reached_is_an_error_with_its_uri() -> None:
    with pytest.raises(HostUnreachableError, match=r"test:///no/such/node\.xml") as caught:
        Host("test:///no/such/node.xml")
    assert caught.value.uri == "test:///no/such/node.xml"


def test_default_uri_is_libvirts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "test:///default")
    with Host() as host:
        assert host.real_uri == "test:///default"


def test_closing_twice_is_fine(host: Host) -> None:
    host.close()
    host.close()


@pytest.mark.parametrize(
    ("uri", "local", "passes_fds"),
    [
        ("qemu:///system", True, True),
        ("qemu:///embed?root=/x", True, True),
        ("qemu+unix:///system?socket=/x", True, True),
        ("qemu+tcp://localhost/system", False, False),
        ("qemu+ssh://root@host/system", False, False),
        ("qemu+tls://host/system", False, False),
        ("qemu+ssh:///system", True, False),
    ],
)
def test_way_of_descriptors_is_read_off_the_uri(
    host: Host, monkeypatch: pytest.MonkeyPatch, uri: str, local: bool, passes_fds: bool
) -> None:
    monkeypatch.setattr(Host, "real_uri", uri)
    assert (host.is_local, host.passes_fds) == (local, passes_fds)


def test_version_has_three_numbers(host: Host) -> None:
    assert all(part.isdigit() for part in host.libvirt_version.split("."))
    assert len(host.libvirt_version.split(".")) == 3


def test_what_lasts_as_long_as_the_connection_is_asked_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("getHostname", "getLibVersion"):
        original = getattr(libvirt.virConnect, name)
        monkeypatch.setattr(libvirt.virConnect, name, lambda self, one=original: asked.append(one) or one(self))
    for _ in range(2):
        assert (host.hostname, host.libvirt_version) == (host.hostname, host.libvirt_version)
        assert len(asked) == 2
    host.reopen()
    assert host.hostname
    assert len(asked) == 3


# a connection that breaks


def test_domain_survives_a_reconnect(host: Host) -> None:
    handle = host.domain("web")
    handle.reconnect()
    assert handle.is_active()


def test_other_host_that_is_silent_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    goes_on, really_open = threading.Event(), Host._open

    def wait(this: Host) -> Any:
        assert goes_on.wait(10)
        opened.append(really_open(this))
        return opened[-1]

    monkeypatch.setattr(Host, "is_local", False)
    monkeypatch.setattr(hosts, "ATTEMPT_S", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(Host, "_open", wait)
        with pytest.raises(HostUnreachableError, match="it did not answer within 0 s"):
            host.reopen(timeout_s=0)
        goes_on.set()  # the other host answers, too late: that connection is closed
        for thread in threading.enumerate():
            if thread.name == "libvirt-open":
                thread.join()
    with pytest.raises(libvirt.libvirtError):
        opened[0].getHostname()
    host.reopen()
    assert host.domain("web").is_active()


def test_error_over_a_broken_connection_is_a_lost_connection(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = host.domain("web")
    monkeypatch.setattr(Host, "is_alive", lambda _self: False)
    handle.domain.destroy()
    with pytest.raises(ConnectionLostError, match="Is libvirtd running"):
        handle.resume()


def test_host_that_stays_away_is_unreachable_after_the_time(host: Host) -> None:
    host.uri = "test:///no/such/node.xml"
    with pytest.raises(HostUnreachableError):
        host.reopen(timeout_s=0)


def test_look_up_over_a_broken_connection_is_unreachable(host: Host) -> None:
    host.close()
    with pytest.raises(HostUnreachableError):
        host.domain("web")


def test_domain_of_another_hypervisor_is_unsuitable(host: Host, tmp_path: Path) -> None:
    """xen, lxc, esx: there is no QEMU to talk to, which is not an error of libvirt."""
    from vbackup.operations import backup
    from vbackup.report import Silent
    from vbackup.repository.repository import Repository

    repository = Repository.create(tmp_path / "repository")
    with pytest.raises(UnsuitableError):
        backup.run(backup.BackupRequest("web"), host=host, repository=repository, reporter=Silent(), stop=Stop())
    assert repository.uuids() == []


def test_autostart_is_reported_where_libvirt_has_it(host: Host) -> None:
    handle = host.domain("web")
    assert handle.autostart() is False
    handle.domain.setAutostart(True)
    assert handle.autostart() is True
    handle.domain.destroy()
    handle.domain.undefine()
    assert handle.autostart() is None


def test_version_of_the_library_is_a_number() -> None:
    assert library_version() >= 8_002_000
