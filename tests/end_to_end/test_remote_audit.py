"""Audits of domains on another host: the images of what is read are files there, whose content comes back by SSH."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import wait_for
from tests.end_to_end.chains import levels
from tests.end_to_end.test_audit import while_it_reads
from tests.hosts import Hypervisor
from tests.lab import DiskSpec, Machine, domain_xml

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome


class Audited:
    """A machine on a hypervisor with two disks, and its backups."""

    def __init__(self, hypervisor: Hypervisor, command: Command, repository: Path) -> None:
        self.hypervisor, self._command, self.repository = hypervisor, command, repository
        specs = [
            DiskSpec(hypervisor.images / "vda.qcow2", size="64M"),
            DiskSpec(hypervisor.images / "vdb.raw", dev="vdb", size="16M", format="raw"),
        ]
        for spec in specs:
            spec.create()
        self.machine: Machine = hypervisor.define(domain_xml("web", [spec.xml() for spec in specs]))
        self.machine.handle.domain.create()
        self.machine.write("vda", "write -P 1 0 12M")
        self.machine.write("vdb", "write -P 2 0 2M")

    def run(self, *words: str | Path, status: int = 0) -> Outcome:
        return self._command("-c", self.hypervisor.uri, *words, "-r", self.repository, status=status)

    def backup(self) -> dict[str, Any]:
        return self.run("-q", "backup", "web", "--json").document

    def audit(self, *options: str | Path, status: int = 0) -> Outcome:
        return self.run("audit", "web", "--json", *options, status=status)


@pytest.fixture
def audited(hypervisor: Hypervisor, command: Command, repository: Path) -> Audited:
    return Audited(hypervisor, command, repository)


def disk(done: Outcome, dev: str = "vda") -> dict[str, Any]:
    return next(one for one in done.document["disks"] if one["dev"] == dev)


def test_audit_of_a_running_domain(audited: Audited) -> None:
    audited.backup()
    audited.machine.write("vda", "write -P 3 1M 64k")
    done = audited.backup()
    audited.machine.write("vda", "write -P 4 2M 64k")
    before, files = audited.machine.state(), sorted(audited.hypervisor.images.iterdir())

    def overwrite() -> None:
        audited.machine.write("vda", "write -P 5 4M 4M", "write -P 6 40M 64k")

    with while_it_reads(overwrite):
        good = audited.audit("--scratch", audited.hypervisor.images)
    assert good.document["verdict"] == "good"
    assert disk(good)["read_bytes"] == (12 << 20) - (64 << 10)
    assert audited.machine.state() == before
    assert sorted(audited.hypervisor.images.iterdir()) == files
    # What that bitmap forgets, an incremental would miss.
    image = next(one for one in done["disks"] if one["dev"] == "vda")
    audited.machine.write("vda", "write -P 7 192k 128k", "write -P 7 50M 64k")
    audited.machine.execute("block-dirty-bitmap-clear", node=image["node_name"], name=image["bitmap"])
    missed = audited.audit("--sample", "100", status=6)
    assert [one["start_bytes"] for one in disk(missed)["ranges"]][:1] == [192 << 10]
    assert (50 << 20) in [one["start_bytes"] for one in disk(missed)["ranges"]]
    assert disk(missed, "vdb")["verdict"] == "good"
    assert levels(audited.backup()) == {"vda": "full", "vdb": "incremental"}
    assert audited.audit().document["verdict"] == "good"


def test_audit_of_a_domain_that_is_off(audited: Audited) -> None:
    audited.backup()
    audited.machine.write("vda", "write -P 3 1M 64k")
    audited.machine.destroy()
    audited.backup()
    done = audited.audit("--disk", "vda")
    assert done.document["verdict"] == "good"
    assert disk(done)["read_bytes"] == 12 << 20
    image = audited.hypervisor.images / "vda.qcow2"
    mapped = subprocess.run(["qemu-img", "map", "--output=json", str(image)], capture_output=True, check=True)
    place = next(one["offset"] for one in json.loads(mapped.stdout) if one.get("offset") and one["start"] == 0)
    with image.open("r+b") as file:  # no bitmap knows of it
        file.seek(place + (128 << 10) + 5)
        file.write(b"x")
    done = audited.audit("--disk", "vda", status=6)
    assert [one["start_bytes"] for one in disk(done)["ranges"]] == [128 << 10]


def test_directory_that_the_hypervisor_does_not_have(audited: Audited) -> None:
    audited.backup()
    before = audited.machine.state()
    refused = audited.audit("--scratch", "/nothing", status=7)
    assert "/nothing" in refused.document["message"]
    assert "root@hv1" in refused.document["message"]
    assert audited.machine.state() == before


@pytest.mark.long
def test_link_that_dies_leaves_nothing(audited: Audited) -> None:
    audited.backup()
    before = audited.machine.state()
    options = ("-c", audited.hypervisor.uri, "-q", "audit", "web", "-r", str(audited.repository), "--speed", "1M")
    with subprocess.Popen([sys.executable, "-m", "vbackup", *options]) as process:
        wait_for(lambda: len(audited.machine.execute("query-jobs")) == 2, "the jobs of the audit")
        audited.hypervisor.pull_cable()
        begun = time.monotonic()
        audited.machine.write("vda", "write -P 9 8M 64k")
        assert time.monotonic() - begun < 2
        wait_for(lambda: audited.machine.state() == before, "the helper's work", timeout_s=40)
        process.kill()
    audited.hypervisor.plug_cable()
    assert audited.audit("--disk", "vda").document["verdict"] == "good"


def test_other_commands_reach_the_domain(audited: Audited) -> None:
    first = audited.backup()["id"]
    audited.machine.write("vda", "write -P 3 1M 64k")
    second = audited.backup()["id"]
    assert audited.run("verify", "web", "--json").document["schema"].startswith("vbackup.verify/")
    differ = audited.run("diff", first, second, "--json").document
    assert "vda" in str(differ)
    assert audited.run("recover", "web").stdout == "No unfinished backups.\n"
    argv = (sys.executable, "-m", "vbackup", "-c", audited.hypervisor.uri, "-q", "audit", "web")
    with subprocess.Popen([*argv, "-r", str(audited.repository), "--speed", "64k"]) as process:
        wait_for(lambda: len(audited.machine.execute("query-jobs")) == 2, "the jobs of the audit")
        audited.run("-q", "speed", "web", "unlimited")
    assert process.returncode == 0
    assert len(audited.run("bitmap", "list", "web").stdout.splitlines()) > 2
    assert "Removed" in audited.run("forget", "web").stdout
    assert "vbackup-" not in audited.run("bitmap", "list", "web").stdout
