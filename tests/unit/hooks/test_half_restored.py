"""What a restore in place has begun is recorded until all of its disks are restored, by whichever run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID
from vbackup.hooks import half_restored
from vbackup.process import Process

COMMAND = "vbackup restore web --in-place -r /srv"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "var" / "half-restored"
    monkeypatch.setattr(half_restored, "DIRECTORY", path)
    return path


def begin(*disks: str) -> None:
    half_restored.begin(UUID, disks, domain="web", command=COMMAND)


def recorded(directory: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((directory / UUID).read_text())
    return document


def test_record_is_there_until_the_end(directory: Path) -> None:
    begin("vda")
    document = recorded(directory)
    assert document.pop("since").startswith("20")
    assert document == {"domain": "web", "disks": ["vda"], "command": COMMAND, "work": "in-place"}
    assert {path.stat().st_mode & 0o777 for path in (directory.parent, directory)} == {0o700}
    assert (directory / UUID).stat().st_mode & 0o777 == 0o600
    half_restored.end(UUID, ["vda"])
    assert list(directory.iterdir()) == []


def test_disks_of_several_runs_are_ended_one_by_one(directory: Path) -> None:
    begin("vda", "vdb")
    begin("vdc", "vda")
    assert recorded(directory)["disks"] == ["vda", "vdb", "vdc"]
    half_restored.end(UUID, ["vdb", "vdz"])
    assert recorded(directory)["disks"] == ["vda", "vdc"]
    half_restored.end(UUID)
    assert not (directory / UUID).exists()


def test_end_without_a_begin_is_none(directory: Path) -> None:
    half_restored.end(UUID, ["vda"])
    half_restored.end(UUID)
    assert not directory.exists()


@pytest.mark.parametrize("text", ["", "[]", '{"disks": 1}', "[" * 4000, "\udcff"])
def test_damaged_record_is_written_again_and_ended(directory: Path, text: str) -> None:
    directory.mkdir(parents=True)
    (directory / UUID).write_bytes(text.encode(errors="surrogateescape"))
    begin("vda")
    assert recorded(directory)["disks"] == ["vda"]
    half_restored.end(UUID, ["vda"])
    assert not (directory / UUID).exists()


def test_user_who_may_not_record_goes_without(directory: Path) -> None:
    directory.parent.touch()
    begin("vda")
    half_restored.end(UUID)
    assert directory.parent.is_file()


def test_owner_of_a_live_restore_is_this_process(directory: Path) -> None:
    half_restored.begin(UUID, ["vda"], domain="web", command=COMMAND, work=half_restored.Work.LIVE)
    assert recorded(directory)["work"] == "live"
    assert recorded(directory)["owner"] == Process.this().document()
