"""``vbackup restore --live`` on a hypervisor that SSH leads to, with a guest that writes all the time.

Every byte comes home, whatever happens to the link. It is the test of operations live_place and live_there, of
images.live_point_there, and of what the helper does for them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import libvirt
import pytest

from tests.busy import BusyDisk
from tests.daemon import wait_for
from tests.end_to_end.test_live_restore import check, held_bytes, storage_daemons
from tests.hosts import Hypervisor
from tests.lab import HEEDING_SIGNALS, DiskSpec, Machine, compare, domain_xml
from vbackup.domain import live_xml
from vbackup.hooks import half_restored

if TYPE_CHECKING:
    from tests.conftest import Command

UUID = "77777777-2222-3333-4444-666666666666"
NAME = "live"
SLOW = ("--speed", "1M")


class Far:
    """A live restore of a backup to a directory of a hypervisor; the guest of vda writes all the time."""

    def __init__(self, hypervisor: Hypervisor, repository: Path) -> None:
        self.hypervisor, self.repository = hypervisor, repository
        self.output = hypervisor.images / "a place" / "web"
        self.images = {dev: self.output / f"{dev}.qcow2" for dev in ("vda", "sda")}
        self.points: dict[str, bytes] = {}
        self.id = ""
        self.processes: list[subprocess.Popen[str]] = []

    def words(self, *options: str, program: str | None = None) -> list[str]:
        vbackup = ["-m", "vbackup"] if program is None else ["-c", program]
        argv = [*HEEDING_SIGNALS, sys.executable, *vbackup, "-c", self.hypervisor.uri, "restore", NAME]
        return [*argv, "-r", str(self.repository), "--live", "--output", str(self.output), "--json", *options]

    def start(self, *options: str, program: str | None = None) -> subprocess.Popen[str]:
        argv = self.words(*options, program=program)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    def end(self, process: subprocess.Popen[str], *, status: int = 0) -> tuple[str, str]:
        out, err = process.communicate(timeout=90)
        assert "Traceback" not in err, err
        assert process.returncode == status, err
        return out, err

    def run(self, *options: str, status: int = 0) -> tuple[str, str]:
        return self.end(self.start(*options), status=status)

    @property
    def machine(self) -> Machine:
        return Machine(self.hypervisor.host.domain(NAME))

    def said(self) -> bytes:
        path = self.output / "serial0.log"
        return path.read_bytes() if path.exists() else b""

    def works(self, rounds: int = 5) -> None:
        """Wait until the guest has written, and read back, that many times from now on."""
        before = self.said().count(b".")
        wait_for(lambda: self.said().count(b".") >= before + rounds, f"guest's work; it said {self.said()[-20:]!r}")

    def away(self) -> list[str]:
        """The disks that still have the backup below them."""
        return list(live_xml.pending(self.machine.handle.live_xml(), str(self.output / "live.sock")))

    def is_linked(self) -> bool:
        """One helper is there, behind its sshd."""
        return bool(self.hypervisor.processes("sshd: root")) and len(self.hypervisor.processes("base64,zlib")) == 1

    def hurry_home(self, process: subprocess.Popen[str]) -> None:
        """All pulls that the process starts go as fast as they can."""

        def is_over() -> bool:
            for dev in self.away():
                with suppress(libvirt.libvirtError):
                    self.machine.handle.domain.blockJobSetSpeed(dev, 0)
            return process.poll() is not None

        wait_for(is_over, "the end of the live restore")

    def is_home(self) -> None:
        """All is as if the domain had been there all the time, and every byte is right."""
        self.works()
        self.is_plain()
        self.machine.destroy()
        self.is_whole()

    def is_plain(self) -> None:
        """Nothing of the live restore is left in the domain."""
        machine = self.machine
        assert not [word for word in (b"E", b"X") if word in self.said()], self.said()
        for text in (machine.handle.live_xml(), machine.handle.definition_xml()):
            assert "nbd" not in text
        assert "error_policy" not in machine.handle.definition_xml()
        nodes = [node["node-name"] for node in machine.execute("query-named-block-nodes", flat=True)]
        assert not [name for name in nodes if name.startswith("vbackup")]

    def is_whole(self) -> None:
        """The disks, which nobody uses, have the content of the backup, and what the guest has written."""
        assert {path.name for path in self.output.iterdir()} == {
            *("vda.qcow2", "sda.qcow2", "domain.xml", "serial0.log")
        }
        for dev, point in self.points.items():
            raw = self.hypervisor.images / "raw"
            subprocess.run(["qemu-img", "convert", "-O", "raw", str(self.images[dev]), str(raw)], check=True)
            check(raw.read_bytes(), point, is_busy=dev == "vda", rounds=self.said().count(b"."))


@pytest.fixture
def far(hypervisor: Hypervisor, command: Command, repository: Path) -> Iterator[Far]:
    made = Far(hypervisor, repository)
    specs = [
        BusyDisk(hypervisor.images / "a.qcow2", size="16M", driver="iothread='1' discard='unmap'"),
        DiskSpec(hypervisor.images / "b.qcow2", dev="sda", bus="scsi", size="33555968", driver="cache='none'"),
    ]
    for spec in specs:
        spec.create()
    serial = f"<serial type='file'><source path={quoteattr(str(hypervisor.images / 'serial'))}/></serial>"
    top = f"<uuid>{UUID}</uuid><iothreads>1</iothreads>"
    machine = hypervisor.define(domain_xml(NAME, [spec.xml() for spec in specs], devices=serial, top=top))
    for commands in (("write -P 1 8M 4M", "write -P 2 12M 1M"), ("write -P 3 9M 1M", "write -z 10M 1M")):
        for spec in specs:
            words = [word for one in commands for word in ("-c", one)]
            subprocess.run(["qemu-io", *words, str(spec.path)], check=True, stdout=subprocess.DEVNULL)
        made.id = command("-c", hypervisor.uri, "-q", "backup", NAME, "-r", repository, "--json").document["id"]
    machine.handle.domain.undefine()
    for spec in specs:
        raw = hypervisor.images / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(spec.path), str(raw)], check=True)
        made.points[spec.dev] = raw.read_bytes()
        spec.path.unlink()
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def test_guest_runs_at_once_and_all_comes_home(far: Far, command: Command, tmp_path: Path) -> None:
    """And the next backup, an incremental, has what the guest has written since, and no more."""
    done = json.loads(far.run()[0])
    assert {disk["dev"]: disk["file"] for disk in done["disks"]} == {dev: str(one) for dev, one in far.images.items()}
    assert all(disk["checkpoint"] for disk in done["disks"])
    far.works()
    far.is_plain()
    far.machine.handle.domain.suspend()
    back = command("-c", far.hypervisor.uri, "-q", "backup", NAME, "-r", far.repository, "--json").document
    assert {disk["dev"]: disk["base"] for disk in back["disks"]} == dict.fromkeys(far.images, far.id)
    assert held_bytes(far.repository / UUID / back["id"] / "sda.qcow2") == 0
    far.machine.destroy()
    far.is_whole()
    command("-q", "restore", NAME, "-r", far.repository, "--output", tmp_path / "again")
    for dev, image in far.images.items():
        compare(image, tmp_path / "again" / f"{dev}.qcow2")


def test_link_and_server_that_die_are_replaced(far: Far) -> None:
    """Every connection to the hypervisor ends, libvirt's too; the guest waits for a moment and sees no error."""
    process = far.start(*SLOW)
    far.works()
    assert far.hypervisor.kill("sshd: root")
    wait_for(far.is_linked, "another link")
    far.works(20)
    [dead] = storage_daemons(far.repository)
    os.kill(dead, signal.SIGKILL)
    wait_for(lambda: storage_daemons(far.repository) not in ([], [dead]), "another storage daemon")
    far.works(20)
    assert far.away() == ["vda", "sda"]
    far.hurry_home(process)
    err = far.end(process)[1]
    assert "Connected to root@hv1 again" in err
    assert "another one serves the backup now" in err
    far.is_home()
    assert storage_daemons(far.repository) == []


#: vbackup with less patience.
IMPATIENT = """
from vbackup.cli import command
from vbackup.domain import host
from vbackup.remote import connection

connection.SILENCE_S, connection.REPLY_SILENCE_S = 3.0, 5.0
host.KEEPALIVE_INTERVAL_S, host.KEEPALIVE_COUNT, host.RECONNECT_S = 2, 3, 4.0
command()
"""


@pytest.mark.long
def test_network_that_dies_loses_nothing(far: Far) -> None:
    """Packets are dropped: the helper closes QEMU's connection, and vbackup gives up; then it goes on."""
    process = far.start(*SLOW, program=IMPATIENT)
    far.works()
    far.hypervisor.pull_cable()
    wait_for(lambda: not far.hypervisor.processes("base64,zlib"), "the end of the helper")
    err = far.end(process, status=4)[1]
    assert "live is not paused. Nobody serves its backup any more" in err
    assert f"vbackup -c {far.hypervisor.uri} restore {UUID} --live --resume" in err
    assert far.machine.handle.is_active()
    far.hypervisor.plug_cable()
    far.run("--resume")
    far.is_home()


def test_killed_resumed_interrupted_and_aborted(far: Far) -> None:
    process = far.start(*SLOW)
    far.works()
    process.kill()
    process.communicate()
    socket = far.output / "live.sock"
    wait_for(lambda: not socket.exists(), "the helper's cleaning up")
    record = json.loads(far.hypervisor.run("cat", str(half_restored.DIRECTORY / UUID)))
    command = f"vbackup -c {far.hypervisor.uri} restore {UUID} --live --resume '--output={far.output}'"
    assert (record["command"], record["work"]) == (f"{command} -r {far.repository}", "live")
    process = far.start("--resume", *SLOW)
    wait_for(socket.exists, "the socket of the next vbackup")
    far.works(20)
    process.send_signal(signal.SIGINT)
    err = far.end(process, status=128 + signal.SIGINT)[1]
    assert "Domain live is paused." in err
    assert far.machine.handle.halted() == "paused"
    assert "--yes" in far.run("--abort", status=2)[1]
    assert json.loads(far.run("--abort", "--yes")[0])["state"] == "aborted"
    assert far.hypervisor.host.connection.listAllDomains() == []
    assert not far.output.exists()
    assert UUID not in far.hypervisor.run("ls", str(half_restored.DIRECTORY))
    assert "No live restore to" in far.run("--resume", status=7)[1]


def test_refusals_before_anything_is_written(far: Far) -> None:
    place, far.output = far.output, Path("web")
    assert "absolute path" in far.run(status=5)[1]
    far.output = place
    assert "run vbackup there" in far.run("--disk", "vda=/dev/null", "sda", status=5)[1]
    assert not place.exists()
