"""A disk costs what it contains, not what it could contain: 4 TiB with some MiB of data, in a chain and alone."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.chains import Chain, levels
from tests.lab import DiskSpec, Lab, domain_xml
from vbackup.engine import preparation
from vbackup.qemu import jobs

if TYPE_CHECKING:
    from tests.conftest import Command

MIB = 1024 * 1024
SIZE = "4T"
#: Of an image with the few MiB of this test: with tables for all of the disk it would have 512 MiB.
MAX_IMAGE_BYTES = 24 * MIB


def qemu_io(path: Path, *commands: str, image_format: str = "qcow2") -> None:
    done = subprocess.run(
        ["qemu-io", "-f", image_format, *(word for one in commands for word in ("-c", one)), str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "rror" not in done.stdout + done.stderr, done


DEVS = ("vda", "vdb", "vdc", "vdd")
RAW_BYTES = 4 << 40


def make_disk(directory: Path, dev: str) -> DiskSpec:
    """Make the images of a disk, the same ones at every call."""
    directory.mkdir(exist_ok=True)
    if dev == "vda":
        return DiskSpec(make_chain(directory, dev), dev, size=SIZE)
    path = directory / f"{dev}.qcow2"
    if dev == "vdb":
        DiskSpec(path, size=SIZE).create()
        qemu_io(path, "write -P 1 5G 1M", "write -P 2 3500G 64k")
        return DiskSpec(path, dev, size=SIZE)
    raw = directory / f"{dev}.raw"
    with raw.open("xb") as file:
        for offset, data in ((0, b"1"), (1 << 40, b"2" * 4096), ((2 << 40) + 1, b"3" * MIB), (RAW_BYTES - 1, b"4")):
            file.seek(offset)
            file.write(data)
    if dev == "vdc":
        return DiskSpec(raw, dev, size=SIZE, format="raw")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(raw), "-F", "raw", str(path)], check=True)
    return DiskSpec(path, dev, size=SIZE)


def make_chain(directory: Path, name: str) -> Path:
    """Three layers: data in each, zeros over the data of a lower one, and one that is smaller than the next."""
    directory.mkdir(exist_ok=True)
    base, middle, top = (directory / f"{name}-{part}.qcow2" for part in ("base", "middle", "top"))
    DiskSpec(base, size="3T").create()
    qemu_io(base, "write -P 1 0 2M", "write -P 2 1T 1M", "write -P 3 2T 1M")
    DiskSpec(middle, size=SIZE, backing=base).create()
    qemu_io(middle, "write -P 4 1M 64k", "write -z 1T 512k", "write -P 5 3500G 1M")
    DiskSpec(top, size=SIZE, backing=middle).create()
    qemu_io(top, "write -P 6 2049G 4k", "write -z 2T 64k")
    return top


#: What the guest writes between the question what is allocated and the moment of the backup, and after the moment.
MEANWHILE = ("write -P 7 3000G 1M", "write -P 0 2T 128k", "write -P 8 0 4k", "discard 1T 1M")
AFTERWARDS = ("write -P 9 3000G 64k", "write -P 9 3100G 1M", "write -z 0 1M", "discard 3500G 1M")


class Huge(Chain):
    """vda is the top of a chain, vdb is one image, vdc a raw file, vdd stands on a raw file."""

    def xml(self) -> str:
        specs = [spec.xml() for spec in self.specs]
        return domain_xml("bases", specs, top=f"<uuid>{self.uuid}</uuid><iothreads>1</iothreads>")

    def expected(self, dev: str, *commands: str) -> DiskSpec:
        """What ``dev`` is after these commands, by way of other images."""
        spec = make_disk(self.tmp_path / f"expected-{self.count}-{dev}", dev)
        self.count += 1
        qemu_io(spec.path, *commands, image_format=spec.format)
        return spec

    def assert_restores(self, *commands: str) -> None:
        output = self.tmp_path / f"out-{self.count}"
        self.command("-q", "restore", "bases", "-r", self.repository, "--output", output)
        for spec in self.specs:
            restored, expected = output / f"{spec.dev}.qcow2", self.expected(spec.dev, *commands)
            argv = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", expected.format, str(restored)]
            subprocess.run([*argv, str(expected.path)], check=True)


@pytest.fixture
def iothread() -> str:
    return "iothread='1'"


@pytest.fixture
def huge(lab: Lab, command: Command, repository: Path, tmp_path: Path, iothread: str) -> Huge:
    made = [make_disk(tmp_path, dev) for dev in DEVS]
    specs = [replace(one, driver=f"discard='unmap' {iothread if one.dev == 'vda' else ''}") for one in made]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiskSpec, "create", lambda _self: None)  # they are there
        return Huge(lab, command, repository, tmp_path, specs)


@pytest.fixture
def meanwhile(huge: Huge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest writes when all is prepared, just before the moment."""
    really: Callable[..., Any] = preparation.prepare

    def prepare(*arguments: Any, **more: Any) -> Any:
        plan = really(*arguments, **more)
        for dev in DEVS:
            huge.machine.write(dev, *MEANWHILE)
        return plan

    monkeypatch.setattr(preparation, "prepare", prepare)


def image_bytes(chain: Chain, done: dict[str, Any]) -> dict[str, int]:
    return {disk["dev"]: disk["file_size_bytes"] for disk in done["disks"]}


@pytest.mark.usefixtures("meanwhile")
def test_full_of_a_huge_disk_costs_what_it_contains(huge: Huge) -> None:
    before = huge.machine.state()
    done = huge.run("--compress", "zstd").document
    assert levels(done) == dict.fromkeys(DEVS, "full")
    after = huge.machine.state()
    assert [after[what] for what in ("nodes", "jobs", "fdsets")] == [
        before[what] for what in ("nodes", "jobs", "fdsets")
    ]
    assert not [
        name for names in after["bitmaps"].values() for name in names if name.endswith(("working", "allocated"))
    ]
    assert max(image_bytes(huge, done).values()) < MAX_IMAGE_BYTES
    assert max(disk["copied_bytes"] for disk in done["disks"]) < MAX_IMAGE_BYTES
    huge.assert_restores(*MEANWHILE)


def test_guest_that_writes_while_qemu_is_asked_what_is_allocated_loses_no_write(
    huge: Huge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that asks copies what the guest is about to overwrite; were that to fail, the write would."""
    writes = MEANWHILE[:3]  # QEMU ignores a discard while such a job runs, as it may
    really, asked = jobs.until, list[str]()

    def until(monitor: Any, job_id: str, *arguments: Any, **more: Any) -> None:
        if not asked:
            for dev in DEVS:
                huge.machine.write(dev, *writes)
        asked.append(job_id)
        really(monitor, job_id, *arguments, **more)

    monkeypatch.setattr(jobs, "until", until)
    done = huge.run("--compress", "zstd").document
    assert len(asked) == 2, "the chains"
    assert max(disk["copied_bytes"] for disk in done["disks"]) < MAX_IMAGE_BYTES
    assert not list(huge.repository.glob(f"*/{done['id']}/.*"))
    huge.assert_restores(*writes)


@pytest.mark.usefixtures("meanwhile")
@pytest.mark.parametrize("iothread", [""])
def test_full_by_way_of_a_fleecing_area_too(huge: Huge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    area = tmp_path / "area"
    area.mkdir()
    from vbackup.engine import fleecing

    really = fleecing.open_views

    def open_views(*arguments: Any, **more: Any) -> None:
        really(*arguments, **more)
        for dev in DEVS:
            huge.machine.write(dev, *AFTERWARDS)

    monkeypatch.setattr(fleecing, "open_views", open_views)
    done = huge.run("--fleecing", area).document
    assert max(image_bytes(huge, done).values()) < MAX_IMAGE_BYTES
    huge.assert_restores(*MEANWHILE)


def test_increments_follow_such_a_full(huge: Huge) -> None:
    huge.run()
    for dev in DEVS:
        huge.machine.write(dev, *MEANWHILE)
    done = huge.run().document
    assert levels(done) == dict.fromkeys(DEVS, "incremental")
    assert max(image_bytes(huge, done).values()) < MAX_IMAGE_BYTES
    huge.assert_restores(*MEANWHILE)


def test_full_while_the_domain_is_off_too(huge: Huge) -> None:
    for dev in DEVS:
        huge.machine.write(dev, *MEANWHILE)
    huge.stop()
    huge.lab.define(huge.xml())
    done = huge.run().document
    assert max(image_bytes(huge, done).values()) < MAX_IMAGE_BYTES
    huge.assert_restores(*MEANWHILE)


def test_where_qemu_refuses_to_tell_all_is_read(
    huge: Huge, monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path
) -> None:
    """A QEMU without blkdebug, say. Here the disk that is asked about is small enough to be read."""
    from vbackup.engine import allocation, allocation_jobs

    monkeypatch.setattr(allocation, "WORTH_BYTES", 1)
    refused = lambda *_arguments: {"driver": "no-such"}  # noqa: E731
    for name in ("_refusing", "_null"):
        monkeypatch.setattr(allocation_jobs, name, refused)
    small, base = tmp_path / "small.qcow2", tmp_path / "small-base.qcow2"
    DiskSpec(base, size="64M").create()
    qemu_io(base, "write -P 1 0 1M")
    DiskSpec(small, size="64M", backing=base).create()
    machine = huge.lab.start(domain_xml("small", [DiskSpec(small, size="64M").xml()]))
    try:
        before = machine.state()
        told = command("-c", huge.lab.uri, "backup", "small", "-r", huge.repository).stderr
        assert "all of it is read, because what it contains is not known" in told
        after = machine.state()
        assert [after[what] for what in ("nodes", "jobs", "fdsets")] == [
            before[what] for what in ("nodes", "jobs", "fdsets")
        ]
        command("-q", "restore", "small", "-r", huge.repository, "--output", tmp_path / "small-out")
    finally:
        huge.lab.remove(machine)
    subprocess.run(["qemu-img", "compare", "-q", str(small), str(tmp_path / "small-out" / "vda.qcow2")], check=True)
