"""The tutorial of README.md: its commands, as they stand there, print what stands there, from nothing to a restore."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.guest import build, domain_xml, make_disks
from tests.guest.machine import wait_ready
from tests.lab import DiskSpec
from tests.lab import domain_xml as firmware_xml
from tests.whole_system import system
from vbackup import machine

if TYPE_CHECKING:
    from tests.daemon import Daemon

README = Path(__file__).parents[2] / "README.md"
RESTORED = Path("/var/lib/libvirt/images/web-test")
#: Its status, where that is not 0; of a command that stands there twice, each time.
STATUSES = {"vbackup run nightly": [0, 7, 0]}
#: What differs from host to host and from night to night.
MASKS = (
    (r"\d{8}T\d{6}Z", "ID"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
    (r"Repository [0-9a-f]{12}", "Repository ID"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d", "WHEN"),
    (r"\b\d+(\.\d+)? (s|min|h)\b", "TIME"),
    (r"\b\d+(\.\d+)? ([KMG]i)?B\b", "SIZE"),
    (r"rates it: \d+\.\d \w+", "rates it"),
    (r"[▁-█]", "▁"),
    (r" {2,}", "  "),
)
#: Progress, what is known of the encryption of the filesystem, and what this guest has beside its disks.
LEFT_OUT = re.compile(r"\d{4}-\d\d-\d\d [\d:]{8} vbackup: |.*filesystem.*encrypted|.*/web-test/(kernel|initrd)$")


@dataclass
class Command:
    """A command of the tutorial."""

    line: str
    printed: list[str] = field(default_factory=list)


def section(title: str) -> str:
    found = re.search(rf"^## {title}.*?\n(.*?)^## ", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found, title
    return found.group(1)


def blocks(text: str) -> list[list[str]]:
    """The indented blocks, each with its lines."""
    parts = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", text, re.MULTILINE)
    return [[line[4:] for line in part.rstrip("\n").split("\n")] for part in parts]


def commands(block: list[str]) -> list[Command]:
    """Those of a block, with what each prints; a here-document belongs to its command."""
    found: list[Command] = []
    lines = iter(block)
    for line in lines:
        if not line.startswith("# "):
            found[-1].printed.append(line)
            continue
        found.append(Command(line[2:]))
        if line.endswith("<< 'EOF'"):
            for more in lines:
                found[-1].line += f"\n{more}"
                if more == "EOF":
                    break
    return found


def masked(lines: list[str]) -> list[str]:
    text = "\n".join(line for line in lines if not LEFT_OUT.match(line)).strip("\n")
    for pattern, word in MASKS:
        text = re.sub(pattern, word, text)
    return text.replace(f" on {machine.this_host().name}:", " on hv1:").split("\n")


@contextmanager
def virtual_machines(daemon: Daemon, images: Path) -> Iterator[None]:
    """*web*, a real guest that runs, and *db*, which is off."""
    text = domain_xml("web", build(images / "kernel"), make_disks(images), serial=images / "console")
    daemon.define(text).handle.domain.create()
    other = DiskSpec(images / "db.qcow2")
    other.create()
    daemon.define(firmware_xml("db", [other.xml()]))
    daemon.defined_later("web-test")
    RESTORED.parent.mkdir(exist_ok=True)
    wait_ready(images / "console")
    try:
        yield
    finally:
        shutil.rmtree(RESTORED, ignore_errors=True)


@contextmanager
def systemd_in_sight() -> Iterator[None]:
    """A system that systemd manages; systemctl itself finds that it is in another root directory, and does nothing."""
    running = Path("/run/systemd/system")
    made = running if running.parent.exists() else running.parent
    running.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(made)


def test_ten_minutes_from_nothing_to_a_tested_restore(daemon: Daemon, images: Path, tmp_path: Path) -> None:
    install, *others = blocks(section("Tutorial"))
    # How the packages are built and installed, test_packages.py shows.
    ways = section("Install")
    assert all(way in ways for way in install[0].split(" && "))
    statuses = {line: iter(each) for line, each in STATUSES.items()}
    mails: list[tuple[str, str]] = []
    with virtual_machines(daemon, images), systemd_in_sight(), system(daemon, tmp_path) as host:
        for block in others:
            if block[0].startswith("Subject: "):
                subject, text = mails[-1]
                written = [f"Subject: {subject}", "", *text.split("\n")]
                wanted = masked(block[: block.index("(The steps of the run and the end of its log follow.)")])
                shown = masked([line.replace(machine.this_host().name, "hv1") for line in written])
                assert shown[: len(wanted)] == wanted
                continue
            for command in commands(block):
                status = next(statuses.get(command.line, iter([0])))
                printed = host.run(command.line, status)
                assert masked(printed.split("\n")) == masked(command.printed), command.line
                mails += host.mails()
        assert [re.sub(".*(: .*?: |: )", "", subject) for subject, _ in mails[:2]] == ["test", "nothing was backed up"]
        assert [": works again: 2 domains backed up" in subject for subject, _ in mails] == [False, False, True]
        # What the timer starts finds that nothing is due.
        unit = host.inside("/etc/systemd/system/vbackup@nightly.service.d/50-vbackup.conf").read_text()
        [line] = re.findall(r"^ExecStart=:(.+)$", unit, re.MULTILINE)
        assert line == "/usr/bin/vbackup run --due nightly"
        assert "Job nightly was run at " in host.run(line)
        assert "OnCalendar=*-*-* 01:00:00" in host.run("cat /etc/systemd/system/vbackup@nightly.timer.d/*")
        assert host.run("head -c 15 backups.html").lower() == "<!doctype html>"
