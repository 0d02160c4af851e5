"""A lab without domains for each test, and a daemon where one is needed."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import browser, cockpit
from tests import daemon as daemon_
from tests import hosts as hosts_
from tests.end_to_end.chains import Chain
from tests.lab import DiskSpec, domain_xml

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.lab import Lab, Machine


@pytest.fixture(autouse=True)
def _empty_lab(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "lab" in request.fixturenames:
        lab: Lab = request.getfixturevalue("lab")
        lab.clear()


@pytest.fixture(scope="session")
def _daemon() -> Iterator[daemon_.Daemon]:
    reason = daemon_.reason_not_to_start()
    if reason is not None:
        pytest.skip(reason)
    made = daemon_.Daemon(Path(tempfile.mkdtemp(prefix="vbd-", dir="/tmp")))
    yield made
    made.close()


@pytest.fixture
def daemon(_daemon: daemon_.Daemon) -> Iterator[daemon_.Daemon]:
    """A libvirtd for the tests alone, without domains."""
    yield _daemon
    _daemon.clear()


@pytest.fixture(scope="session")
def chromedriver() -> Iterator[browser.Driver]:
    """What starts browsers for the Cockpit page."""
    reason = cockpit.reason_not_to_start() or browser.reason_not_to_start()
    if reason is not None:
        pytest.skip(reason)
    with browser.driver() as made:
        yield made


@pytest.fixture(scope="session")
def _hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts_.Hosts]:
    reason = hosts_.reason_not_to_start()
    if reason is not None:
        pytest.skip(reason)
    made = hosts_.Hosts(Path(tempfile.mkdtemp(prefix="vbh-", dir="/tmp")), hidden=[tmp_path_factory.getbasetemp()])
    yield made
    made.close()


@pytest.fixture(scope="session")
def _hypervisors(_hosts: hosts_.Hosts) -> Callable[[str], hosts_.Hypervisor]:
    """Hypervisors by name; each is started once."""
    return functools.cache(_hosts.start)


@pytest.fixture
def hypervisor(_hypervisors: Callable[[str], hosts_.Hypervisor]) -> Iterator[hosts_.Hypervisor]:
    """Another host, ``hv1``, that ssh reaches, without domains. The tests' temporary directories are not there."""
    made = _hypervisors("hv1")
    yield made
    made.clear()


@pytest.fixture
def second_hypervisor(_hypervisors: Callable[[str], hosts_.Hypervisor]) -> Iterator[hosts_.Hypervisor]:
    """Another one, ``hv2``."""
    made = _hypervisors("hv2")
    yield made
    made.clear()


@pytest.fixture
def images() -> Iterator[Path]:
    """A directory that QEMU without privileges reaches: pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="vbackup-images-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def slow_machine(daemon: daemon_.Daemon, images: Path) -> Callable[[str], Machine]:
    """Start a domain of that name: two disks with 16 MiB of data each, so that a job at 2 MiB/s takes its time."""

    def start(name: str) -> Machine:
        specs = [DiskSpec(images / "vda.qcow2"), DiskSpec(images / "vdb.qcow2", dev="vdb")]
        for spec in specs:
            spec.create()
        machine = daemon.start(domain_xml(name, [spec.xml() for spec in specs]))
        for spec in specs:
            machine.write(spec.dev, "write -P 1 0 16M")
        return machine

    return start


@pytest.fixture
def small_filesystem(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 12 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def chain(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Chain:
    """A machine with two disks that hold something, and an empty repository."""
    made = Chain(lab, command, repository, tmp_path)
    for spec in made.specs:
        made.machine.write(spec.dev, "write -P 1 0 2M")
    return made


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where pull sessions have their sockets and their state: the paths of pytest are too long."""
    path = Path(tempfile.mkdtemp(prefix="vbs-", dir="/tmp"))
    monkeypatch.setenv("VBACKUP_SOCKETS", str(path))
    monkeypatch.setenv("VBACKUP_SESSIONS", str(path / "state"))
    yield path
    shutil.rmtree(path)
