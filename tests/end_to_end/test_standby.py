"""Standbys at a second libvirt: real images in a real daemon, compared byte for byte with what the original held."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import Daemon
from tests.end_to_end.chains import Chain
from tests.end_to_end.test_offline import write
from tests.lab import HEEDING_SIGNALS, DiskSpec, Lab, domain_xml

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

NAME = "bases"
MAC = "52:54:00:00:00:01"
CARD = f"<interface type='user'><mac address='{MAC}'/><model type='virtio'/></interface>"


class TwoHosts:
    """A domain of the embedded libvirt, and a daemon that has its standby."""

    def __init__(self, lab: Lab, command: Command, repository: Path, tmp_path: Path, daemon: Daemon) -> None:
        self.command, self.repository, self.daemon, self.lab = command, repository, daemon, lab
        self.images = tmp_path / "standby"
        self.specs = [DiskSpec(tmp_path / f"{dev}.qcow2", dev=dev, size="8M") for dev in ("vda", "vdb")]
        for spec in self.specs:
            spec.create()
            write(spec.path, "write -P 1 0 2M")
        self.uuid = "11111111-2222-3333-4444-555555555555"
        self.original = lab.define(self.xml())
        daemon.defined_later(NAME)

    def xml(self) -> str:
        disks = [spec.xml() for spec in self.specs]
        return domain_xml(NAME, disks, devices=CARD, top=f"<uuid>{self.uuid}</uuid>")

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
            done = subprocess.run(
                ["qemu-img", "compare", "-s", "-f", "qcow2", "-F", "qcow2", str(spec.path), str(self.image(spec.dev))],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            # -s: also what is allocated has to be the same, so zeros and discards.
            assert done.returncode in (0, 1), done.stdout + done.stderr
            done = subprocess.run(
                ["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(spec.path), str(self.image(spec.dev))],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr


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
    assert "<link state='down'/>" in hosts.standby_xml()
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
    state = hosts.state()
    assert (state["state"], state["backup"], state["behind"], state["running"]) == ("ready", second, [], False)
