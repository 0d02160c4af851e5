"""Backups of domains on another host, which ssh reaches: QEMU there pushes the data through the connection."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests import delayed_link
from tests.end_to_end.chains import END_BYTES, levels
from tests.hosts import Hypervisor
from tests.lab import DiskSpec, References, compare, domain_xml
from vbackup.domain.host import Host
from vbackup.domain.offline import OffSource
from vbackup.images import target_server
from vbackup.model import Backup, Transport
from vbackup.operations import remote_side
from vbackup.repository.journal import Journal
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

SEABIOS = "/usr/share/seabios/bios-256k.bin"


class RemoteChain:
    """Backups of one machine on a hypervisor; each is restored and compared at once."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        command: Command,
        repository: Path,
        tmp_path: Path,
        specs: Sequence[DiskSpec],
    ) -> None:
        self.hypervisor, self.command, self.repository, self.tmp_path = hypervisor, command, repository, tmp_path
        self.specs = specs
        for spec in specs:
            spec.create()
        self.machine = hypervisor.start(domain_xml("web", [spec.xml() for spec in specs]))
        self.count = 0
        self.hypervisor_uri = hypervisor.uri

    def backup(self, *options: str | Path, during: Callable[[], None] | None = None) -> dict[str, Any]:
        """Back up, restore and compare; ``during`` is called while the jobs copy."""
        self.count += 1
        references = References(
            self.hypervisor.images / f"references-{self.count}",
            after_transaction=None if during is None else lambda _monitor: during(),
        )
        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            stack.enter_context(references.taken(patch))
            done = self.command(
                "-c", self.hypervisor_uri, "-q", "backup", "web", "-r", self.repository, "--json", *options
            ).document
        images = references.finish(self.machine)
        target = self.tmp_path / f"restored-{self.count}"
        self.command("-q", "restore", "web", done["id"], "-r", self.repository, "--output", target)
        nodes = {disk["dev"]: disk["node_name"] for disk in done["disks"]}
        for spec in self.specs:
            (restored,) = target.glob(f"{spec.dev}.*")
            compare(restored, images[nodes[spec.dev]])
        return done

    def run(self, *options: str | Path, status: int | None = 0) -> Outcome:
        """Back up, whatever becomes of it."""
        return self.command(
            "-c", self.hypervisor_uri, "-q", "backup", "web", "-r", self.repository, *options, status=status
        )


def test_all_levels_of_disks_of_any_size(
    hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path
) -> None:
    images = hypervisor.images
    specs = [
        DiskSpec(images / "vda.qcow2", size="16M", driver="discard='unmap'"),
        DiskSpec(images / "vdb.qcow2", dev="vdb", size=str((16 << 20) + 4608)),
        DiskSpec(images / "vdc.raw", dev="vdc", size="16M", format="raw", driver="discard='unmap'"),
    ]
    chain = RemoteChain(hypervisor, command, repository, tmp_path, specs)
    devs = [spec.dev for spec in specs]
    for dev in devs:
        chain.machine.write(dev, "write -P 1 0 8M", "write -P 0 8M 1M", "write -z 3M 1M", "write -P 4 15M 1M")
    chain.machine.write("vdb", "write -P 1 16M 4608")

    def overwrite(pattern: int) -> None:
        for dev in devs:
            chain.machine.write(
                dev,
                f"write -P {pattern} 0 1M",
                "write -P 0 1032k 8k",
                f"write -P {pattern} 2M 3M",
                "write -z 5M 128k",
                "write -z -u 7M 64k",
                "discard 6M 512k",
                f"write -P {pattern} 12M 4k",
            )
        chain.machine.write("vdb", f"write -P {pattern} 16M 4608")

    before = chain.machine.state()
    full = chain.backup(during=lambda: overwrite(2))
    assert set(levels(full).values()) == {"full"}
    clean = chain.machine.state()
    overwrite(3)
    done = chain.backup("--compress", "zstd", during=lambda: overwrite(4))
    assert set(levels(done).values()) == {"incremental"}
    done = chain.backup("--compress", "zstd", "--level", "full", during=lambda: overwrite(5))
    done = chain.backup("--level", "differential", "--no-fleecing", during=lambda: overwrite(6))
    assert set(levels(done).values()) == {"differential"}
    done = chain.backup()
    assert set(levels(done).values()) == {"incremental"}
    if delayed_link.reason_not_to_start() is None:
        with hypervisor.far_away(0.02) as far:
            chain.hypervisor_uri = far.uri
            overwrite(7)
            done = chain.backup(during=lambda: overwrite(8))
        assert set(levels(done).values()) == {"incremental"}
    after = chain.machine.state()
    assert [after[what] for what in ("nodes", "jobs", "fdsets")] == [
        clean[what] for what in ("nodes", "jobs", "fdsets")
    ]
    assert [after[what] for what in ("jobs", "fdsets")] == [before[what] for what in ("jobs", "fdsets")]


def web(hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path, **disk: Any) -> RemoteChain:
    """A machine with one disk and some data."""
    specs = [DiskSpec(hypervisor.images / "vda.qcow2", size="64M", **disk)]
    chain = RemoteChain(hypervisor, command, repository, tmp_path, specs)
    chain.machine.write("vda", "write -P 1 0 48M")
    return chain


def test_many_disks_share_one_connection(
    hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path
) -> None:
    devs = [f"vd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + ["vdaa"]
    specs = [DiskSpec(hypervisor.images / f"{dev}.qcow2", dev=dev, size="1M") for dev in devs]
    for spec in specs:
        spec.create()
    machine = hypervisor.start(domain_xml("web", [spec.xml() for spec in specs]))
    for number, dev in enumerate(devs):
        machine.write(dev, f"write -P {number + 1} 0 64k")
    backup = ("-c", hypervisor.uri, "-q", "backup", "web", "-r", repository, "--json")
    assert set(levels(command(*backup).document).values()) == {"full"}
    for dev in devs:
        machine.write(dev, "write -P 99 128k 4k")
    done = command(*backup, "--compress").document
    assert {disk["copied_bytes"] for disk in done["disks"]} == {65536 + END_BYTES}
    command("-q", "restore", "web", "-r", repository, "--output", tmp_path / "restored")
    machine.destroy()
    for spec in specs:
        compare(next((tmp_path / "restored").glob(f"{spec.dev}.*")), spec.path)


def test_machine_is_in_the_backup(hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path) -> None:
    """Its firmware's variables and a small medium are read through the link."""
    disk = DiskSpec(hypervisor.images / "vda.qcow2", size="1M")
    disk.create()
    variables, seed = hypervisor.images / "VARS.fd", hypervisor.images / "seed.iso"
    variables.write_bytes(b"variable" * 64 * 1024)
    seed.write_bytes(b"cloud-init" * 100)
    for path in (variables, seed):
        path.chmod(0o666)
    kind = "<type arch='x86_64' machine='pc'>hvm</type>"
    firmware = f"<loader readonly='yes' type='pflash'>{SEABIOS}</loader><nvram>{variables}</nvram>"
    medium = f"<disk type='file' device='cdrom'><source file='{seed}'/><target dev='sda' bus='sata'/><readonly/></disk>"
    xml = domain_xml("web", [disk.xml(), medium]).replace(kind, kind + firmware)
    hypervisor.start(xml)
    done = command("-c", hypervisor.uri, "-q", "backup", "web", "-r", repository, "--json", "--with-media").document
    assert done["left_out"] == []
    directory = next(repository.glob(f"*/{done['id']}"))
    assert (directory / "nvram").read_bytes() == variables.read_bytes()
    assert (directory / "sda.medium").read_bytes() == seed.read_bytes()


def test_shared_storage_is_found(hypervisor: Hypervisor, tmp_path: Path, repository: Path) -> None:
    """By a new file, not by the path or by what a copy of the repository has, too."""
    shared, stop = Repository.create(hypervisor.directory / "shared"), Stop()
    only_here = Repository.open(repository)
    with Host(hypervisor.uri) as host:
        assert remote_side.chosen(Transport.AUTO, host, shared, stop=stop) is Transport.PATH
        assert remote_side.chosen(Transport.AUTO, host, only_here, stop=stop) is Transport.SSH
        assert remote_side.chosen(Transport.SSH, host, shared, stop=stop) is Transport.SSH
        with host.another() as other:
            assert other.link() is host.link()  # vbackup.domain.linked makes one for all connections
    assert sorted(path.name for path in shared.path.iterdir()) == sorted(path.name for path in repository.iterdir())


def test_transport_by_ssh_needs_a_connection_by_ssh(chain: Any) -> None:
    refused = chain.run("--transport", "ssh", status=5)
    assert "is not by SSH, so no data can come through it" in refused.document["message"]


def test_server_that_dies_fails_the_backup_alone(
    hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path
) -> None:
    chain = web(hypervisor, command, repository, tmp_path)
    chain.backup()
    before = chain.machine.state()
    planned = command("-c", hypervisor.uri, "-q", "backup", "web", "-r", repository, "--json", "--dry-run").document
    assert set(levels(planned).values()) == {"incremental"}
    assert chain.machine.state() == before
    chain.machine.write("vda", "write -P 2 0 32M")
    servers: list[target_server.TargetServer] = []
    enter, started = target_server.TargetServer.__enter__, Journal.started

    def note(server: target_server.TargetServer) -> target_server.TargetServer:
        servers.append(enter(server))
        return servers[-1]

    def kill(journal: Journal, draft: Backup) -> None:
        started(journal, draft)
        os.kill(servers[-1].pid, signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_server.TargetServer, "__enter__", note)
        patch.setattr(Journal, "started", kill)
        options = ("backup", "web", "-r", repository, "--json", "--speed", "8M")
        failed = command("-c", hypervisor.uri, "-q", *options, status=None)
    assert "was killed by SIGKILL" in failed.document["message"]
    assert chain.machine.state() == before
    assert set(levels(chain.backup()).values()) == {"incremental"}


@pytest.mark.parametrize(("step", "remedy"), [("started", "undo"), ("copied", "undo"), ("flushed", "finish")])
def test_killed_backup_is_recovered(
    hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path, step: str, remedy: str
) -> None:
    chain = web(hypervisor, command, repository, tmp_path)
    chain.backup()
    before = chain.machine.state()
    chain.machine.write("vda", "write -P 2 0 32M")
    killed = subprocess.run(
        [
            *(sys.executable, "-m", "tests.end_to_end.killed", step, "after", "kill", "--", "-c", hypervisor.uri),
            *("-q", "backup", "web", "-r", os.fspath(repository)),
        ],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    done = command("-c", hypervisor.uri, "-q", "recover", "web", "-r", repository, "--json").document
    assert [one["remedy"] for one in done["backups"]] == [remedy]
    after = chain.machine.state()
    if remedy == "undo":
        assert after == before
    assert [after[what] for what in ("nodes", "jobs", "fdsets")] == [
        before[what] for what in ("nodes", "jobs", "fdsets")
    ]
    assert set(levels(chain.backup()).values()) == {"incremental"}


def test_domain_that_is_off(hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path) -> None:
    """A storage daemon there has the images open, with the same bitmaps, and keeps the domain from starting."""
    specs = [
        DiskSpec(hypervisor.images / "vda.qcow2", size="16M"),
        DiskSpec(hypervisor.images / "vdb.qcow2", dev="vdb", size=str((16 << 20) + 4608)),
    ]
    for spec in specs:
        spec.create()
    machine = hypervisor.define(domain_xml("web", [spec.xml() for spec in specs]))
    backup = ("-c", hypervisor.uri, "-q", "backup", "web", "-r", repository, "--json")
    made = []

    def back_up(*options: str) -> set[str]:
        done = command(*backup, *options).document
        made.append(done)
        output = tmp_path / f"restored-{len(made)}"
        command("-q", "restore", "web", done["id"], "-r", repository, "--output", output)
        for spec in specs:
            compare(next(output.glob(f"{spec.dev}.*")), spec.path)
        return set(levels(done).values())

    def write(pattern: int) -> None:
        for spec in specs:
            argv = ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 1M 192k", "-c", "write -z 5M 64k", spec.path]
            subprocess.run(argv, check=True, capture_output=True)

    write(1)
    assert back_up() == {"full"}
    write(2)
    assert back_up("--compress") == {"incremental"}
    assert made[-1]["consistency"] == "offline"
    machine.handle.domain.create()
    machine.write("vda", "write -P 3 2M 64k")
    assert set(levels(command(*backup).document).values()) == {"incremental"}
    machine.destroy()
    write(4)
    started: list[str] = []
    frozen = OffSource.frozen

    def start(source: OffSource, *arguments: Any, **more: Any) -> Any:
        with pytest.raises(libvirt.libvirtError, match="lock"):
            machine.handle.domain.create()
        started.append("refused")
        return frozen(source, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OffSource, "frozen", start)
        assert back_up("--level", "differential") == {"differential"}
    assert started == ["refused"]
    assert not hypervisor.processes("qemu-storage-daemon")
