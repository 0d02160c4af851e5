"""Standbys at a second libvirt: real images in a real daemon, compared byte for byte with what the original held.
VBACKUP_KILLS=1 kills a replicate at every step.

The operations are replicate, failover, failover_test and failback, with standby, standby_files and standby_documents,
and for another host boot_there, linked_standby, vbackup.domain.linked_images and vbackup.engine.rollback_reach.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.daemon import wait_for
from tests.end_to_end import whole
from tests.end_to_end.test_live_restore import lost_machine
from tests.end_to_end.test_offline import storage_daemons, write
from tests.hosts import Hypervisor
from tests.lab import HEEDING_SIGNALS, DiskSpec, Machine, domain_xml, qemu_img_info
from vbackup import archive
from vbackup import machine as machine_
from vbackup.domain import standby_xml
from vbackup.domain.host import library_version
from vbackup.engine import rollback as engine
from vbackup.errors import MonitorError
from vbackup.model import HostIdentity
from vbackup.operations import restore_in_place
from vbackup.operations.restored_machine import TPM_SOURCE_SINCE

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome
    from tests.daemon import Daemon
    from tests.lab import Lab

NAME = "bases"
MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")
CARDS = (
    f"<interface type='user'><mac address='{MACS[0]}'/><model type='virtio'/></interface>"
    f"<interface type='user'><mac address='{MACS[1]}'/><model type='virtio'/><link state='down'/></interface>"
)
SERIAL = "<serial type='pty'/>"
#: A guest: it writes its boot sector to the next one, and then to the serial port that it has booted.
GUEST = bytes.fromhex("31c08ed88ec0 b80103 bb007c b90200 ba8000 cd13 be257c ac 84c0 7406 baf803 ee ebf5 f4 ebfd")
GUEST += b"the guest has booted\r\n\0"


BOOTS = ("--boot-console", "the guest has booted", "--boot-timeout", "60s")


def boots(path: Path) -> None:
    """Put the guest on a disk."""
    raw = path.with_name("sector")
    raw.write_bytes(GUEST.ljust(510, b"\0") + b"\x55\xaa")
    write(path, f"write -s {raw} 0 512")


class TwoHosts:
    """A domain of the embedded libvirt, and a daemon that has its standby."""

    def __init__(
        self, lab: Lab, command: Command, repository: Path, tmp_path: Path, daemon: Daemon | Hypervisor
    ) -> None:
        self.command, self.repository, self.daemon, self.lab = command, repository, daemon, lab
        self.images = tmp_path / "standby"
        below = DiskSpec(tmp_path / "below.qcow2", size="8M")  # which no bitmap of the original covers
        below.create()
        write(below.path, "write -P 8 4M 64k")
        self.specs = [
            DiskSpec(tmp_path / "vda.qcow2", size="8M"),
            DiskSpec(tmp_path / "vdb.qcow2", dev="vdb", size="8M", backing=below.path),
        ]
        for spec in self.specs:
            spec.create()
            write(spec.path, "write -P 1 0 2M")
        self.uuid = "11111111-2222-3333-4444-555555555555"
        self.original = lab.define(self.xml())
        daemon.defined_later(NAME)

    def xml(self) -> str:
        disks = [spec.xml() for spec in self.specs]
        return domain_xml(NAME, disks, devices=CARDS + SERIAL, top=f"<uuid>{self.uuid}</uuid>")

    def run(self, *arguments: str | Path, status: int = 0) -> Outcome:
        return self.command("-q", *arguments, "-r", self.repository, "--json", status=status)

    def backup(self) -> str:
        made: str = self.run("-c", self.lab.uri, "backup", NAME).document["id"]
        return made

    def replicate(self, *options: str | Path, status: int = 0) -> Outcome:
        known = [] if self.images.exists() else ["--directory", self.images]
        return self.run("replicate", NAME, "--to", self.daemon.uri, *known, *options, status=status)

    def failover(self, *options: str | Path, status: int = 0) -> Outcome:
        return self.run("failover", NAME, "--to", self.daemon.uri, *options, status=status)

    def failback(self, *options: str, status: int = 0) -> Outcome:
        return self.run("-c", self.lab.uri, "failback", NAME, "--from", self.daemon.uri, *options, status=status)

    def state(self) -> dict[str, Any]:
        [found] = self.run("replicate", "--status").document["standbys"]
        assert found["uri"] == self.daemon.uri
        return dict(found)

    def standby_xml(self) -> str:
        return self.daemon.host.domain(NAME).definition_xml()

    def image(self, dev: str) -> Path:
        return self.images / f"{dev}.qcow2"

    def compare(self) -> None:
        """The standby's disks are as the original's are."""
        for spec in self.specs:
            compare(spec.path, self.image(spec.dev))

    def struck(self, *point: str) -> None:
        """A replicate is killed at that step (tests.end_to_end.killed_standby)."""
        known = [] if self.images.exists() else ["--directory", str(self.images)]
        argv = [*HEEDING_SIGNALS, sys.executable, "-m", "tests.end_to_end.killed_standby", *point, "--", "-q"]
        argv += ["replicate", NAME, "--to", self.daemon.uri, "-r", str(self.repository), *known]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == -9, done.stderr

    def machine(self) -> Machine:
        return Machine(self.daemon.host.domain(NAME))


def compare(one: Path, other: Path) -> None:
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(one), str(other)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{one} and {other}: {done.stdout}{done.stderr}"


def allocated_bytes(path: Path) -> int:
    """What a disk has allocated in its image, which the zeros and discards of its guest lessen."""
    done = subprocess.run(["qemu-img", "map", "--output=json", str(path)], capture_output=True, text=True, check=True)
    return sum(each["length"] for each in json.loads(done.stdout) if each["data"])


class TwoMachines(TwoHosts):
    """The standby is on another host, which ssh reaches."""

    def __init__(self, lab: Lab, command: Command, repository: Path, tmp_path: Path, hypervisor: Hypervisor) -> None:
        super().__init__(lab, command, repository, tmp_path, hypervisor)
        self.hypervisor = hypervisor
        self.images = hypervisor.images / "standby"

    def started(self, *options: str) -> subprocess.Popen[str]:
        """A failover that runs in a process."""
        argv = [*HEEDING_SIGNALS, sys.executable, "-m", "vbackup", "-q", "failover", NAME, "--to", self.hypervisor.uri]
        return subprocess.Popen([*argv, "-r", str(self.repository), *options], stderr=subprocess.PIPE, text=True)

    def domains(self) -> list[str]:
        return [one.name() for one in self.hypervisor.host.connection.listAllDomains()]

    def is_nothing_left(self) -> bool:
        """No copy, no process for it and none of its files."""
        own = self.hypervisor.run("ls", "-A", "/run").split()
        left = [name for name in own if name.startswith(".vbackup-")]
        return self.domains() == [NAME] and not self.hypervisor.processes("qemu-storage-daemon") and not left

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """The files of the standby do not change in the block, and nothing else is left."""

        def files() -> dict[str, tuple[bytes, int, int]]:
            found = [(path, path.stat()) for path in self.images.iterdir()]
            return {path.name: (path.read_bytes(), status.st_uid, status.st_mode) for path, status in found}

        before, definition = files(), self.standby_xml()
        yield
        assert files() == before
        assert self.standby_xml() == definition
        assert self.is_nothing_left()


@pytest.fixture
def machines(
    lab: Lab, command: Command, repository: Path, images: Path, hypervisor: Hypervisor
) -> Iterator[TwoMachines]:
    made = TwoMachines(lab, command, repository, images, hypervisor)
    yield made
    shutil.rmtree(made.images, ignore_errors=True)


@pytest.fixture
def hosts(lab: Lab, command: Command, repository: Path, images: Path, daemon: Daemon) -> TwoHosts:
    return TwoHosts(lab, command, repository, images, daemon)


def test_changes_of_each_backup_are_applied(hosts: TwoHosts) -> None:
    vda, vdb = (spec.path for spec in hosts.specs)
    first = hosts.backup()
    done = hosts.replicate().document
    assert (done["id"], done["before"], done["redefined"]) == (first, None, True)
    assert all(disk["full"] for disk in done["disks"])
    hosts.compare()
    assert hosts.standby_xml().count("<link state='down'/>") == 2
    write(vda, "write -P 2 1M 64k", "write -z 128k 64k", "discard 256k 128k", "write -P 3 6M 192k")
    write(vdb, "write -z 0 1M")
    second = hosts.backup()
    assert hosts.state()["behind"] == [second]
    done = hosts.replicate().document
    assert (done["id"], done["before"], done["redefined"]) == (second, first, False)
    assert {disk["dev"]: (disk["full"], disk["written_bytes"]) for disk in done["disks"]} == {
        "vda": (None, 8 << 16),  # with the last granule, which is written with every one
        "vdb": (None, 17 << 16),
    }
    hosts.compare()
    assert allocated_bytes(hosts.image("vdb")) == (1 << 20) + (64 << 10)  # zeros are not written as data
    state = hosts.state()
    assert (state["state"], state["backup"], state["behind"], state["running"]) == ("ready", second, [], False)
    made = hosts.run("-c", hosts.lab.uri, "backup", NAME).document  # the original has nothing to do with it
    assert {disk["dev"]: disk["base"] for disk in made["disks"]} == {"vda": second, "vdb": second}
    bitmaps = [one["name"] for one in qemu_img_info(hosts.image("vda"))["format-specific"]["data"]["bitmaps"]]
    assert len([one for one in bitmaps if "-end-" not in one]) == 1  # they do not become more


def test_failover_and_failback(hosts: TwoHosts) -> None:
    """The standby boots, is written to, and gives what it has back: only what differs is written to the original."""
    vda = hosts.specs[0].path
    boots(vda)
    first = hosts.backup()
    hosts.replicate()
    write(vda, "write -P 9 3M 64k")  # what the standby never gets
    assert "has not taken over" in hosts.failback(status=5).stderr
    tested = hosts.failover("--test", *BOOTS).document
    assert (tested["id"], tested["boot"]["verdict"]) == (first, "booted"), tested
    assert [one.name() for one in hosts.daemon.host.connection.listAllDomains()] == [NAME]
    write(vda, "read -P 9 3M 64k")
    done = hosts.failover().document
    assert (done["id"], done["running"], done["was_active"], done["not_applied"]) == (first, True, False, [])
    xml = hosts.standby_xml()
    assert (xml.count("<link state='up'/>"), xml.count("<link state='down'/>")) == (1, 1)  # as the original's
    assert hosts.state()["state"] == "active"
    assert hosts.failover().document["was_active"]
    machine = hosts.machine()
    machine.write("vda", "write -P 7 5M 192k", "write -z 1M 64k")
    machine.write("vdb", "write -P 6 7M 4k", "discard 64k 64k")
    assert "has taken over" in hosts.replicate(status=5).stderr
    assert "shut it down first" in hosts.failback(status=5).stderr
    machine.destroy()
    done = hosts.failback().document
    assert {disk["full"] for disk in done["disks"]} == {None}
    assert sum(disk["written_bytes"] for disk in done["disks"]) < 2 << 20
    hosts.compare()
    state = hosts.state()
    assert (state["state"], state["backup"], state["failback"]) == ("ready", done["id"], None)
    assert hosts.standby_xml().count("<link state='down'/>") == 2
    # All goes on as before: both increments are small.
    write(vda, "write -P 5 2M 64k")
    made = hosts.run("-c", hosts.lab.uri, "backup", NAME).document
    assert {disk["base"] for disk in made["disks"]} == {done["id"]}
    assert {disk["full"] for disk in hosts.replicate().document["disks"]} == {None}
    hosts.compare()


def test_original_that_was_backed_up_during_a_failover_goes_on_after_the_failback(
    hosts: TwoHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were backed up, each on its own host, so nothing is newest until the original goes on from the failback."""

    def on(name: str, uri: str) -> Outcome:
        monkeypatch.setattr(machine_, "this_host", lambda: HostIdentity(name, name * 16))
        return hosts.command("backup", NAME, "-c", uri, "-r", hosts.repository)

    on("a1", hosts.lab.uri)
    hosts.replicate()
    hosts.failover()
    hosts.machine().write("vda", "write -P 7 5M 192k")
    on("b2", hosts.daemon.uri)
    write(hosts.specs[0].path, "write -P 9 3M 64k")
    said = on("a1", hosts.lab.uri).stderr
    assert f"The standby at {hosts.daemon.uri} has taken over since" in said
    assert "new UUID" not in said
    hosts.machine().destroy()
    monkeypatch.setattr(machine_, "this_host", lambda: HostIdentity("b2", "b2" * 16))
    hosts.failback()
    hosts.compare()
    assert {disk["full"] for disk in hosts.replicate().document["disks"]} == {None}  # of the backup of the standby
    hosts.compare()
    assert "has taken over" not in on("a1", hosts.lab.uri).stderr
    assert {disk["full"] for disk in hosts.replicate().document["disks"]} == {None}
    hosts.compare()


def test_failback_that_failed_goes_on(hosts: TwoHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the standby has is in the repository and on the standby: nothing is lost, whichever is used."""
    hosts.backup()
    hosts.replicate()
    hosts.failover()
    hosts.machine().write("vda", "write -P 7 5M 192k")
    hosts.machine().destroy()

    def fail(*_words: Any, **_named: Any) -> None:
        raise MonitorError("The original is not there.")

    with monkeypatch.context() as patch:
        patch.setattr(restore_in_place, "run", fail)
        hosts.failback(status=1)
    state = hosts.state()
    assert (state["state"], state["failback"]) == ("ready", state["backup"])
    write(hosts.specs[0].path, "write -P 3 1M 64k")
    old = hosts.backup()  # of the original as it was
    assert "has not ended" in hosts.replicate(status=5).stderr
    assert old in hosts.failover(status=5).stderr
    hosts.failover("--as-is")
    hosts.machine().write("vda", "write -P 6 6M 64k")
    hosts.machine().destroy()
    done = hosts.failback().document
    assert {disk["full"] for disk in done["disks"]} == {None}
    hosts.compare()
    write(hosts.image("vda"), "read -P 7 5M 192k", "read -P 6 6M 64k", "read -P 0 7M 64k")
    assert hosts.state()["failback"] is None


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")
def test_machine_comes_with_the_disks(daemon: Daemon, command: Command, repository: Path, images: Path) -> None:
    """UEFI variables and the state of the TPM of a domain whose host is lost; it starts with its new host."""
    spec = lost_machine(daemon, command, repository, images)
    variables = (images / "vars.fd").read_bytes()
    output = images / "out"
    words = ("-q", "replicate", "web", "-r", repository, "--to", daemon.uri)
    command(*words, "--directory", output)
    found = daemon.defined("web")
    state = output / "tpm" if library_version() >= TPM_SOURCE_SINCE else Path("/var/lib/libvirt/swtpm") / whole.UUID
    (saved,) = repository.glob(f"{whole.UUID}/*/tpm.tar")
    known = archive.unpack(saved.read_bytes())["tpm2-00.permall"]

    def check() -> None:
        assert [path.read_bytes() for path in state.rglob("tpm2-00.permall")] == [known]
        assert (output / "nvram").read_bytes() == variables
        compare(spec.path, output / "vda.qcow2")

    check()
    (output / "nvram").write_bytes(b"changed" * 64)
    command(*words)
    check()
    assert found.handle.domain.autostart() == 0
    command("-q", "failover", "web", "-r", repository, "--to", daemon.uri)
    assert (found.handle.is_active(), found.handle.domain.autostart()) == (True, 1)
    found.destroy()


def test_standby_on_another_host(machines: TwoMachines) -> None:
    """The images there are written through the user's ssh, and what differs is known from their bitmaps."""
    vda, vdb = (spec.path for spec in machines.specs)
    boots(vda)
    first = machines.backup()
    done = machines.replicate().document
    assert (done["id"], done["before"], done["redefined"]) == (first, None, True)
    assert all(disk["full"] for disk in done["disks"])
    machines.compare()
    write(vda, "write -P 2 1M 64k", "write -z 128k 64k", "discard 256k 128k", "write -P 3 6M 192k")
    write(vdb, "write -z 0 1M")
    second = machines.backup()
    with machines.untouched():
        tested = machines.failover("--test", *BOOTS).document
        assert (tested["id"], tested["boot"]["verdict"]) == (first, "booted"), tested
        assert "the guest has booted" in tested["boot"]["console_end"]
    done = machines.replicate().document
    assert (done["id"], done["before"], done["redefined"]) == (second, first, False)
    assert {disk["dev"]: (disk["full"], disk["written_bytes"]) for disk in done["disks"]} == {
        "vda": (None, 8 << 16),
        "vdb": (None, 17 << 16),
    }
    machines.compare()
    state = machines.state()
    assert (state["state"], state["backup"], state["running"]) == ("ready", second, False)
    machines.failover()  # it starts there, and is written to
    machine = machines.machine()
    machine.write("vda", "write -P 7 5M 192k")
    machine.destroy()
    assert "has taken over" in machines.failover("--test", status=5).stderr
    done = machines.failback().document  # a backup of a domain that is off there, and a rollback here
    assert {disk["full"] for disk in done["disks"]} == {None}
    write(vda, "read -P 7 5M 192k")
    machines.compare()
    assert machines.state()["state"] == "ready"
    machines.backup()
    assert {disk["full"] for disk in machines.replicate().document["disks"]} == {None}
    machines.compare()


def test_failover_that_is_tried_on_another_host_ends_however_it_is_ended(machines: TwoMachines) -> None:
    """The copy goes with the link, and all that it had: the standby is as it was, and is brought up to date."""
    machines.backup()
    machines.replicate()
    with machines.untouched():
        for end, status in (("sshd", 4), ("TERM", 143), ("KILL", -9)):
            process = machines.started("--test", "--boot-console", "what no guest writes", "--boot-timeout", "60s")
            try:
                wait_for(lambda: len(machines.domains()) == 2, "the start of the copy")
                if end == "sshd":
                    assert machines.hypervisor.kill("sshd: root")
                else:
                    process.send_signal(getattr(signal, f"SIG{end}"))
                _, said = process.communicate(timeout=60)
            finally:
                process.kill()
            assert process.returncode == status, said
            wait_for(machines.is_nothing_left, f"the end of the copy after {end}")
    write(machines.specs[0].path, "write -P 2 1M 64k")
    machines.backup()
    assert {disk["full"] for disk in machines.replicate().document["disks"]} == {None}
    machines.compare()


def test_killed_replicate_to_another_host_is_repaired(machines: TwoMachines) -> None:
    """The storage daemon there ends with the link, and has stored the bitmaps: the next run writes what differs."""
    machines.backup()
    machines.struck("copy", "1", "after")
    assert machines.state()["state"] == "half-applied"
    machines.replicate()
    machines.compare()
    for count, (step, when) in enumerate(THERE[::EVERY]):
        for spec in machines.specs:
            write(spec.path, f"write -P {count + 2} {count}M 320k", f"write -z {count * 300}k 64k")
        machines.backup()
        machines.struck(step, "1", when)
        assert machines.state()["state"] == "half-applied"
        assert "is half applied" in machines.failover(status=5).stderr
        assert {disk["full"] for disk in machines.replicate().document["disks"]} == {None}
        machines.compare()
    assert machines.daemon.processes("qemu-storage-daemon") == []  # type: ignore[union-attr]


def test_link_that_is_lost_leaves_a_standby_that_is_repaired(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypervisor = machines.daemon
    assert isinstance(hypervisor, Hypervisor)
    machines.backup()
    machines.replicate()
    write(machines.specs[0].path, "write -P 2 1M 4M")
    machines.backup()
    copy = engine._copy

    def lost(*arguments: Any) -> None:
        hypervisor.kill("sshd: root")  # the sessions, that of libvirt too
        copy(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_copy", lost)
        failed = machines.command("-q", "replicate", NAME, "--to", hypervisor.uri, "-r", machines.repository, status=4)
    assert "SSH connection" in failed.stderr
    assert "is half applied" in failed.stderr
    assert machines.state()["state"] == "half-applied"
    assert {disk["full"] for disk in machines.replicate().document["disks"]} == {None}
    machines.compare()


def test_what_is_refused(hosts: TwoHosts) -> None:
    first = hosts.backup()
    remote = hosts.run("replicate", NAME, "--to", hosts.daemon.tcp_uri, "--directory", hosts.images, status=5)
    assert "no data can come to it" in remote.stderr
    assert "--directory" in hosts.run("replicate", NAME, "--to", hosts.daemon.uri, status=2).stderr
    assert "makes a standby" in hosts.failover(status=4).stderr
    hosts.images.mkdir()
    (hosts.images / "vda.qcow2").write_text("another's")
    strange = hosts.run("replicate", NAME, "--to", hosts.daemon.uri, "--directory", hosts.images, status=7)
    assert "already exists" in strange.stderr
    assert (hosts.images / "vda.qcow2").read_text() == "another's"
    (hosts.images / "vda.qcow2").unlink()
    hosts.images.rmdir()
    another = hosts.daemon.define(hosts.xml())
    assert "is not a standby" in hosts.replicate(status=5).stderr
    another.handle.domain.undefine()
    assert not hosts.images.exists()
    hosts.replicate()
    write(hosts.specs[0].path, "write -P 3 1M 64k")
    second = hosts.backup()
    assert second in hosts.failover(status=5).stderr  # it would be older than need be
    assert "is a standby, as at backup" in hosts.run("-c", hosts.daemon.uri, "backup", NAME, status=5).stderr
    assert "it is a standby" in hosts.run("-c", hosts.daemon.uri, "backup", "--all", status=4).stderr
    hosts.original.handle.domain.create()
    runs = hosts.run("-c", hosts.lab.uri, "failover", NAME, "--to", hosts.daemon.uri, "--as-is", status=5)
    assert "The original bases runs" in runs.stderr
    hosts.original.destroy()
    done = hosts.failover("--as-is", "--no-start").document
    assert (done["id"], done["not_applied"], done["running"]) == (first, [second], False)


def test_standby_that_ran_without_a_failover_becomes_one_again(hosts: TwoHosts) -> None:
    """Its bitmaps know what was written, also after its QEMU was killed: then it gets new images."""
    hosts.backup()
    hosts.replicate()
    hosts.daemon.host.domain(NAME).domain.create()
    machine = hosts.machine()
    machine.write("vda", "write -P 7 0 128k")
    assert hosts.state()["state"] == "started"
    said = hosts.replicate(status=5).stderr
    assert "was started by hand" in said
    assert "--output" not in said
    assert "was started by hand" in hosts.failover(status=5).stderr
    machine.destroy()
    assert {disk["full"] for disk in hosts.replicate().document["disks"]} == {None}
    hosts.compare()
    hosts.image("vda").unlink()
    done = {disk["dev"]: disk["full"] for disk in hosts.replicate().document["disks"]}
    assert done["vda"] is not None
    assert done["vdb"] is None
    hosts.compare()


def test_definition_follows_the_original_and_keeps_what_was_fitted_to_the_host(hosts: TwoHosts) -> None:
    hosts.backup()
    hosts.replicate()
    fitted = hosts.standby_xml().replace("<vcpu placement='static'>1<", "<vcpu placement='static'>2<")
    hosts.daemon.host.connection.defineXML(fitted)
    hosts.backup()
    assert hosts.replicate().document["redefined"] is False
    assert "<vcpu placement='static'>2<" in hosts.standby_xml()
    hosts.specs.append(DiskSpec(hosts.specs[0].path.with_name("vdc.qcow2"), dev="vdc", size="4M"))
    hosts.specs[-1].create()
    write(hosts.specs[-1].path, "write -P 4 0 64k")
    hosts.lab.host.connection.defineXML(hosts.xml())
    hosts.backup()
    done = hosts.replicate().document
    assert done["redefined"] is True
    assert [disk["dev"] for disk in done["disks"] if disk["full"]] == ["vdc"]
    hosts.compare()
    gone = hosts.specs.pop()
    hosts.lab.host.connection.defineXML(hosts.xml())
    hosts.backup()
    hosts.replicate()
    hosts.compare()
    assert not hosts.image(gone.dev).exists()


# kills

#: Of the steps at which a replicate is killed, every which one; VBACKUP_KILLS=1 takes them all.
EVERY = int(os.environ.get("VBACKUP_KILLS", "2"))
NEW = [("record", 1, "after"), ("images", 1, "before"), ("images", 1, "after"), ("machine", 1, "after")]
NEW += [("define", 1, "after"), ("put", 1, "after"), ("define", 2, "after"), ("record", 1, "after")]
APPLIED = [("define", 1, "before"), ("define", 1, "after"), ("copy", 1, "after"), ("mark", 1, "after")]
APPLIED += [("finish", 1, "after"), ("check", 1, "after"), ("define", 2, "before"), ("drop", 1, "after")]
APPLIED += [("define", 2, "after"), ("put", 1, "before")]
THERE = [("copy", "after"), ("mark", "after"), ("finish", "before")]


def check_struck(hosts: TwoHosts, before: dict[str, Path] | None) -> str:
    """The standby is there as before, or as in the new backup, or cannot be started; return its state."""
    state: str = hosts.state()["state"]
    if state == "missing":
        assert before is None
    elif state == "ready":
        kept = {dev: hosts.image(dev) for dev in ("vda", "vdb")}
        for spec in hosts.specs:
            old = spec.path if hosts.state()["behind"] == [] or before is None else before[spec.dev]
            compare(old, kept[spec.dev])
    else:
        assert state == "half-applied"
        with pytest.raises(libvirt.libvirtError, match=rf"{standby_xml.BARRIER}|standby/vd.\.qcow2"):
            hosts.daemon.host.domain(NAME).domain.create()
        assert "is half applied" in hosts.failover(status=5).stderr
    return state


def test_killed_replicate_leaves_what_the_next_one_repairs(hosts: TwoHosts, tmp_path: Path) -> None:
    hosts.backup()
    seen = set()
    for step, number, when in NEW[::EVERY]:
        hosts.struck(step, str(number), when)
        seen.add(check_struck(hosts, None))
        if seen == {"missing"}:
            continue  # from there on the next one goes on
        hosts.replicate()
        hosts.compare()
        hosts.daemon.host.domain(NAME).domain.undefine()
    assert seen == {"missing", "half-applied", "ready"}
    hosts.replicate()
    seen = set()
    for count, (step, number, when) in enumerate(APPLIED[::EVERY]):
        before = {spec.dev: tmp_path / f"{count}-{spec.dev}" for spec in hosts.specs}
        for spec in hosts.specs:
            subprocess.run(["cp", str(spec.path), str(before[spec.dev])], check=True)
            write(spec.path, f"write -P {count + 2} {count * 512}k 320k", f"write -z {count * 300}k 64k")
        hosts.backup()
        hosts.struck(step, str(number), when)
        seen.add(check_struck(hosts, before))
        assert {disk["full"] for disk in hosts.replicate().document["disks"]} == {None}
        hosts.compare()
        assert hosts.state()["state"] == "ready"
    assert seen == {"half-applied", "ready"}
    assert sorted(path.name for path in hosts.images.iterdir()) == ["vda.qcow2", "vdb.qcow2"]
    assert storage_daemons(hosts.images) == []
