"""What every command has in common: exit statuses, errors as documents, output that nobody reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import UUID, backup, backup_id, commit, image, incremental
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command

ONE = backup(1)
TWO = incremental(2, ONE)


# errors


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("show", "web"), ("backup", "web"), ("restore", "web", "--output", "x")],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda _path: None, "is not a vbackup repository"),
        (lambda path: (path / "vbackup.json").write_text('{"version": 2, "id": "x"}'), "format 2"),
        (lambda path: (path / "vbackup.json").write_text("{"), "is damaged"),
    ],
    ids=["none", "newer", "damaged"],
)
def test_repository_that_cannot_be_used_is_status_seven(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], prepare: Callable[[Path], object], said: str
) -> None:
    (tmp_path / "r").mkdir()
    prepare(tmp_path / "r")
    assert said in command(*arguments, "-r", tmp_path / "r", status=7).stderr


@pytest.mark.parametrize(
    "arguments",
    [("list", "other"), ("show", "other"), ("restore", "other", "--output", "x"), ("list", "--domain", "other")],
    ids=" ".join,
)
def test_unknown_domain_is_status_four(command: Command, filled: Path, arguments: tuple[str, ...]) -> None:
    assert "No domain 'other' in" in command(*arguments, "-r", filled, status=4).stderr


@pytest.mark.parametrize("backup_id", [backup_id(9), "x", "", "../x"])
@pytest.mark.parametrize("arguments", [("show", "web"), ("restore", "web", "--output", "x")], ids=lambda one: one[0])
def test_unknown_backup_is_status_six(
    command: Command, filled: Path, arguments: tuple[str, ...], backup_id: str
) -> None:
    outcome = command(*arguments, "-r", filled, "--backup", backup_id, status=6)
    assert f"No backup {backup_id!r} of this domain" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "status"),
    [
        (("list", "other"), "DomainNotFoundError", 4),
        (("show", "web", "--backup", "x"), "ChainError", 6),
        (("backup", "web", "--level", "half"), "UsageError", 2),
        (("list", "-r", "/nonexistent"), "StorageError", 7),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_error_is_a_document_where_json_was_asked_for(
    command: Command, monkeypatch: pytest.MonkeyPatch, filled: Path, arguments: tuple[str, ...], error: str, status: int
) -> None:
    monkeypatch.setenv("VBACKUP_REPOSITORY", os.fspath(filled))
    outcome = command(*arguments, "--json", status=status)
    document = outcome.document
    assert {key: document[key] for key in ("schema", "error", "status")} == {
        "schema": "vbackup.error/1",
        "error": error,
        "status": status,
    }
    assert document["message"] in outcome.stderr
    assert isinstance(document["evidence"], dict)


def test_evidence_of_an_error_is_typed(command: Command, filled: Path) -> None:
    assert command("list", "other", "-r", filled, "--json", status=4).document["evidence"] == {"domain": "other"}


# a repository that somebody else wrote


HOSTILE = ["\x1b]0;title\x07\x1b[31mred", "line\nvbackup: all is well", "\x9b31m"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("arguments", [("list",), ("list", "--tree"), ("show", UUID)], ids=" ".join)
def test_names_from_a_repository_do_not_steer_the_terminal(
    command: Command, repository: Path, text: str, arguments: tuple[str, ...]
) -> None:
    disk = image(reason=text, source=text)
    commit(Repository.open(repository), backup(1, disk, domain_name=text, versions={"qemu": text}))
    for stream in command(*arguments, "-r", repository).stdout, command("list", text, "-r", repository).stderr:
        assert not any(character in stream for character in "\x1b\x07\x9b")
        assert not any(line.startswith("vbackup: all is well") for line in stream.splitlines())


# as a process


def run_process(*arguments: str | Path, stdout: int) -> subprocess.CompletedProcess[str]:
    """Run vbackup/__main__.py."""
    argv = [sys.executable, "-m", "vbackup", *(os.fspath(one) for one in arguments)]
    # Buffered as for a user: unbuffered, other places notice first that a reader has gone.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        argv, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=30, env=environment
    )


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("list", "--tree"), ("show", "web"), ("list", "--json"), ("list", "other", "--json")],
    ids=" ".join,
)
def test_reader_that_has_gone_is_no_fault_of_ours(filled: Path, arguments: tuple[str, ...]) -> None:
    """vbackup list | head -1; rich and print alike"""
    reading, writing = os.pipe()
    os.close(reading)
    done = run_process(*arguments, "-r", filled, stdout=writing)
    os.close(writing)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    "arguments", [("list",), ("list", "--json"), ("list", "other", "--json"), ("--help",)], ids=" ".join
)
def test_output_that_cannot_be_written_is_told(filled: Path, arguments: tuple[str, ...]) -> None:
    """vbackup list > a file on a full disk"""
    with Path("/dev/full").open("w") as full:
        done = run_process(*arguments, *([] if "--help" in arguments else ["-r", filled]), stdout=full.fileno())
    assert done.returncode == 1
    assert "vbackup: Cannot write the output: No space left on device." in done.stderr.splitlines()
    assert "fault" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("arguments", [("list",), ("show", UUID, "--json")], ids=" ".join)
def test_text_that_is_no_unicode_can_be_shown(repository: Path, arguments: tuple[str, ...]) -> None:
    """JSON can hold half a character. (What pytest captures would take anything.)"""
    path = commit(Repository.open(repository), ONE)
    document = json.loads((path / "manifest.json").read_text())
    document["disks"][0]["reason"] = "\ud800"
    del document["digest"]
    (path / "manifest.json").write_text(json.dumps(document))
    (path.parent / "domain.json").write_text('{"names": ["\\ud800"]}')
    done = run_process(*arguments, "-r", repository, stdout=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")


def test_status_is_the_process_s(tmp_path: Path) -> None:
    assert run_process("list", "-r", tmp_path, stdout=subprocess.DEVNULL).returncode == 7


def test_failure_of_a_program_is_seen_whatever_a_parent_ignored() -> None:
    """Ignored by whoever starts vbackup, SIGCHLD makes each program end with status 0, for Python."""
    source = (
        "import signal, subprocess; from vbackup import cli;"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
        "cli.main = lambda: subprocess.run(['false']).returncode;"
        "cli.command()"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False, timeout=30).returncode == 1


# a Python that was upgraded


BROKEN = {
    "lxml/etree.cpython-39-x86_64-linux-gnu.so": ("lxml/__init__.py", ""),
    "libvirtmod.cpython-39-x86_64-linux-gnu.so": ("libvirt.py", "import libvirtmod\n"),
}


@pytest.mark.parametrize("module", BROKEN)
def test_module_that_this_python_cannot_load_is_told_with_what_to_run(
    repository: Path, tmp_path: Path, module: str
) -> None:
    """What make install left there for another Python comes first on the path."""
    other = tmp_path / "lib"
    source, text = BROKEN[module]
    for name in (module, source):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text(text if name == source else "")
    start = f"import sys; sys.path[:0] = [{os.fspath(other)!r}]; from vbackup.cli import command; command()"
    # Without what is compiled for this Python, which is there in the tests' environment.
    start = f"import sys; sys.modules['libvirtmod'] = None; {start}" if source == "libvirt.py" else start
    argv = [sys.executable, "-c", start, "backup", "web", "-r", os.fspath(repository), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}" in done.stderr
    assert "Run 'make install' in the sources of vbackup again" in done.stderr
    assert "bug" not in done.stderr
    assert json.loads(done.stdout)["error"] == "InstallationError"
