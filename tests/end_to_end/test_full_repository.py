"""A repository, or a fleecing area, that runs full under a writing guest: the backup ends, the guest goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import libvirt
import pytest

from tests.daemon import wait_for
from tests.end_to_end.test_real_guest import running
from tests.guest import build, domain_xml, make_disks
from tests.guest.disks import preen_filesystem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Command
    from tests.guest import Guest
    from tests.lab import Lab


@pytest.fixture
def guest(lab: Lab, tmp_path: Path) -> Iterator[Guest]:
    """One with enough on its disks that the job itself runs out of room too."""
    serial = tmp_path / "console"
    disks = make_disks(tmp_path, bulk_bytes=24 << 20)
    with running(lab, domain_xml("full", build(tmp_path), disks, serial=serial), serial) as made:
        yield made


def test_guest_stopped_by_a_full_repository_goes_on(
    guest: Guest,
    command: Command,
    lab: Lab,
    small_filesystem: Path,
    tmp_path: Path,
) -> None:
    repository = small_filesystem / "repository"
    command("init", "-r", repository)
    system = ElementTree.fromstring(guest.machine.handle.live_xml()).find("os")
    assert system is not None
    kernel_bytes = sum(Path(system.findtext(name, "")).stat().st_size for name in ("kernel", "initrd"))
    room = f"remount,size={(12 << 20) + kernel_bytes}"
    subprocess.run(["mount", "-o", room, str(small_filesystem)], check=True)
    # Room for what boots the guest, for what QEMU saves of the guest's first writes, and for little else.
    (small_filesystem / "ballast").write_bytes(bytes(9 << 20))
    # Once round its noise the guest overwrites what is there, and QEMU saves that first.
    wait_for(lambda: int(guest.agent.read("/log/counter")) > 70, "the guest's first round")
    domain = guest.machine.handle.domain
    before = guest.machine.state()

    # So slow that it is the guest that fills the room, also a guest that gets little of a busy processor.
    failed = command(
        "-c", lab.uri, "backup", "full", "-r", repository, "--quiesce", "no", "--speed", "64K", status=7
    )  # fmt: skip

    assert "no space left" in failed.stderr
    assert "The guest was stopped because QEMU could not save in the repository" in failed.stderr
    assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert guest.machine.state() == before
    count = int(guest.agent.read("/log/counter"))
    wait_for(lambda: int(guest.agent.read("/log/counter")) > count, "the guest going on")
    assert "I/O error" not in guest.agent.run("/bin/dmesg")
    assert sorted(path.name for path in repository.iterdir()) == ["vbackup.json"]

    # With room the same command works, and what is restored is whole.
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_filesystem)], check=True)
    command("-c", lab.uri, "-q", "backup", "full", "-r", repository)
    command("-q", "restore", "full", "-r", repository, "--output", tmp_path / "out", "--format", "raw")
    assert preen_filesystem(tmp_path / "out" / "vda.raw")


@pytest.mark.long
def test_guest_whose_fleecing_area_runs_full_goes_on(
    guest: Guest, command: Command, lab: Lab, small_filesystem: Path, repository: Path
) -> None:
    wait_for(lambda: int(guest.agent.read("/log/counter")) > 70, "the guest's first round")
    (small_filesystem / "ballast").write_bytes(bytes(9 << 20))
    domain = guest.machine.handle.domain
    before = guest.machine.state()

    options = ("--quiesce", "no", "--speed", "256K", "--fleecing", small_filesystem)
    failed = command("-c", lab.uri, "backup", "full", "-r", repository, *options, status=7)

    assert f"The fleecing area {small_filesystem} is too small" in failed.stderr
    assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert guest.machine.state() == before
    count = int(guest.agent.read("/log/counter"))
    wait_for(lambda: int(guest.agent.read("/log/counter")) > count, "the guest going on")
    assert "I/O error" not in guest.agent.run("/bin/dmesg")
    assert [path.name for path in small_filesystem.iterdir()] == ["ballast"]
