"""A command imports what it works with and nothing else: cron starts many of them, and people wait for each."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from vbackup.cli import handlers, parser

#: libvirt, XML, bars, QMP sockets, and what they are built on.
HEAVY = {"libvirt", "libvirt_qemu", "lxml", "rich", "qemu", "asyncio", "concurrent", "subprocess", "ssl", "socket"}
#: All that reaches a domain, and all that only a backup or a restore needs.
DOORS = {
    f"vbackup.{name}"
    for name in (
        "domain.host",
        "qemu.monitor",
        "operations.backup",
        "operations.restore",
        "engine.plan",
        "qapi.actions",
        "domain.freeze",
        "hooks",
    )
}

REPORT = """
import sys
from vbackup.cli import main
try:
    status = main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def imported_by(*arguments: str | Path) -> set[str]:
    """The names of the modules that are there when the command has done its work."""
    argv = [sys.executable, "-c", REPORT, *(os.fspath(one) for one in arguments)]
    # Without pytest-cov's start-up hook, whose imports are not the command's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    return set(done.stderr.split())


def commands_in(modules: set[str]) -> set[str]:
    """The modules of commands and their handlers among these."""
    return {name for name in modules if name.startswith(("vbackup.cli.commands.", "vbackup.cli.handlers."))}


def test_help_imports_no_command() -> None:
    found = imported_by("--help")
    assert "vbackup.cli.parser" in found
    assert not found & (HEAVY | DOORS | {"vbackup.model", "vbackup.repository.repository", "vbackup.api"})
    assert not commands_in(found)


@pytest.mark.parametrize("more", [(), ("--tree",), ("--json",)], ids=" ".join)
def test_list_imports_what_reads_a_repository(filled: Path, more: tuple[str, ...]) -> None:
    found = imported_by("list", "-r", filled, *more)
    assert "vbackup.repository.repository" in found
    assert not found & (HEAVY | DOORS)
    assert commands_in(found) == {"vbackup.cli.commands.list", "vbackup.cli.handlers.list"}


@pytest.mark.parametrize("command", sorted(parser.COMMANDS))
def test_help_of_a_command_imports_neither_libvirt_nor_bars(command: str) -> None:
    found = imported_by(command, "--help")
    assert not found & HEAVY
    assert commands_in(found) == {f"vbackup.cli.commands.{command.replace('-', '_')}"}


def test_run_that_finds_nothing_due_imports_neither_libvirt_nor_what_the_steps_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VBACKUP_STATE", str(tmp_path / "state"))
    path = tmp_path / "vbackup.toml"
    path.write_text('[repository.main]\npath = "/srv/backup"\n[job.nightly]\n')
    path.chmod(0o600)
    found = imported_by("run", "--due", "--config", path)
    assert "vbackup.operations.run" in found
    assert not found & (DOORS | HEAVY - {"subprocess", "socket", "concurrent"})


def test_every_command_has_a_handler() -> None:
    commands = {name.replace("-", "_") for name in parser.COMMANDS}
    assert {module.name for module in pkgutil.iter_modules(handlers.__path__)} == commands


@pytest.mark.parametrize("arguments", [("-q", "list"), ("-c", "list", "show", "web")], ids=" ".join)
def test_command_is_found_wherever_it_stands(filled: Path, arguments: tuple[str, ...]) -> None:
    assert "vbackup.repository.repository" in imported_by(*arguments, "-r", filled)


def test_backup_of_a_running_domain_needs_no_second_monitor() -> None:
    """What only a domain that is off, or a transaction of the user's, needs."""
    source = "import sys, vbackup.operations.backup; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert {"libvirt", "lxml", "vbackup.engine.plan"} <= found
    ours = (
        "qapi.schema operations.restore operations.transaction qemu.storage_daemon qemu.backing_chain images.denied"
        " engine.latency_throttle qapi.actions.blame cli.batch"
    )
    assert not found & {
        "asyncio",
        "qemu",
        "rich",
        "shutil",
        "tempfile",
        "difflib",
        *(f"vbackup.{one}" for one in ours.split()),
    }
