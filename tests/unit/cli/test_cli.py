"""The command's own errors and answers: statuses, documents, nothing that escapes. No libvirt is needed here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vbackup
from tests.unit.builders import UUID, backup, backup_id, commit, image, incremental
from vbackup.cli.handlers import recover
from vbackup.errors import BusyError
from vbackup.repository import manifest
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command

ONE = backup(1)
TWO = incremental(2, ONE)


@pytest.fixture
def filled(repository: Path) -> Path:
    """A repository with a full and an incremental of domain web."""
    for one in (ONE, TWO):
        commit(Repository.open(repository), one)
    return repository


# usage


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("no-such-command",),
        ("backup", "web", "--level", "half"),
        ("backup", "web", "--level", "FULL"),
        ("backup", "web", "--no-such-option"),
        ("backup", "web", "--lev", "full"),
        ("backup", "web", "--quiesce", "maybe"),
        ("backup", "web", "--compress", "lzma"),
        ("backup", "web", "--speed", "fast"),
        ("backup", "web", "--speed", "-1"),
        ("backup", "web", "--speed", "0"),
        ("backup", "web", "--max-latency", "0"),
        ("backup", "web", "--max-latency", "5 minutes"),
        ("speed",),
        ("speed", "web"),
        ("speed", "--domain", "web"),
        ("speed", "web", "fast"),
        ("speed", "web", "0"),
        ("backup", "web", "--freeze-limit", "0"),
        ("backup", "web", "--freeze-limit", "601"),
        ("backup", "web", "--progress", "loud"),
        ("backup", "web", "-q", "-v"),
        ("backup", "web", "--domain", "two"),
        ("backup", "web", "--all"),
        ("backup", "web", "--exclude", "two"),
        ("backup", "web", "two", ""),
        ("backup", "web", "two", "--parallel", "0"),
        ("backup", "web", "two", "--group", "--parallel", "2"),
        ("backup", "web", "--total-speed", "0"),
        ("backup", ""),
        ("backup",),
        ("restore", "web"),
        ("restore", "--output", "x"),
        ("restore", "web", "--output", "x", "--format", "vmdk"),
        ("restore", "web", "--output", "x", "--at", "yesterday"),
        ("restore", "web", "--output", "x", "--at", "2026-11-23", "--backup", "x"),
        ("show",),
        ("show", "web", "--backup"),
        ("list", "web", "two"),
        ("list", "-r"),
        ("init", "directory"),
        ("recover",),
        ("recover", "web", "--all"),
        ("recover", "web", "two"),
        ("transaction", "web", "/nonexistent"),
        ("transaction", "web", "x", "--completion-mode", "both"),
        ("bitmap",),
        ("bitmap", "list"),
        ("bitmap", "add", "web"),
        ("bitmap", "add", "web", "b", "--granularity", "3k"),
        ("bitmap", "merge", "web", "b"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_two_and_one_sentence(
    command: Command, monkeypatch: pytest.MonkeyPatch, filled: Path, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("VBACKUP_REPOSITORY", os.fspath(filled))
    outcome = command(*arguments, status=2)
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("vbackup: ")
    assert outcome.stderr.endswith(". See 'vbackup --help'.\n")
    assert len(outcome.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [("init",), ("list",), ("show", "web"), ("backup", "web"), ("restore", "web", "--output", "x"), ("recover", "web")],
    ids=" ".join,
)
def test_missing_repository_is_status_two(command: Command, arguments: tuple[str, ...]) -> None:
    assert "use -r DIR, or set VBACKUP_REPOSITORY" in command(*arguments, status=2).stderr


def test_repository_of_the_environment_is_taken(
    command: Command, monkeypatch: pytest.MonkeyPatch, filled: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("VBACKUP_REPOSITORY", os.fspath(filled))
    assert ONE.id in command("list").stdout
    command("list", "-r", tmp_path, status=7)


@pytest.mark.parametrize("arguments", [("--help",), ("backup", "--help"), ("restore", "-h")], ids=" ".join)
def test_help_is_no_error(command: Command, arguments: tuple[str, ...]) -> None:
    assert command(*arguments).stdout.startswith("usage: vbackup")


def test_version_is_told(command: Command) -> None:
    assert command("--version").stdout == f"vbackup {vbackup.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [("-q", "list"), ("list", "-q"), ("-c", "x:///", "list"), ("list", "-c", "x:///")]
)
def test_common_options_stand_before_or_behind_the_command(
    command: Command, filled: Path, arguments: tuple[str, ...]
) -> None:
    assert ONE.id in command(*arguments, "-r", filled).stdout


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


def test_init_of_a_repository_is_status_seven(command: Command, filled: Path) -> None:
    assert "is already a vbackup repository; nothing was changed" in command("init", "-r", filled, status=7).stderr


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


def test_time_before_all_backups_is_status_six(command: Command, filled: Path, tmp_path: Path) -> None:
    command("restore", "web", "-r", filled, "--output", tmp_path / "out", "--at", "2001-01-01", status=6)
    assert not (tmp_path / "out").exists()


def test_unknown_disk_of_a_backup_is_status_five(command: Command, filled: Path, tmp_path: Path) -> None:
    outcome = command("restore", "web", "-r", filled, "--output", tmp_path / "out", "--disk", "vdz", status=5)
    assert "Disk vdz" in outcome.stderr
    assert "it has vda" in outcome.stderr


def test_existing_output_is_status_seven(command: Command, filled: Path, tmp_path: Path) -> None:
    (tmp_path / "vda.qcow2").touch()
    outcome = command("restore", "web", "-r", filled, "--output", tmp_path, status=7)
    assert "vbackup never overwrites" in outcome.stderr
    assert (tmp_path / "vda.qcow2").stat().st_size == 0


def test_missing_link_is_status_six(command: Command, filled: Path, tmp_path: Path) -> None:
    (filled / UUID / ONE.id / "vda.qcow2").unlink()
    outcome = command("restore", "web", "-r", filled, "--output", tmp_path / "out", status=6)
    assert f"the image of backup {ONE.id} is missing" in outcome.stderr


def test_libvirt_out_of_reach_is_status_four(command: Command, filled: Path, tmp_path: Path) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path / 'none'}"
    outcome = command("-c", uri, "backup", "web", "-r", filled, status=4)
    assert f"Cannot reach libvirt at {uri}" in outcome.stderr


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


# answers


def test_init_tells_the_id(command: Command, tmp_path: Path) -> None:
    outcome = command("init", "-r", tmp_path / "r")
    assert Repository.open(tmp_path / "r").id in outcome.stdout


def test_init_as_a_document(command: Command, tmp_path: Path) -> None:
    made = command("init", "-r", tmp_path / "r", "--json").document
    opened = Repository.open(tmp_path / "r")
    assert made == {"schema": "vbackup.init/1", "path": os.fspath(opened.path), "id": opened.id}


def test_empty_repository_is_told(command: Command, repository: Path) -> None:
    assert command("list", "-r", repository).stdout == f"No backups in {repository} yet.\n"
    document = command("list", "-r", repository, "--json").document
    assert (document["schema"], document["domains"], document["backups"]) == ("vbackup.list/1", [], [])


def test_list_has_a_line_for_each_backup(command: Command, filled: Path) -> None:
    lines = command("list", "-r", filled).stdout.splitlines()
    assert lines[0] == f"Domain web ({UUID})"
    assert [line.split()[:2] for line in lines[2:]] == [[ONE.id, "full"], [TWO.id, "incremental"]]
    assert "\x1b" not in "".join(lines)


def test_tree_shows_what_stands_on_what(command: Command, filled: Path) -> None:
    lines = command("list", "-r", filled, "--tree").stdout.splitlines()
    assert lines[1].startswith(ONE.id)
    assert lines[2].index(TWO.id) > 0


def test_list_as_a_document(command: Command, filled: Path) -> None:
    document = command("list", "-r", filled, "web", "--json").document
    assert document["domains"] == [{"uuid": UUID, "name": "web", "names": ["web"]}]
    assert document["broken"] == []
    assert [(one["id"], one["level"], one["parent"], one["disks"]) for one in document["backups"]] == [
        (ONE.id, "full", None, ["vda"]),
        (TWO.id, "incremental", ONE.id, ["vda"]),
    ]


def test_broken_backup_is_listed_and_is_status_six(command: Command, filled: Path) -> None:
    (filled / UUID / ONE.id / "manifest.json").write_text("{")
    outcome = command("list", "-r", filled, status=6)
    assert TWO.id in outcome.stdout
    assert f"vbackup: warning: Backup {ONE.id} is broken" in outcome.stderr
    broken = command("list", "-r", filled, "--json", status=6).document["broken"]
    assert {one["id"] for one in broken} == {ONE.id, TWO.id}


def test_show_tells_what_is_recorded(command: Command, filled: Path) -> None:
    text = command("show", "web", "-r", filled).stdout
    for part in (TWO.id, UUID, "incremental", "crash", "libvirt 9.0.0", "hda (cdrom)", f"{TWO.id} -> {ONE.id}"):
        assert part in text


def test_show_as_a_document_is_the_manifest_and_more(command: Command, filled: Path) -> None:
    document = command("show", "web", "-r", filled, "--backup", ONE.id, "--json").document
    assert document.pop("schema") == "vbackup.show/1"
    assert document.pop("chains") == {"vda": [ONE.id]}
    assert document.pop("path") == os.fspath(filled / UUID / ONE.id)
    assert document == manifest.document(ONE)


def test_events_are_json_lines_on_stderr(command: Command, filled: Path) -> None:
    (filled / UUID / ONE.id / "manifest.json").write_text("{")
    outcome = command("list", "-r", filled, "--progress", "json", status=6)
    events = [json.loads(line) for line in outcome.stderr.splitlines()]
    assert {event["event"] for event in events} == {"warning"}


def test_recover_that_failed_does_not_say_that_nothing_is_unfinished(capsys: pytest.CaptureFixture[str]) -> None:
    recover._print({}, {UUID: BusyError("busy")}, dry_run=False)
    assert capsys.readouterr().out == ""
    recover._print({UUID: ()}, {}, dry_run=False)
    assert capsys.readouterr().out == "No unfinished backups.\n"


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


def test_markup_of_the_table_is_not_taken_from_names(command: Command, repository: Path) -> None:
    commit(Repository.open(repository), backup(1, image(reason="[red]why[/]", source="/[bold]x")))
    text = command("show", UUID, "-r", repository).stdout
    assert "[red]why[/]" in text
    assert "/[bold]x" in text


def test_symlinked_domain_directory_gives_nothing_else_out(command: Command, filled: Path, tmp_path: Path) -> None:
    """show prints what manifests say, whatever else is beside them."""
    (filled / UUID / ONE.id / "secret").write_text("the secret")
    assert "the secret" not in command("show", UUID, "-r", filled, "--json").stdout


# as a process


def run_process(*arguments: str | Path, stdout: int) -> subprocess.CompletedProcess[str]:
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
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"asked for"', '"\\ud800"'))
    (path.parent / "domain.json").write_text('{"names": ["\\ud800"]}')
    done = run_process(*arguments, "-r", repository, stdout=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")


def test_status_is_the_process_s(tmp_path: Path) -> None:
    assert run_process("list", "-r", tmp_path, stdout=subprocess.DEVNULL).returncode == 7


def test_two_domains_of_one_name_are_told_apart_by_uuid(command: Command, filled: Path) -> None:
    other = "f0000000-0000-4000-8000-000000000002"
    commit(Repository.open(filled), replace(ONE, domain_uuid=other))
    assert f"give the UUID: {UUID}, {other}" in command("list", "web", "-r", filled, status=4).stderr
    assert ONE.id in command("list", other, "-r", filled).stdout
