"""The hypervisors of the tests are what they are said to be: other hosts, reached by ssh alone, with a cable."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import libvirt
import pytest

from tests import delayed_link
from tests.hosts import Hypervisor
from tests.lab import DiskSpec, domain_xml


def _ssh(*words: str) -> subprocess.CompletedProcess[str]:
    argv = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=2", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)


def test_hypervisor_is_another_host(hypervisor: Hypervisor, tmp_path: Path) -> None:
    (tmp_path / "at home").touch()
    assert _ssh("hv1", "hostname").stdout == "hv1\n"
    assert _ssh(f"root@{hypervisor.ipv6}", "-p", "2222", "hostname").stdout == "hv1\n"
    assert _ssh("hv1", "ls", str(tmp_path.parent)).stdout == ""
    spec = DiskSpec(hypervisor.images / "vda.qcow2")
    spec.create()
    machine = hypervisor.start(domain_xml("web", [spec.xml()]))
    machine.write("vda", "write -P 1 0 1M")
    machine.check_content("vda", "-P 1 0 1M")
    over_ssh = libvirt.open(hypervisor.uri)
    assert [one.name() for one in over_ssh.listAllDomains()] == ["web"]
    over_ssh.close()


def test_cable_that_is_pulled_is_silent(hypervisor: Hypervisor) -> None:
    hypervisor.pull_cable()
    assert "timed out" in _ssh("hv1", "true").stderr
    hypervisor.plug_cable()
    assert _ssh("hv1", "true").returncode == 0
    with hypervisor.without("python3"):
        assert _ssh("hv1", "python3", "-c", "pass").returncode in (126, 127)
    assert _ssh("hv1", "python3", "-c", "pass").returncode == 0


@pytest.mark.skipif(bool(delayed_link.reason_not_to_start()), reason=str(delayed_link.reason_not_to_start()))
def test_far_hypervisor_is_the_same_one_and_slow(hypervisor: Hypervisor) -> None:
    with hypervisor.far_away(0.05) as far:
        assert _ssh(far.name, "hostname").stdout == "hv1\n"
        assert len(_ssh(far.name, "head", "-c", "5000000", "/dev/zero").stdout) == 5000000
        start_s = time.monotonic()
        with socket.create_connection((far.address, 22), timeout=5):
            assert 0.05 <= time.monotonic() - start_s < 0.1 + 0.05
        far.link.cut()
        assert "timed out" in _ssh(far.name, "true").stderr
        assert _ssh("hv1", "true").returncode == 0
        far.link.mend()
        assert _ssh(far.name, "true").returncode == 0
    assert _ssh("hv1", "ip", "-brief", "link").stdout.count("far0") == 0
