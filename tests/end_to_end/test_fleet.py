"""Several hypervisors and one repository: one command, one table, and two machines that have one UUID."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.chains import END_BYTES
from tests.hosts import Hypervisor
from tests.lab import DiskSpec, Machine, compare, domain_xml

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

#: The repository is on shared storage, and private: a QEMU that opens images by their path is its owner's.
AS_ROOT = "<seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>"
UUID = "5f0c9a52-0f0a-4a44-8f6e-2f6b2f3d9c01"


class Two:
    """Two hypervisors and a repository."""

    def __init__(self, command: Command, first: Hypervisor, second: Hypervisor, repository: Path) -> None:
        self.command, self.hosts, self.repository = command, (first, second), repository

    @property
    def uris(self) -> list[str]:
        return [one.uri for one in self.hosts]

    def backup(self, *arguments: str | Path, status: int = 0, json: bool = True) -> Outcome:
        both = [word for uri in self.uris for word in ("-c", uri)]
        as_json = ["--json"] if json else []
        return self.command(*both, "-q", "backup", *arguments, "-r", self.repository, *as_json, status=status)

    def spec(self, at: int, name: str) -> DiskSpec:
        spec = DiskSpec(self.hosts[at].images / f"{name}.qcow2", size="8M")
        spec.create()
        spec.path.chmod(0o666)
        return spec

    def start(self, at: int, name: str, *, top: str = "", spec: DiskSpec | None = None) -> Machine:
        spec = spec or self.spec(at, name)
        return self.hosts[at].start(domain_xml(name, [spec.xml()], top=top + AS_ROOT))

    def expect(self, at: int, name: str, *words: str) -> None:
        """The newest backup of a host is what its disk holds, which nothing has written to since."""
        output = self.hosts[at].images / f"out-{uuid.uuid4().hex[:6]}"
        machine = Machine(self.hosts[at].host.domain(name))
        self.command("-q", "restore", machine.handle.uuid, *words, "-r", self.repository, "--output", output)
        machine.destroy()
        compare(output / "vda.qcow2", self.hosts[at].images / f"{name}.qcow2")


@pytest.fixture
def two(command: Command, hypervisor: Hypervisor, second_hypervisor: Hypervisor) -> Iterator[Two]:
    """With a repository on storage that they share."""
    repository = hypervisor.hosts.directory / "repository"
    command("init", "-r", repository)
    yield Two(command, hypervisor, second_hypervisor, repository)
    shutil.rmtree(repository)


@pytest.fixture
def far(command: Command, hypervisor: Hypervisor, second_hypervisor: Hypervisor, repository: Path) -> Two:
    """With a repository that they do not have: the data comes by SSH."""
    return Two(command, hypervisor, second_hypervisor, repository)


def by_host(document: dict[str, Any]) -> dict[str, Any]:
    return {f"{one['host']}/{one['name']}": one for one in document["domains"]}


def levels(document: dict[str, Any]) -> dict[str, str]:
    return {name: one["backup"]["level"] for name, one in by_host(document).items()}


def test_all_domains_of_two_hosts(far: Two, tmp_path: Path) -> None:
    web, db, mail = far.start(0, "web"), far.start(0, "db"), far.start(1, "web")
    for number, machine in enumerate((web, db, mail), start=1):
        machine.write("vda", f"write -P {number} 0 4M")
    done = far.backup("--all", "--parallel", "2", "--parallel-per-host", "1").document
    assert [(one["name"], one["uri"]) for one in done["hosts"]] == list(zip(("hv1", "hv2"), far.uris))
    assert levels(done) == {"hv1/db": "full", "hv1/web": "full", "hv2/web": "full"}
    mail.write("vda", "write -P 9 1M 64k")
    # One that is out of reach has its own error, and one that is named twice counts once.
    again, refused = f"qemu+ssh://root@{far.hosts[0].ipv4}/system", "qemu+ssh://root@hv2:2999/system"
    listed = tmp_path / "hosts"
    listed.write_text(f"# room 1\n{far.uris[0]}\n\n{far.uris[1]}  # new\n{again}\n{refused}\n")
    outcome = far.command(
        "--progress", "none", "backup", "w*", "--hosts", listed, "-r", far.repository, "--json", status=3
    )
    assert levels(outcome.document) == {"hv1/web": "incremental", "hv2/web": "incremental"}
    assert [(one["name"], one.get("error", {}).get("status")) for one in outcome.document["hosts"]] == [
        ("hv1", None),
        ("hv2", None),
        (refused, 4),
    ]
    assert (outcome.document["done"], outcome.document["failed"]) == (2, 0)
    assert f"{again} is the same host as {far.uris[0]}" in outcome.stderr
    assert f"warning: {refused}: Cannot reach libvirt at {refused}" in outcome.stderr  # libvirt's words vary
    assert f"Nothing was backed up on 1 of 3 hosts: {refused}." in outcome.stderr
    far.expect(1, "web")


def test_hosts_that_are_all_out_of_reach(far: Two) -> None:
    nowhere = [word for port in (2998, 2999) for word in ("-c", f"qemu+ssh://root@hv1:{port}/system")]
    outcome = far.command(*nowhere, "backup", "--all", "-r", far.repository, status=4)
    assert outcome.stderr.count("Cannot reach libvirt") == 2
    assert "0 of 0 domains on 0 of 2 hosts" in outcome.stdout


def test_copy_of_a_machine_that_runs_on_another_host_has_a_chain_of_its_own(two: Two) -> None:
    of_uuid = f"<uuid>{UUID}</uuid>"
    spec = two.spec(0, "web")
    original = two.start(0, "web", top=of_uuid, spec=spec)
    original.write("vda", "write -P 1 0 4M")
    assert levels(two.backup("web").document) == {"hv1/web": "full"}
    original.destroy()
    shutil.copy(spec.path, two.hosts[1].images / "web.qcow2")  # with the bitmap of that backup
    copied = DiskSpec(two.hosts[1].images / "web.qcow2", size="8M")
    copied.path.chmod(0o666)
    original = two.start(0, "web", top=of_uuid, spec=spec)
    copy = two.start(1, "web", top=of_uuid, spec=copied)
    for number in (2, 4, 6):
        original.write("vda", f"write -P {number} {number}M 64k")
        copy.write("vda", f"write -P {number + 1} {number}M 128k")
        outcome = two.backup("--all")
        assert "Domain web runs on hv1 and hv2 with the same UUID" in outcome.stderr
        assert "with --host" not in outcome.stderr
        assert outcome.stderr.count("Two machines have the UUID") <= 2
        # The first time, hv2 has no backup of its own yet.
        expected = {"hv1/web": "incremental", "hv2/web": "full" if number == 2 else "incremental"}
        assert levels(outcome.document) == expected
    # With a command for each host, which cannot know of the other: the record of the repository tells.
    original.write("vda", "write -P 8 7M 64k")
    for at, machine in enumerate((original, copy)):
        machine.write("vda", f"write -P {9 + at} 3M 64k")
        said = two.command("-c", two.uris[at], "-q", "backup", "web", "-r", two.repository, "--json")
        assert f"Two machines have the UUID {UUID}" in said.stderr
        assert said.document["level"] == "incremental"
    copied_bytes = {name: one["backup"]["disks"][0]["copied_bytes"] for name, one in by_host(outcome.document).items()}
    assert copied_bytes == {"hv1/web": 65536 + END_BYTES, "hv2/web": 131072 + END_BYTES}
    two.command("restore", "web", "-r", two.repository, "--output", two.hosts[0].images / "no", status=5)
    two.expect(0, "web", "--host", "hv1")
    two.expect(1, "web", "--host", "hv2")


def test_domain_that_has_migrated_goes_on_and_what_it_left_is_left_out(two: Two) -> None:
    spec = two.spec(0, "web")
    xml = domain_xml("web", [spec.xml()], top=f"<uuid>{UUID}</uuid>" + AS_ROOT)
    here = two.hosts[0].start(xml)
    here.write("vda", "write -P 1 0 4M")
    assert levels(two.backup("web").document) == {"hv1/web": "full"}
    here.destroy()
    two.hosts[0].define(xml)
    there = two.hosts[1].start(xml)  # the images are on shared storage
    there.write("vda", "write -P 2 4M 64k")
    outcome = two.backup("web")
    assert levels(outcome.document) == {"hv2/web": "incremental"}
    [left] = outcome.document["left_out"]
    assert (left["host"], left["name"]) == ("hv1", "web")
    assert "it is off here and runs on hv2" in left["reason"]
    assert outcome.stderr == ""
    there.destroy()
    two.hosts[1].define(xml)
    refused = two.backup("web", status=3).document
    assert {name: one["error"]["code"] for name, one in by_host(refused).items()} == {
        "hv1/web": "UUID_ON_SEVERAL_HOSTS",
        "hv2/web": "UUID_ON_SEVERAL_HOSTS",
    }
    output = two.hosts[0].images / "out"
    two.command("-q", "restore", "web", "-r", two.repository, "--output", output)  # one machine, whatever the host
    compare(output / "vda.qcow2", spec.path)
