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

from tests.daemon import Daemon
from tests.lab import DiskSpec, Machine, domain_xml

if TYPE_CHECKING:
    pass


@pytest.fixture
def machine(daemon: Daemon, images: Path) -> Machine:
    specs = [DiskSpec(images / "vda.qcow2"), DiskSpec(images / "vdb.qcow2", dev="vdb")]
    for spec in specs:
        spec.create()
    return daemon.start(domain_xml("terminal", [spec.xml() for spec in specs]))


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
    for word in ("vda", "vdb", "full", "64.0 MiB"):
        assert word in out
