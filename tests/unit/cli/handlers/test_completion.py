"""``vbackup completion``: it prints a script, or values, and nothing that would disturb who is typing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vbackup.cli.commands.completion import SHELLS

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.mark.parametrize("shell", SHELLS)
def test_script_is_one_that_its_shell_reads(command: Command, tmp_path: Path, shell: str) -> None:
    printed = command("completion", shell)
    path = tmp_path / "script"
    path.write_text(printed.stdout)
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr, printed.stderr) == ("", "", "")
    document = command("completion", shell, "--json").document
    assert document == {"schema": "vbackup.completion/1", "shell": shell, "script": printed.stdout}


def test_values_are_printed_one_a_line(command: Command, filled: Path) -> None:
    ids = command("completion", "values", "backups", "-r", filled, "--domain", "web").stdout.splitlines()
    assert [one.partition("-")[2] for one in ids] == ["incremental", "full"]
    both = command("completion", "values", "recorded-domains", "backups", "-r", filled)
    assert both.stdout.splitlines() == ["web", *ids]
    disks = command("completion", "values", "recorded-disks", "-r", filled, "--domain=web", f"--backup={ids[1]}")
    assert disks.stdout == "vda\n"
    document = command("completion", "values", "recorded-domains", "-r", filled, "--json").document
    assert document == {"schema": "vbackup.completion/1", "values": ["web"]}


def test_repository_comes_from_the_environment_too(
    command: Command, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VBACKUP_REPOSITORY", str(filled))
    assert command("completion", "values", "recorded-domains").stdout == "web\n"


def test_configuration_is_the_one_that_is_named(command: Command, tmp_path: Path) -> None:
    (tmp_path / "vbackup.toml").write_text("[job.nightly]\n[job.weekly]\n")
    printed = command("completion", "values", "jobs", "--config", tmp_path / "vbackup.toml").stdout
    assert printed.splitlines() == ["nightly", "weekly"]


def test_libvirt_says_its_domains(command: Command) -> None:
    assert command("completion", "values", "domains", "-c", "test:///default").stdout == "test\n"


@pytest.mark.parametrize("place", ["missing", "file"])
def test_broken_repository_and_libvirt_say_nothing(command: Command, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("no directory")
    for kind in ("domains", "recorded-domains", "backups", "hosts"):
        done = command(
            "completion", "values", kind, "-r", tmp_path / place, "-c", f"qemu+unix:///system?socket={tmp_path}/none"
        )
        assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    "words", [("bash", "domains"), ("bash", "--domain", "web"), ("fish", "--backup", "x"), ("zsh", "--config", "x")]
)
def test_what_is_for_values_is_refused_for_a_script(command: Command, words: tuple[str, ...]) -> None:
    assert "leave it out" in command("completion", *words, status=2).stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_environment_does_a_script_no_harm(command: Command, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("VBACKUP_CONFIG", "/x.toml")
    monkeypatch.setenv("VBACKUP_REPOSITORY", "/x")
    assert command("completion", shell).stdout
    assert "leave it out" in command("completion", shell, "--config", "/y.toml", status=2).stderr


def test_unknown_shell_or_kind_is_refused_with_those_that_there_are(command: Command) -> None:
    assert "'bash', 'zsh', 'fish'" in command("completion", "tcsh", status=2).stderr
    assert "domains, recorded-domains" in command("completion", "values", "domain", status=2).stderr
    assert command("completion", "values").stdout == ""
