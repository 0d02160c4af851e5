"""The Cockpit page without a hypervisor: files of a guest, mounts, who may do what, and whether all can read it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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

#: Let the page's modules run programs that answer as told: by the words of a command, what it prints, or its failure.
#: What the body returns is in window.answer.
WITH_FAKES = """
const [answers, known] = arguments;
const said = [];
window.cockpit.spawn = argv => {
    said.push(argv.join(" "));
    const [, found] = Object.entries(answers).find(([words]) => argv.join(" ").includes(words)) ?? ["", {}];
    const answer = typeof found === "function" ? found() : found;
    const fails = answer.code || answer.problem;
    const whole = fails ? Promise.reject({ exit_status: 1, message: "", ...answer }) : Promise.resolve();
    whole.catch(() => {});
    return Object.assign(whole, {
        input() {}, close() {}, stream: give => answer.problem || give(JSON.stringify(answer)),
    });
};
const later = window.setTimeout;
const body = async ({ State, points, Works, overview }) => { %s };
Promise.all(["state", "works", "overview"].map(name => import(`./${name}.js`)))
    .then(modules => body(Object.assign({}, ...modules)))
    .then(value => { window.answer = { value }; }, error => { window.answer = { problem: String(error) }; });
"""
GOOD = {"name": "web", "uuid": "u", "repository": "main", "last": {}, "backups": 1, "health": "ok"}
NO_MORE = {**GOOD, "is_gone": True}
UNMOUNTED = {"name": "main", "path": "/r", "fault": None, "health": "critical", "reasons": ["Not mounted."]}
STATUS = {
    "jobs": [],
    "domains": [GOOD],
    "repositories": [{"name": "main", "path": "/r", "fault": None, "health": "ok"}],
    "warnings": [],
}


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
    silent = "qemu:///system?socket=/nonexistent/libvirt"
    variables = {"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg", "LIBVIRT_DEFAULT_URI": silent}
    with cockpit_.installed(place, variables) as made:
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


def test_damage_and_a_silent_libvirt_are_seen_before_a_restore(browser: Browser, guests: Recorded) -> None:
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
        checks = browser.run("return document.getElementById('checks').innerText")
        assert "vda" in checks
        assert "error: failed to connect to the hypervisor" in checks
        assert "No virtual machine is called" not in checks  # nobody knows whether the name is free
    finally:
        image.with_suffix(".away").rename(image)


@pytest.fixture(scope="module")
def with_fakes(chromedriver: Driver, cockpit: Cockpit, place: Path) -> Iterator[Callable[..., Any]]:
    """Run a body with the page's modules, each time in a page that is read again; return its answer."""
    window = Browser(chromedriver, downloads=place)

    def run(body: str, answers: dict[str, Any], **known: Any) -> Any:
        window.open(cockpit.page)
        window.find("heading", "No backups yet")
        window.run(WITH_FAKES % body, answers, known)
        answer = window.wait("return window.answer", patience_s=20)
        assert "problem" not in answer, answer
        return answer["value"]

    yield run
    window.close()


def test_what_is_not_known_does_not_look_well(with_fakes: Callable[..., Any]) -> None:
    body = """
        const results = [];
        for (const one of known.cases) {
            answers["vbackup status --json"] = one;
            const state = new State();
            await state.refresh();
            const view = overview({ state, works: { running: [] }, href: () => "#", can: () => true });
            view.update();
            const alerts = [...view.element.querySelectorAll(".pf-v6-c-alert")].map(one => one.textContent);
            results.push([state.health, state.error?.message ?? null, alerts.join(" ")]);
        }
        return results;
    """
    cases = [
        STATUS,
        {**STATUS, "warnings": ["Host hv2 is silent."]},
        {"schema": "vbackup.error/1", "code": "CONFIG", "message": "Line 3 is wrong.", "status": 2},
        {"schema": "vbackup.error/1", "code": "NO_CONFIG", "message": "There is none.", "status": 2},
        {**STATUS, "domains": [NO_MORE]},
        {**STATUS, "domains": [GOOD, NO_MORE]},
        {**STATUS, "domains": [{**GOOD, "last_read": "2026-11-30T01:00:00.000000Z"}], "repositories": [UNMOUNTED]},
    ]
    good, doubtful, wrong, none, gone, some_gone, remembered = with_fakes(body, {}, cases=cases)
    assert (good[0], good[1]) == ("ok", None)
    assert "The only virtual machine is backed up" in good[2]
    assert doubtful[0] == "warning"
    assert "Something needs attention" in doubtful[2]
    assert "is backed up" not in doubtful[2]
    assert wrong[:2] == ["warning", "Line 3 is wrong."]
    assert none[:2] == ["ok", None]
    assert "libvirt has none of the virtual machines any more" in gone[2]
    assert "The only virtual machine is backed up" in some_gone[2]
    assert remembered[0] == "critical"
    assert "is backed up" not in remembered[2]


def test_work_that_begins_late_is_followed_to_its_end(with_fakes: Callable[..., Any]) -> None:
    body = """
        window.setTimeout = act => later(act, 0);
        let reads = 0;
        let isOver = false;
        const one = () => ({ id: "1", path: "/w", title: "w", state: isOver ? "ended" : "running" });
        answers["work.json"] = () => ({ directory: "/d", works: [one()] });  // in work.py's text
        answers.tail = () => { isOver = true; return {}; };
        window.cockpit.channel = () => new EventTarget();
        window.cockpit.file = () => ({ read: async () => (++reads > 70 ? "4711\\n" : null) });
        const end = await new Promise((found, failed) => {
            later(() => failed(new Error("nobody has seen the end")), 10000);
            new Works({ changed() {}, moved() {}, ended: found }).refresh();
        });
        return [end.state, reads, said.some(words => words.includes("--pid=4711")), said.length];
    """
    state, reads, is_followed, _ = with_fakes(body, {})
    assert (state, is_followed) == ("ended", True)
    assert reads > 50  # a look a fifth of a second: it was asked again after ten seconds


def test_work_that_may_have_begun_says_so_and_a_failed_list_stays(with_fakes: Callable[..., Any]) -> None:
    body = """
        const works = new Works({ changed() {}, moved() {}, ended() {} });
        works.list = [{ id: "1", state: "ended" }];
        await works.refresh();
        const begun = await works.start({ argv: ["backup"] }).catch(error => error.message);
        const { points: found } = await points("/r", "-k");
        return [works.error.code, works.list.length, begun, found, said.at(-1)];
    """
    answers = {"python3 -I": {"problem": "disconnected"}, "vbackup list": {"backups": [1, 2], "broken": []}}
    code, count, begun, found, command = with_fakes(body, answers)
    assert (code, count) == ("DISCONNECTED", 1)
    assert begun.endswith("It may have begun: reload this page, and Activity shows it.")
    assert found == [2, 1]
    assert command == "vbackup list -r /r --json -- -k"


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
