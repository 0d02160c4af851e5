"""What a person sees: bars on a terminal, and nothing of them where the result goes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import documents
from tests.daemon import Daemon
from tests.lab import DiskSpec, Machine, compare, domain_xml
from tests.streams import run_with_broken

if TYPE_CHECKING:
    pass


@pytest.fixture
def machine(daemon: Daemon, images: Path) -> Machine:
    specs = [DiskSpec(images / "vda.qcow2"), DiskSpec(images / "vdb.qcow2", dev="vdb")]
    for spec in specs:
        spec.create()
    machine = daemon.start(domain_xml("terminal", [spec.xml() for spec in specs]))
    for dev in ("vda", "vdb"):
        machine.write(dev, "write -P 1 0 2M")
    return machine


def on_a_terminal(*arguments: str, columns: int = 80, environment: dict[str, str] | None = None) -> tuple[str, str]:
    """Run vbackup with a terminal as stderr; returns what went to stdout and what the terminal got."""
    controller, terminal = pty.openpty()
    argv = [sys.executable, "-m", "vbackup", *arguments]
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", **(environment or {})}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=terminal, env=env) as process:
        os.close(terminal)
        seen = _read(controller)
        assert process.stdout is not None
        out = process.stdout.read()
    assert process.returncode == 0, seen
    if "--json" in arguments:
        documents.check_output(out.decode())
    return out.decode(), seen.decode()


def _read(controller: int) -> bytes:
    seen = b""
    while True:
        try:
            piece = os.read(controller, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        seen += piece
    os.close(controller)
    return seen


def test_bars_go_to_the_terminal_and_the_document_to_stdout(machine: Machine, daemon: Daemon, repository: Path) -> None:
    out, seen = on_a_terminal("-c", daemon.uri, "backup", machine.name, "-r", str(repository), "--json")
    assert json.loads(out)["schema"] == "vbackup.backup/1"
    assert "100%" in seen
    assert "\x1b[" in seen
    assert "vbackup.backup/1" not in seen


def test_no_color_is_honoured(machine: Machine, daemon: Daemon, repository: Path) -> None:
    _, seen = on_a_terminal(
        "-c", daemon.uri, "backup", machine.name, "-r", str(repository), environment={"NO_COLOR": "1"}
    )
    colours = [f"\x1b[{number}m" for number in range(30, 50)] + ["\x1b[38;", "\x1b[48;"]
    assert not [colour for colour in colours if colour in seen]


def test_narrow_terminal_keeps_every_disk_and_level(machine: Machine, daemon: Daemon, repository: Path) -> None:
    out, _ = on_a_terminal("-c", daemon.uri, "backup", machine.name, "-r", str(repository), columns=60)
    for word in ("vda", "vdb", "full", "2.0 MiB"):
        assert word in out


# output that cannot be written


@pytest.mark.parametrize("is_on", [True, False], ids=["running", "off"])
def test_backup_counts_whatever_becomes_of_its_words(
    daemon: Daemon, images: Path, repository: Path, is_on: bool
) -> None:
    spec = DiskSpec(images / "vda.qcow2")
    spec.create()
    (daemon.start if is_on else daemon.define)(domain_xml("words", [spec.xml()]))
    arguments = ["-m", "vbackup", "-c", daemon.uri, "backup", "words", "-r", str(repository)]
    runs: list[tuple[dict[int, str], list[str], bool]] = [
        ({1: "full"}, ["--json"], False),
        ({1: "gone", 2: "gone"}, ["-v"], True),
        ({0: "closed", 1: "closed", 2: "closed"}, [], False),
        ({2: "full"}, ["--progress", "json"], True),
    ]
    for count, (broken, options, unbuffered) in enumerate(runs, start=1):
        done = run_with_broken([*arguments, *options], broken, unbuffered=unbuffered)
        assert done.returncode == 0, (broken, options, done.stderr)
        assert "Traceback" not in done.stderr, (broken, options, done.stderr)
        assert len(list(repository.glob("*/*/manifest.json"))) == count, (broken, options)
    shown = run_with_broken(
        ["-m", "vbackup", "restore", "words", "-r", str(repository), "--output", str(images / "out")],
        {0: "closed", 1: "closed", 2: "full"},
    )
    assert shown.returncode == 0
    if not is_on:
        compare(images / "out" / "vda.qcow2", spec.path)
    assert len((images / "out" / "domain.xml").read_text()) > 100


def test_plan_that_cannot_be_written_is_told(machine: Machine, daemon: Daemon, repository: Path) -> None:
    arguments = ["-m", "vbackup", "-c", daemon.uri, "backup", machine.name, "-r", str(repository), "--dry-run"]
    assert run_with_broken(arguments, {1: "full"}).returncode == 1
