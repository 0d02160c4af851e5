"""While a domain on another host is off and is backed up from here, libvirt's hook script there refuses its start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.daemon import wait_for
from tests.hosts import Hypervisor
from tests.lab import DiskSpec, domain_xml
from vbackup.hooks import install

if TYPE_CHECKING:
    from tests.conftest import Command


def test_start_of_a_domain_that_is_backed_up(hypervisor: Hypervisor, command: Command, repository: Path) -> None:
    spec = DiskSpec(hypervisor.images / "vda.qcow2", size="64M")
    spec.create()
    machine = hypervisor.define(domain_xml("web", [spec.xml()]))
    subprocess.run(["qemu-io", "-c", "write -P 1 0 24M", str(spec.path)], check=True, stdout=subprocess.DEVNULL)
    script = hypervisor.directory / "qemu"
    script.write_bytes(install._script().replace(b'"/var/lib/vbackup', f'"{hypervisor.images}/state'.encode()))
    script.chmod(0o755)

    def start() -> subprocess.CompletedProcess[str]:
        """What libvirt does before it starts the domain."""
        argv = [*hypervisor.inside, script, "web", "prepare", "begin", "-"]
        return subprocess.run(argv, input=machine.handle.live_xml(), capture_output=True, text=True, check=False)

    marks = f"/run/vbackup/offline/{machine.handle.uuid}"

    def is_marked() -> bool:
        return subprocess.run([*hypervisor.inside, "test", "-e", marks], check=False).returncode == 0

    assert start().returncode == 0
    options = ("-c", hypervisor.uri, "-q", "backup", "web", "-r", str(repository), "--speed", "1M")
    with subprocess.Popen([sys.executable, "-m", "vbackup", *options]) as process:
        wait_for(is_marked, "the mark")
        refused = start()
        assert refused.returncode == 1
        assert "in an offline backup" in refused.stderr
        process.kill()
    wait_for(lambda: not is_marked(), "the end of the helper")
    assert start().returncode == 0
    command("-c", hypervisor.uri, "-q", "backup", "web", "-r", repository)
    assert not is_marked()
