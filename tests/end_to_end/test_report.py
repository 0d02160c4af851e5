"""The page of ``vbackup report`` in a real browser: light, dark, on a telephone, by keyboard, for a screen reader."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import browser
from tests.unit import builders
from vbackup import names
from vbackup.model import Backup, ChangeRecord, Level
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.browser import Browser
    from tests.conftest import Command

pytestmark = pytest.mark.skipif(
    browser.reason_not_to_start() is not None, reason=browser.reason_not_to_start() or "there is a browser"
)

NIGHTS = 20
UUIDS = [f"f0000000-0000-4000-8000-{number:012x}" for number in range(3)]
NAMES = ["web", "<b>db</b>", "päge 1"]
#: Contrast of every text that is seen against what is behind it, as in WCAG 2.2; the worst, with its text.
WORST_CONTRAST = """
const light = text => {
    const [red, green, blue] = text.match(/[\\d.]+/g).slice(0, 3).map(part => {
        const share = part / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const ground = element => {
    for (; element; element = element.parentElement) {
        const colour = getComputedStyle(element).backgroundColor;
        if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
};
let worst = [100, ""];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility()) continue;
    const [dark, bright] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => a - b);
    const contrast = (bright + 0.05) / (dark + 0.05);
    if (contrast < worst[0]) worst = [contrast, text];
}
return worst;
"""


def _backups(uuid: str, name: str) -> Iterator[Backup]:
    newest = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(hours=6)
    base = None
    for number in range(NIGHTS):
        level = Level.FULL if base is None else Level.INCREMENTAL
        time = newest - timedelta(days=NIGHTS - 1 - number)
        change = ChangeRecord((number + 1) << 20, 0, sampled_bytes=0, compressed_bytes=0)
        yield builders.backup(
            number + 1,
            builders.image(level=level, base=base, change=change),
            level=level,
            id=names.backup_id(time, level),
            time=time,
            domain_uuid=uuid,
            domain_name=name,
        )
        base = names.backup_id(time, level)


@pytest.fixture
def page(command: Command, repository: Path, tmp_path: Path) -> Path:
    opened = Repository.open(repository)
    for uuid, name in zip(UUIDS, NAMES):
        for one in _backups(uuid, name):
            builders.commit(opened, one)
    path = tmp_path / "report.html"
    command("report", "-r", repository, "--offline", "--html", path)
    return path


@pytest.fixture(scope="module")
def driver() -> Iterator[browser.Driver]:
    with browser.driver() as one:
        yield one


@pytest.fixture
def shown(driver: browser.Driver, page: Path, tmp_path: Path) -> Iterator[Browser]:
    one = browser.Browser(driver, downloads=tmp_path)
    try:
        one.open(page.as_uri())
        yield one
        said = [line for line in one.log() if not line.startswith("chrome://")]  # its own page, before ours
        assert said == [], "the page loads and runs nothing that could fail"
    finally:
        one.close()


def _scheme(shown: Browser, name: str) -> str:
    """Prefer light or dark, and return the colour of the page."""
    shown.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])
    return str(shown.run("return getComputedStyle(document.body).backgroundColor"))


def test_page_is_read_in_light_and_dark_and_on_a_telephone(shown: Browser, tmp_path: Path) -> None:
    for name in NAMES:
        assert shown.sees("heading", f"{name} ✓ OK"), shown.text()
    shown.click("button", f"{NIGHTS} backups")
    grounds = []
    for scheme in ("light", "dark"):
        grounds.append(_scheme(shown, scheme))
        contrast, text = shown.run(WORST_CONTRAST)
        assert contrast >= 4.5, (scheme, text)
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]
    shown.resize(390, 844)
    # What is wider than the screen is scrolled in its place, and the page is not.
    assert shown.run("return document.documentElement.scrollWidth") <= 390
    assert shown.run(
        "return [...document.querySelectorAll('svg')].every(one => one.getBoundingClientRect().right <= 390)"
    )
    picture = tmp_path / "telephone.png"
    shown.screenshot(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_pictures_show_what_they_say(shown: Browser) -> None:
    said = shown.run("return [...document.querySelectorAll('article svg')].map(one => one.ariaLabel)")
    assert f"Calendar: backups on {NIGHTS} of the last {NIGHTS} days" in said
    assert f"Chains: {NIGHTS} backups, 1 of which depend on no other" in said
    # Each shape is drawn: inside of its picture, and not of the size zero.
    outside = shown.run(
        "return [...document.querySelectorAll('article[id^=domain] svg path')].filter(path => {"
        " const [own, all] = [path.getBBox(), path.ownerSVGElement.viewBox.baseVal];"
        " return !(own.width > 0 && own.x >= 0 && own.y >= 0 && own.x + own.width <= all.width + 1"
        " && own.y + own.height <= all.height + 1); }).map(path => path.outerHTML)"
    )
    assert outside == []


def test_page_works_without_a_mouse_and_for_a_screen_reader(shown: Browser) -> None:
    shown.run("document.querySelector('summary').focus()")
    shown.key("\ue007")  # Enter
    assert shown.run("return document.querySelector('details').open")
    shown.run("document.querySelector('a').focus()")
    shown.key("\ue007")
    assert shown.run("return location.hash") == "#domain-0"
    tree = shown.devtools("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, list[str]] = {}
    for node in tree:
        if not node["ignored"]:
            roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert "heading" in roles
    assert all(roles["heading"])
    pictures = roles.get("image", []) + roles.get("img", [])
    assert len(pictures) == 3 * len(NAMES) + 1  # and the room of the repository
    assert all(pictures)
    assert roles["columnheader"].count("Last backup") == 1
