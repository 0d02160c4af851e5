"""The Cockpit page in Chromium, with a real cockpit-ws, libvirtd and QEMU: every click, and what goes wrong."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import browser as browser_
from tests import cockpit as cockpit_
from tests.browser import Browser, Driver
from tests.cockpit import Cockpit
from tests.daemon import Daemon
from tests.lab import DiskSpec, Machine, domain_xml

REASON = cockpit_.reason_not_to_start() or browser_.reason_not_to_start()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
NAME = "wéb <script> & co"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vbc-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def cockpit(_daemon: Daemon, place: Path) -> Iterator[Cockpit]:
    environment = {
        "LIBVIRT_DEFAULT_URI": _daemon.uri,
        "VBACKUP_STATE": os.fspath(place / "state"),
        "VBACKUP_CONFIG": os.fspath(place / "vbackup.toml"),
        "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg",
    }
    with cockpit_.installed(place, environment) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def machine(_daemon: Daemon, place: Path) -> Iterator[Machine]:
    images = place / "images"
    images.mkdir()
    specs = [DiskSpec(images / "vda.qcow2"), DiskSpec(images / "vdb.qcow2", dev="vdb")]
    for spec in specs:
        spec.create()
    made = _daemon.define(domain_xml(NAME, [spec.xml() for spec in specs]))
    made.handle.domain.create()
    for spec in specs:
        made.write(spec.dev, "write -P 1 0 16M")
    yield made
    _daemon.clear()


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with browser_.driver() as made:
        yield made


@pytest.fixture
def browser(driver: Driver, tmp_path: Path) -> Iterator[Browser]:
    made = Browser(driver, downloads=tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_dev(browser: Browser, cockpit: Cockpit, machine: Machine, place: Path) -> None:
    shots = Path(os.environ["SHOTS"])
    browser.open(cockpit.page)
    try:
        browser.click("button", "Open a repository …")
        browser.type("Directory", str(place / "repository"))
        browser.click("button", "Create")
        browser.click("button", "Back up a machine …")
        browser.type("Virtual machine", NAME)
        browser.screenshot(shots / "dialog.png")
        browser.click("button", "Back up")
        browser.find("alert", f"*", patience_s=5)
        browser.find("link", NAME)
        browser.screenshot(shots / "overview.png")
        browser.click("link", NAME)
        browser.find("heading", "Points")
        browser.find("button", "Restore …")
        browser.screenshot(shots / "domain.png")
        browser.click("button", "Restore …")
        browser.find("heading", "Restore*")
        browser.screenshot(shots / "restore.png")
    finally:
        browser.screenshot(shots / "last.png")
        print(browser.text())
        print("\n".join(browser.log()))
        print((place / "log").read_text())
