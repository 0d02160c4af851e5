"""The Cockpit page without a hypervisor: files of a guest, mounts, who may do what, and whether all can read it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import cockpit as cockpit_
from tests import guest_disk, namespaces
from tests.browser import Browser, Driver
from tests.cockpit import Cockpit
from tests.daemon import wait_for
from tests.fake_guestfish import FakeGuestfish
from tests.recorded import Recorded
from tests.unit.cli.handlers.conftest import InsideGuest

#: What is wrong for somebody who does not see the page, or not well: of all that is shown now.
FAULTS = """
const faults = [];
document.getAnimations().filter(one => one instanceof CSSTransition).forEach(one => one.finish());
const seen = element => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
const place = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
const named = element => element.getAttribute("aria-label") || element.innerText?.trim()
    || [...element.labels ?? []].some(one => one.innerText.trim())
    || document.getElementById(element.getAttribute("aria-labelledby"))?.innerText;
for (const element of place.querySelectorAll("button, a, input, select, dialog, nav, caption, [role=progressbar]"))
    if (seen(element) && !named(element))
        faults.push(`no name: ${element.outerHTML.slice(0, 200)}`);
const ids = [...document.querySelectorAll("[id]")].map(one => one.id);
for (const id of new Set(ids.filter((one, number) => ids.indexOf(one) !== number)))
    faults.push(`id twice: ${id}`);
const levels = [...place.querySelectorAll("h1, h2, h3, h4")].filter(seen).map(one => Number(one.localName[1]));
const skips = levels.some((one, number) => number && one > levels[number - 1] + 1);
if (levels.filter(one => one === 1).length !== 1 || skips)
    faults.push(`levels of headings: ${levels}`);
if (!document.documentElement.lang)
    faults.push("no language");
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function color(text) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
}
const over = (top, below) => [0, 1, 2].map(one => top[one] * top[3] + below[one] * (1 - top[3])).concat(1);
function background(element) {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
        if (one.classList.contains("pf-v6-c-label__content"))  // PatternFly paints it before its content
            layers.push(color(getComputedStyle(one, "::before").backgroundColor));
        layers.push(color(getComputedStyle(one).backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
}
const light = ([...parts]) => parts.slice(0, 3).map(one => one / 255)
    .map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, number) => sum + one * [0.2126, 0.7152, 0.0722][number], 0);
const texts = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    const element = text.parentElement;
    const words = text.textContent.trim().slice(0, 60);
    if (!words || !seen(element) || element.closest(":disabled, option, .pf-v6-screen-reader, .vb-skip"))
        continue;
    const behind = background(element);
    const style = getComputedStyle(element);
    const [one, other] = [light(over(color(style.color), behind)), light(behind)].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5))
        faults.push(`contrast ${ratio.toFixed(2)}: ${words}, ${style.color} on ${behind}`);
}
if (document.scrollingElement.scrollWidth > innerWidth + 1)
    faults.push(`wider than the window: ${document.scrollingElement.scrollWidth}`);
return faults;
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vbc-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def guests(place: Path) -> Recorded:
    return guest_disk.repository(place / "repository")


@pytest.fixture(scope="module")
def cockpit(place: Path, chromedriver: Driver) -> Iterator[Cockpit]:
    with cockpit_.installed(place, {"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}) as made:
        made.start()
        yield made


@pytest.fixture
def browser(chromedriver: Driver, cockpit: Cockpit, guests: Recorded, place: Path) -> Iterator[Browser]:
    """The page, with the repository of the guest."""
    (place / "downloads").mkdir(exist_ok=True)
    made = Browser(chromedriver, downloads=place / "downloads")
    try:
        made.open(cockpit.page)
        remember(made, guests)
        made.reload()
        yield made
    finally:
        made.close()


def remember(browser: Browser, guests: Recorded) -> None:
    """Let the browser know the repository, as after "Open a repository"."""
    path = str(guests.repository.path)
    browser.run("localStorage.setItem('vbackup:repositories', JSON.stringify([arguments[0]]))", path)


def test_file_of_a_guest_is_found_and_saved(browser: Browser, cockpit: Cockpit, place: Path) -> None:
    # The appliance would take half a minute for these clicks; test_guest_files has the real one.
    fake = FakeGuestfish(cockpit.programs)
    fake.answer("list-devices", with_="/dev/sda\n")
    fake.answer("list-partitions", with_="/dev/sda1\n")
    fake.answer("vfs-type", "/dev/sda1", with_="ext4\n")
    fake.answer("blockdev-getsize64", with_="1048576\n")
    guest = InsideGuest(fake)
    guest.tree("/", {"etc": (0o40755, 0, "")})
    content = "<b>\u00e9</b>\n" * 100000
    size_bytes = len(content.encode())
    guest.tree(
        "/etc",
        {"a <b> 'file'": (0o100644, size_bytes, content), "\udcff": (0o100644, 1, "x"), "it": (0o120777, 4, "/bin")},
    )
    browser.click("link", "web")
    browser.click("button", "Files*")
    browser.find("heading", "Files")
    browser.click("link", "vda/1")
    browser.click("link", "etc")
    browser.find("cell", "\u2192 /bin*")
    assert browser.run("return arguments[0].disabled", browser.find("button", "Download \ufffd"))
    browser.click("button", "Download a <b> 'file'")
    browser.find("alert", "Success: Download of /etc/a <b> 'file': done.*")
    saved = place / "downloads" / "a _b_ 'file'"
    wait_for(saved.exists, "the download")
    assert saved.read_text() == content
    fake.answer("download", with_=OSError("Input/output error"))
    fake.answers.pop(("download", "/etc/a <b> 'file'"))
    fake.write()
    browser.click("button", "Download a <b> 'file'")
    browser.find("alert", "Error: Download of /etc/a <b> 'file': failed.*")
    assert [path.name for path in (place / "downloads").iterdir()] == [saved.name]


def test_disks_are_mounted_and_unmounted(browser: Browser, place: Path, guests: Recorded) -> None:
    browser.click("link", "web")
    browser.click("button", f"Files in {guests.backups[0].id}")
    browser.click("button", "Mount the disks …")
    browser.type("Directory", str(place / "missing" / "here"))
    browser.click("button", "Mount")
    browser.find("alert", "Error: *")
    browser.type("Directory", str(place / "mounted here"))
    browser.click("button", "Mount")
    browser.find("text", str(place / "mounted here" / "vda.raw"))
    assert (place / "mounted here" / "vda.raw").stat().st_size == guest_disk.SIZES_BYTES["vda"]
    browser.click("button", "Unmount")
    browser.wait_gone("button", "Unmount")
    assert not os.path.ismount(place / "mounted here" / "vda.raw")


def test_damage_is_seen_before_a_restore(browser: Browser, guests: Recorded) -> None:
    full, newest = guests.backups
    image = guests.repository.path / full.domain_uuid / full.id / "vda.qcow2"
    image.rename(image.with_suffix(".away"))
    try:
        browser.click("link", "web")
        browser.find("row", f"{full.id}*")
        assert browser.run("return arguments[0].disabled", browser.find("button", f"Restore {newest.id}"))
        browser.find("text", "Broken")
        image.write_bytes(bytes(image.with_suffix(".away").stat().st_size))
        browser.reload()
        browser.click("button", f"Restore {newest.id}")
        for _ in range(3):
            browser.click("button", "Next")
        browser.find("text", "Error: *")
        assert "vda" in browser.run("return document.getElementById('checks').innerText")
    finally:
        image.with_suffix(".away").rename(image)


@pytest.mark.parametrize(("style", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_everybody_can_read_it(browser: Browser, style: str, width: int, cockpit: Cockpit, guests: Recorded) -> None:
    browser.resize(width, 800)
    browser.run("localStorage.setItem('shell:style', arguments[0])", style)
    browser.reload()
    browser.find("link", "web")
    assert browser.run("return document.documentElement.classList.contains('pf-v6-theme-dark')") == (style == "dark")
    assert browser.run(FAULTS) == []
    browser.click("button", "Back up web now")
    assert browser.run(FAULTS) == []
    browser.click("button", "Cancel")
    browser.click("link", "web")
    browser.find("cell", f"{guests.backups[0].id}*")
    assert browser.run(FAULTS) == []
    browser.click("button", f"Restore {guests.backups[0].id}")
    for step in range(4):
        browser.wait("return !document.getElementById('wizard-next').disabled")
        assert browser.run(FAULTS) == [], step
        if step < 3:
            browser.click("button", "Next")
    browser.click("button", "Cancel")
    browser.click("link", "Activity")
    browser.find("heading", "Begun on this page")
    assert browser.run(FAULTS) == []
    browser.click("link", "Configuration")
    browser.find("heading", "Repositories opened by hand")
    assert browser.run(FAULTS) == []


def test_keys_alone_will_do(browser: Browser) -> None:
    browser.find("link", "web")
    browser.run("document.getElementById('backup-any').focus()")
    browser.key("\ue007")
    browser.find("heading", "Back up a virtual machine")
    browser.wait("return document.activeElement.closest('dialog') !== null")
    browser.key("\ue00c")
    browser.wait("return document.querySelector('dialog') === null")
    assert browser.run("return document.activeElement.id") == "backup-any"


@pytest.mark.skipif(namespaces.reason_not_to_enter() is not None, reason="covers files of the system")
@pytest.mark.skipif(cockpit_.NEEDS_SYSTEMD, reason="the login of this Cockpit needs systemd")
def test_user_without_rights_is_told_so(
    chromedriver: Driver, cockpit: Cockpit, guests: Recorded, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with tempfile.TemporaryDirectory(prefix="vbu-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        argv = ["setpriv", f"--reuid={cockpit_.UID}", f"--regid={cockpit_.GID}", "--clear-groups", "--"]
        if subprocess.run([*argv, "ls", sys.executable], capture_output=True, check=False).returncode:
            pytest.skip("other users may not run this Python")
        cockpit.kill()
        with cockpit_.user(cockpit, Path(directory), name="somebody", password="a pass word"):
            cockpit.start(asks=True)
            browser = Browser(chromedriver, downloads=Path(directory))
            try:
                browser.open(cockpit.address)
                remember(browser, guests)
                browser.type("User name", "somebody")
                browser.type("Password", "a pass word")
                browser.click("button", "Log in")
                browser.frame("iframe[name='cockpit1:localhost/vbackup']")
                browser.find("alert", "Attention: Limited access*")
                said = subprocess.run(
                    [*argv, "vbackup", "list", "-r", guests.repository.path],
                    env=cockpit.environment,
                    capture_output=True,
                    text=True,
                    check=False,
                ).stderr
                browser.find("alert", f"Error: {said.removeprefix('vbackup: ').strip()}*")
            finally:
                browser.close()
                cockpit.kill()
                cockpit.start()
