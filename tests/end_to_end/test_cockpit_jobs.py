"""The Cockpit page of a configured host: jobs, the configuration and its faults; and the pictures in its README.

VBACKUP_SCREENSHOTS=integrations/cockpit/screenshots makes the pictures again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import cockpit as cockpit_
from tests import namespaces
from tests.browser import Browser, Driver
from tests.cockpit import Cockpit
from tests.daemon import Daemon
from tests.lab import DiskSpec, domain_xml

if TYPE_CHECKING:
    from tests.conftest import Command

pytestmark = pytest.mark.skipif(namespaces.reason_not_to_enter() is not None, reason="has directories of the system")
CONFIG = Path("/etc/vbackup/vbackup.toml")
#: The directory above it is the tests' own (tests.namespaces).
REPOSITORY = "/var/lib/backup"
TOML = f"""\
[repository.main]
path = "{REPOSITORY}"

[job.nightly]
repository = "main"
domains = ["db", "mail", "web"]
at = ["01:00"]

[job.nightly.backup]
compress = "zstd"

[job.nightly.prune]
keep-daily = 7
keep-weekly = 4
"""
PICTURE_BYTES = 150_000
#: The bar of a backup can be seen to move.
MOVES = "return [...document.querySelectorAll('.vb-work [role=progressbar]')].some(one => one.ariaValueNow > 8)"


@pytest.fixture(scope="module")
def _host(_daemon: Daemon) -> Iterator[None]:
    """A host with four machines and a configuration, at the paths that a real one has."""
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(TOML)
    images = Path("/var/lib/libvirt/images")
    images.mkdir(parents=True, exist_ok=True)
    for name in ("db", "files", "mail", "web"):
        disks = [DiskSpec(images / f"{name}.qcow2"), DiskSpec(images / f"{name}-data.qcow2", dev="vdb")]
        for disk in disks:
            disk.create()
            argv = ["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 24M", os.fspath(disk.path)]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        _daemon.define(domain_xml(name, [disk.xml() for disk in disks]))
    yield
    _daemon.clear()
    CONFIG.unlink()
    shutil.rmtree(REPOSITORY)


@pytest.fixture(scope="module")
def cockpit(_daemon: Daemon, _host: None, chromedriver: Driver) -> Iterator[Cockpit]:
    with tempfile.TemporaryDirectory(prefix="vbc-", dir="/tmp") as place:
        Path(place).chmod(0o755)
        with cockpit_.installed(Path(place), {"LIBVIRT_DEFAULT_URI": _daemon.uri}) as made:
            made.start()
            yield made


@pytest.fixture(scope="module")
def browser(chromedriver: Driver, cockpit: Cockpit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(chromedriver, downloads=tmp_path_factory.mktemp("downloads"))
    yield made
    made.close()


@pytest.fixture
def config() -> Iterator[Callable[[str], None]]:
    """Write another configuration, for this test."""
    yield lambda text: CONFIG.write_text(text) and None
    CONFIG.write_text(TOML)


def test_job_is_run_and_its_steps_are_told(browser: Browser, cockpit: Cockpit, command: Command) -> None:
    command("init", "-r", REPOSITORY)
    browser.open(cockpit.page)
    browser.find("alert", "Error: *")  # nothing was ever backed up
    browser.click("link", "Activity")
    browser.click("button", "Run nightly now")
    browser.find("alert", "Success: Job nightly: done.*")
    browser.click("link", "Details")
    browser.find("heading", "Job nightly")
    for step in ("backup Done*", "prune Done*"):
        browser.find("row", step)
    for name in ("db", "mail", "web"):
        browser.find("row", f"{name} Done *")
    browser.click("link", "Virtual machines")
    browser.find("row", "web Backed up just now*")


def test_one_machine_is_backed_up_as_its_job_does(browser: Browser, cockpit: Cockpit, command: Command) -> None:
    browser.open(cockpit.page)
    browser.click("button", "Back up web now")
    browser.find("field", "As job nightly does")
    browser.click("button", "Back up")
    browser.find("alert", "Success: Backup of web: done.*")
    counts = {one["name"]: one["backups"] for one in command("list", "-r", REPOSITORY, "--json").document["domains"]}
    assert counts == {"db": 1, "mail": 1, "web": 2}


def test_configuration_is_checked_and_faults_have_their_place(
    browser: Browser, cockpit: Cockpit, config: Callable[[str], None]
) -> None:
    browser.open(cockpit.page)
    browser.click("link", "Configuration")
    browser.find("alert", "Success: The configuration is valid and can be used")
    browser.find("row", f"[job.nightly.backup] compress zstd {CONFIG}:10")
    config(f"{TOML}keep-dayly = 1\n")
    browser.click("button", "Check again")
    fault = browser.find("alert", "Error: The configuration has faults*")
    assert f"{CONFIG}:15: Unknown key 'keep-dayly'" in browser.run("return arguments[0].innerText", fault)
    browser.click("link", "Virtual machines")
    browser.find("alert", f"Error: {CONFIG}:15: Unknown key 'keep-dayly'*")


@pytest.mark.long
def test_pictures(browser: Browser, cockpit: Cockpit, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("VBACKUP_SCREENSHOTS", tmp_path)).absolute()
    browser.resize(1280, 760)
    browser.open(cockpit.page)
    browser.click("button", "Back up a machine …")
    browser.type("Virtual machine", "files")
    browser.type("Speed limit of each disk", "500k")
    browser.type("Note", "before the new release")
    browser.click("button", "Back up")
    browser.find("alert", "Note: *")
    if cockpit_.NEEDS_SYSTEMD:
        browser.open(cockpit.page)
    else:
        browser.open(cockpit.address)
        browser.frame("iframe[name='cockpit1:localhost/vbackup']")
    browser.wait(MOVES)
    browser.screenshot(pictures / "overview.png")
    browser.run("localStorage.setItem('shell:style', 'dark')")
    browser.open(cockpit.page)
    browser.click("link", "web")
    browser.click("button", "Restore …")
    for _ in range(3):
        browser.wait("return !document.getElementById('wizard-next').disabled")
        browser.click("button", "Next")
    browser.wait("return document.getElementById('checks')")
    browser.screenshot(pictures / "restore.png")
    browser.click("button", "Cancel")
    browser.run("localStorage.setItem('shell:style', 'light')")
    browser.resize(390, 760)
    browser.reload()
    browser.click("link", "Virtual machines")
    browser.wait(MOVES)
    browser.screenshot(pictures / "telephone.png")
    browser.click("link", "Details of Backup of files")
    browser.click("button", "Stop …")
    browser.click("button", "Stop it")
    browser.find("alert", "Error: Stopped by SIGTERM*")
    for name in ("overview", "restore", "telephone"):
        assert (pictures / f"{name}.png").stat().st_size < PICTURE_BYTES
