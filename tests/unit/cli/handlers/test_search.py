"""``vbackup search`` and vbackup.operations.search: files by name in all backups, with a fake of guestfish."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import backup, commit, incremental
from vbackup.errors import (
    BusyError,
    InterruptedBySignalError,
    StorageDaemonGoneError,
    StorageError,
    UnsuitableError,
    VbackupError,
)
from vbackup.operations import search
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.unit.cli.handlers.conftest import InsideGuest

ONE = backup(1)
TWO = incremental(2, ONE)
THREE = incremental(3, TWO)


@pytest.fixture
def three(filled: Path, guest: InsideGuest) -> Path:
    """``same`` is in all three backups, ``changed`` grows in the last, ``gone`` is in the first only."""
    commit(Repository.open(filled), THREE)
    same = {"etc": (0o40755, 0, ""), "etc/same.conf": (0o100644, 5, "")}
    guest.by_backup = {
        ONE.id: lambda: guest.tree("/", same | {"etc/changed.conf": (0o100644, 1, ""), "etc/gone": (0o100600, 1, "")}),
        TWO.id: lambda: guest.tree("/", same | {"etc/changed.conf": (0o100644, 1, "")}),
        THREE.id: lambda: guest.tree(
            "/", same | {"etc/changed.conf": (0o100644, 2, ""), "x\x1b.conf": (0o100600, 0, "")}
        ),
    }
    return filled


def found(command: Command, *words: str | Path, status: int = 0) -> list[tuple[str, str, str]]:
    document = json.loads(command("search", *words, "--json", status=status).stdout)
    return [(each["from"], each["to"], each["path"]) for domain in document["domains"] for each in domain["found"]]


def test_what_does_not_change_is_in_one_line(command: Command, three: Path, guest: InsideGuest) -> None:
    assert found(command, "*", "web", "-r", three) == [
        (ONE.id, THREE.id, "/etc"),
        (THREE.id, THREE.id, "/etc/changed.conf"),
        (ONE.id, THREE.id, "/etc/same.conf"),
        (THREE.id, THREE.id, "/x\x1b.conf"),
        (ONE.id, TWO.id, "/etc/changed.conf"),
        (ONE.id, ONE.id, "/etc/gone"),
    ]
    assert [backup_id for backup_id, _ in guest.opened] == [THREE.id, TWO.id, ONE.id]
    lines = command("search", "*", "web", "-r", three).stdout.splitlines()
    assert lines[0].split() == ["BACKUPS", "OF", "SIZE", "CHANGED", "AT", "PATH"]
    assert lines[1].split() == [f"{ONE.id}..{THREE.id}", "0", "B", "2023-11-14", "22:13:20", "/etc"]
    assert lines[4].endswith("/x\\x1b.conf")


def test_last_and_where(command: Command, three: Path, guest: InsideGuest) -> None:
    assert (THREE.id, THREE.id, "/etc") in found(command, "vda:*", "web", "--last", "1", "-r", three)
    assert guest.opened == [(THREE.id, "vda")]


def test_backup_that_cannot_be_searched(command: Command, three: Path, guest: InsideGuest) -> None:
    def fail() -> None:
        raise UnsuitableError("No operating system is found.")

    guest.by_backup[TWO.id] = fail
    assert [
        (first, last) for first, last, path in found(command, "*", "web", "-r", three, status=3) if path == "/etc"
    ] == [
        (THREE.id, THREE.id),
        (ONE.id, ONE.id),
    ]
    guest.by_backup = dict.fromkeys(guest.by_backup, fail)
    done = command("search", "*", "web", "-r", three, status=5)
    assert f"Backup {TWO.id} was not searched: No operating system" in done.stderr


@pytest.mark.parametrize(
    "error", [StorageDaemonGoneError("status 1", ""), BusyError("It is merged."), StorageError("It is slow.")]
)
def test_storage_that_fails_ends_the_search_of_one_backup(
    command: Command, three: Path, guest: InsideGuest, error: VbackupError
) -> None:
    def fail() -> None:
        raise error

    guest.by_backup[TWO.id] = fail
    done = command("search", "*", "web", "-r", three, status=3)
    assert f"Backup {TWO.id} was not searched: {error}" in done.stderr
    assert "/etc/gone" in done.stdout


def test_signal_ends_it(command: Command, three: Path, guest: InsideGuest) -> None:
    def stop() -> None:
        raise InterruptedBySignalError(15)

    guest.by_backup[TWO.id] = stop
    command("search", "*", "web", "-r", three, status=143)
    assert [backup_id for backup_id, _ in guest.opened] == [THREE.id, TWO.id]


def test_missing_guestfish_is_said_once(command: Command, three: Path, guest: InsideGuest) -> None:
    guest.fake.path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "which", lambda _program: None)
        done = command("search", "*", "web", "-r", three, status=5)
    assert "guestfish is not installed" in done.stderr
    assert "was not searched" not in done.stderr
    assert guest.opened == []


def test_patterns() -> None:
    assert [
        search.matcher(pattern)("/etc/nginx/nginx.conf") for pattern in ("*.conf", "nginx", "N*", "nginx.con[f]")
    ] == [
        True,
        False,
        False,
        True,
    ]
    assert search.matcher("/etc/*.conf")("/etc/nginx/nginx.conf")
    assert not search.matcher("/nginx/*")("/etc/nginx/nginx.conf")


def test_bad_input_is_refused(command: Command, filled: Path, guest: InsideGuest) -> None:
    assert "No pattern given" in command("search", "-r", filled, status=2).stderr
    assert "the only word, '*.conf', is the pattern" in command("search", "*.conf", "-r", filled, status=2).stderr
    assert "is no pattern" in command("search", ":x", "web", "-r", filled, status=2).stderr
    assert "not a number" in command("search", "x", "web", "--last", "0", "-r", filled, status=2).stderr
    assert "of a host 'moon'" in command("search", "x", "web", "--host", "moon", "-r", filled, status=6).stderr
    command("search", "x", "nobody", "-r", filled, status=4)
    assert guest.opened == []
