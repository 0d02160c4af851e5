"""Disks whose iothread is in use: QEMU has their nodes in another AioContext, and with them all that vbackup adds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.busy import BusyChain, BusyDisk
from tests.daemon import wait_for
from tests.end_to_end.chains import levels
from tests.lab import DiskSpec, domain_xml
from vbackup.engine import allocation
from vbackup.qemu import jobs

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.lab import Lab
    from vbackup.qemu.monitor import Monitor

Start = Callable[..., BusyChain]


@pytest.fixture
def start(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Start:
    """Start a guest that uses its first disk, which is on that bus; the second one has the same iothread."""

    def made(bus: str) -> BusyChain:
        prefix = {"virtio": "vd", "scsi": "sd"}[bus]
        driver = "iothread='1'" if bus == "virtio" else ""
        specs = [
            kind(tmp_path / f"{letter}.qcow2", dev=f"{prefix}{letter}", bus=bus, size="16M", driver=driver)
            for letter, kind in (("a", BusyDisk), ("b", DiskSpec))
        ]
        return BusyChain(lab, command, repository, tmp_path, specs=specs)

    return made


def survives_fleecing(chain: BusyChain) -> bool:
    version = chain.machine.execute("query-version")["qemu"]
    return (version["major"], version["minor"]) >= (9, 1)


@pytest.mark.parametrize("bus", ["virtio", "scsi"])
def test_backups_while_the_iothread_works(start: Start, bus: str) -> None:
    chain = start(bus)
    before = chain.machine.state()
    assert set(levels(chain.backup()).values()) == {"full"}
    chain.works(50)
    assert set(levels(chain.backup("--max-latency", "1000ms", "--compress", "zstd")).values()) == {"incremental"}
    assert set(levels(chain.backup()).values()) == {"incremental"}
    after = chain.machine.state()
    assert [after[what] for what in ("nodes", "jobs", "fdsets")] == [
        before[what] for what in ("nodes", "jobs", "fdsets")
    ]
    chain.is_well()


@pytest.mark.parametrize("bus", ["virtio", "scsi"])
def test_audits_while_the_iothread_works(start: Start, bus: str) -> None:
    chain = start(bus)
    chain.machine.write(chain.specs[1].dev, "write -P 5 0 8M")
    chain.run()
    before = chain.machine.state()
    for options in ((), ("--speed", "8M")):
        chain.works(50)
        audit = ("-c", chain.lab.uri, "audit", "bases", "-r", chain.repository, "--json", *options)
        assert chain.command(*audit).document["verdict"] == "good"
    assert chain.machine.state() == before
    chain.is_well()


@pytest.mark.parametrize("bus", ["virtio", "scsi"])
def test_asking_what_is_allocated_while_the_iothread_works(
    start: Start, bus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a disk of many TiB: a job and a bitmap on a node that comes and goes."""
    monkeypatch.setattr(allocation, "LONG_BYTES", 0)
    monkeypatch.setattr(allocation, "WORTH_BYTES", -(1 << 40))
    asked, until = list[str](), jobs.until

    def note(monitor: Monitor, job_id: str, *arguments: Any, **more: Any) -> None:
        asked.append(job_id)
        until(monitor, job_id, *arguments, **more)

    monkeypatch.setattr(jobs, "until", note)
    chain = start(bus)
    before = chain.machine.state()
    for _ in range(2):
        assert set(levels(chain.backup("--level", "full")).values()) == {"full"}
        chain.works(50)
    assert len(asked) == 4, "two disks, twice"
    after = chain.machine.state()
    assert [after[what] for what in ("nodes", "jobs", "fdsets")] == [
        before[what] for what in ("nodes", "jobs", "fdsets")
    ]
    chain.is_well()


@pytest.mark.parametrize("bus", ["virtio", "scsi"])
def test_fleecing_while_the_iothread_works(start: Start, bus: str, tmp_path: Path) -> None:
    """QEMU 7.2 aborted at the view: qemu_mutex_unlock_impl: Operation not permitted."""
    chain = start(bus)
    area = tmp_path / "area"
    area.mkdir()
    before = chain.machine.state()
    if survives_fleecing(chain):
        assert set(levels(chain.backup("--fleecing", area)).values()) == {"full"}
        chain.works(50)
        assert set(levels(chain.backup("--fleecing", area)).values()) == {"incremental"}
        assert set(levels(chain.backup()).values()) == {"incremental"}
        after = chain.machine.state()
        for what in ("nodes", "jobs", "fdsets"):
            assert after[what] == before[what]
    else:
        failed = chain.run("--fleecing", area, status=5)
        assert f"Disk {chain.specs[0].dev}: it has an iothread (iothread1)" in failed.stderr
        assert "Back it up without --fleecing" in failed.stderr
        assert chain.machine.state() == before
        assert [path.name for path in chain.repository.iterdir()] == ["vbackup.json"]
    assert list(area.iterdir()) == []
    chain.is_well()


@pytest.mark.parametrize("options", [(), ("--fleecing",)], ids=["plain", "fleecing"])
def test_reset_in_mid_job_brings_all_nodes_back_to_the_main_loop(
    start: Start, options: tuple[str, ...], tmp_path: Path
) -> None:
    chain = start("virtio")
    if options and not survives_fleecing(chain):
        pytest.skip("this QEMU cannot do it")
    given: tuple[str | Path, ...] = (*options, tmp_path) if options else ()
    chain.backup("--speed", "8M", *given, during=lambda: chain.machine.execute("system_reset"))
    chain.is_well()


def test_disk_detached_in_mid_job(start: Start) -> None:
    """Of the two on the controller that has the iothread; no guest has to help with SCSI."""
    chain = start("scsi")

    def detach() -> None:
        chain.machine.handle.domain.detachDevice(chain.specs[1].xml())
        wait_for(lambda: "'sdb'" not in chain.machine.handle.live_xml(), "the end of the detaching")

    assert set(levels(chain.backup("--speed", "8M", during=detach)).values()) == {"full"}
    nodes = [node for node in chain.machine.state()["nodes"] if not node.startswith("#")]
    assert [node for node in nodes if node.startswith("vbackup")] == []
    assert levels(chain.backup()) == {"sda": "incremental"}
    chain.is_well()


def test_group_of_two(start: Start) -> None:
    chain = start("virtio")
    other = DiskSpec(chain.tmp_path / "other.qcow2", size="16M", driver="iothread='1'")
    other.create()
    xml = domain_xml("other", [other.xml()], top="<iothreads>1</iothreads>")
    machine = chain.lab.start(xml)
    before = chain.machine.state(), machine.state()
    for level in ("full", "copy"):
        options = ("-r", chain.repository, "--group", "--level", level, "--json")
        done = chain.command("-c", chain.lab.uri, "-q", "backup", "bases", "other", *options).document
        assert (done["done"], done["failed"]) == (2, 0)
    after = chain.machine.state(), machine.state()
    for now, then in zip(after, before):
        assert [now[what] for what in ("nodes", "jobs", "fdsets")] == [
            then[what] for what in ("nodes", "jobs", "fdsets")
        ]
    chain.is_well()


@pytest.mark.parametrize("bus", ["virtio", "scsi"])
def test_pull_session_while_the_iothread_works(start: Start, bus: str, sockets: Path) -> None:
    chain = start(bus)
    chain.machine.write(chain.specs[1].dev, "write -P 5 0 8M")
    chain.run()
    before = chain.machine.state()
    session = ("-c", chain.lab.uri, "-q", "session")
    if not survives_fleecing(chain):
        words = ("begin", chain.machine.name, "--tracker", "acme", "--scratch", sockets, "--json")
        refused = chain.command(*session, *words, status=5).document
        assert "it has an iothread" in refused["message"]
        assert chain.machine.state() == before
        chain.is_well()
        return
    for level in ("full", "incremental"):
        words = ("begin", chain.machine.name, "--tracker", "acme", "--scratch", sockets, "--json")
        begun = chain.command(*session, *words).document
        assert {disk["level"] for disk in begun["disks"]} == {level}
        chain.works(50)
        for disk in begun["disks"]:
            copy = sockets / "copy.raw"
            subprocess.run(["nbdcopy", disk["uri"], copy], check=True)
            again = subprocess.run(["nbdcopy", disk["uri"], sockets / "again.raw"], check=True)
            assert again.returncode == 0
            assert copy.read_bytes() == (sockets / "again.raw").read_bytes()  # of one moment, whatever the guest does
        chain.works(50)
        chain.command(*session, "commit", begun["id"])
    after = chain.machine.state()
    assert [after[what] for what in ("nodes", "jobs", "fdsets")] == [
        before[what] for what in ("nodes", "jobs", "fdsets")
    ]
    chain.is_well()
