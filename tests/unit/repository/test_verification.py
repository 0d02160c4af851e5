"""The result of a verify is a note beside the manifest: written whole, and never in the way of a backup."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from vbackup.errors import StorageError
from vbackup.repository import verification
from vbackup.repository.verification import Damage, Kind, Verdict, Verification, VerifiedImage

TIME = datetime(2026, 11, 28, 3, 30, tzinfo=timezone.utc)
DAMAGE = Damage("vda", "20261123T101500Z-full/vda.qcow2", 65536, 131072, Kind.CONTENT.value)
GOOD = Verification(TIME, Verdict.GOOD, 100.0, 4096)
FULL = Verification(
    TIME,
    Verdict.DAMAGED,
    12.5,
    8192,
    damage=(DAMAGE, Damage(None, "20261123T101500Z-full/domain.xml", 0, 0, Kind.FILE.value)),
    images=(VerifiedImage("vdb", TIME, "blake3:00"),),
    unfinished=TIME,
)


@pytest.mark.parametrize("one", [GOOD, FULL], ids=["good", "everything"])
def test_what_is_written_is_read(tmp_path: Path, one: Verification) -> None:
    verification.write(tmp_path, one)
    assert verification.read(tmp_path) == one
    assert (tmp_path / "verified.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["verified.json"]


def test_members_are_those_that_are_documented(tmp_path: Path) -> None:
    verification.write(tmp_path, replace(FULL, images=(), unfinished=None, damage=(DAMAGE,)))
    assert json.loads((tmp_path / "verified.json").read_text()) == {
        "schema": "vbackup.verified/1",
        "time": "2026-11-28T03:30:00.000000Z",
        "verdict": "damaged",
        "percent": 12.5,
        "checked_bytes": 8192,
        "damage": [
            {
                "dev": "vda",
                "file": "20261123T101500Z-full/vda.qcow2",
                "start_bytes": 65536,
                "length_bytes": 131072,
                "kind": "content",
            }
        ],
    }


def test_backup_that_was_never_verified_has_no_result(tmp_path: Path) -> None:
    assert verification.read(tmp_path) is None


def test_result_of_a_disk_is_found_by_its_name() -> None:
    assert FULL.image("vdb") == FULL.images[0]
    assert FULL.image("vda") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_bytes(b"\xff"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(path.read_text().replace("verified/1", "verified/2")),
        lambda path: path.write_text(path.read_text().replace('"good"', '"splendid"')),
        lambda path: path.write_text(path.read_text().replace("2026-", "x")),
        lambda path: path.write_text(path.read_text().replace("4096", "-1")),
        lambda path: os.truncate(path, 1 << 30),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_result_that_cannot_be_read_counts_as_none(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    verification.write(tmp_path, GOOD)
    damage(tmp_path / "verified.json")
    assert verification.read(tmp_path) is None


def test_members_and_kinds_of_a_newer_vbackup_are_accepted(tmp_path: Path) -> None:
    verification.write(tmp_path, replace(FULL, damage=(replace(DAMAGE, kind="mould"),)))
    path = tmp_path / "verified.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weather": "fine"}))
    read = verification.read(tmp_path)
    assert read is not None
    assert read.damage[0].kind == "mould"


def test_only_so_much_damage_is_kept(tmp_path: Path) -> None:
    verification.write(tmp_path, replace(FULL, damage=(DAMAGE,) * (verification.MAX_DAMAGE + 1)))
    read = verification.read(tmp_path)
    assert read is not None
    assert len(read.damage) == verification.MAX_DAMAGE


def test_directory_that_cannot_be_written_is_an_error_of_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"verified\.json"):
        verification.write(tmp_path / "gone", GOOD)


def test_backups_share_the_same_damage(tmp_path: Path) -> None:
    kept = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        verification.write(tmp_path / name, FULL)
        kept.append(verification.read(tmp_path / name))
    first, second = kept
    assert first is not None
    assert second is not None
    assert first.damage[0] is second.damage[0]
