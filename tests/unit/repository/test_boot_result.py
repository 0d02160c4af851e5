"""The result of a boot test is kept with its backup, and what cannot be read counts as none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import NOON
from vbackup.errors import StorageError
from vbackup.files import digest_of
from vbackup.repository import boot_result
from vbackup.repository.boot_result import BootResult

GOOD = BootResult(
    NOON,
    True,
    "The guest booted: its agent answered after 7 s.",
    asked={"agent": True, "exec": None, "console": None, "screen": False},
    agent_s=7.0,
    duration_s=9.5,
    timeout_s=300.0,
    disks=("vda",),
    remarks=("tpm: not there",),
    console_end="login: ",
    versions={"libvirt": "9.0.0"},
)
BAD = replace(
    GOOD, is_good=False, reason="No.", agent_s=None, exec_s=1.0, exec_status=-5, exec_output="ä\n", screen_s=2.0
)


@pytest.mark.parametrize("result", [GOOD, BAD])
def test_what_is_written_is_read(tmp_path: Path, result: BootResult) -> None:
    kept = boot_result.write(tmp_path, result, b"picture")
    assert kept == replace(result, picture=digest_of(b"picture"))
    assert boot_result.read(tmp_path) == kept
    assert (tmp_path / "boot.png").read_bytes() == b"picture"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_document_is_as_in_the_man_page(tmp_path: Path) -> None:
    boot_result.write(tmp_path, GOOD, None)
    document = json.loads((tmp_path / "boot.json").read_text())
    assert (document["schema"], document["verdict"], document["screenshot"]) == ("vbackup.boot/1", "booted", None)
    assert document["time"] == "2026-11-23T12:00:00.000000Z"
    assert "is_good" not in document


def test_picture_of_an_earlier_test_is_removed(tmp_path: Path) -> None:
    boot_result.write(tmp_path, GOOD, b"picture")
    assert boot_result.write(tmp_path, GOOD, None).picture is None
    assert [path.name for path in tmp_path.iterdir()] == ["boot.json"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schema", "vbackup.boot/2"),
        ("verdict", "perhaps"),
        ("time", "yesterday"),
        ("asked", []),
        ("disks", [1]),
        ("remarks", None),
        ("agent_s", "7"),
        ("screenshot", {}),
        ("reason", None),
    ],
)
def test_result_that_cannot_be_read_is_none(tmp_path: Path, name: str, value: Any) -> None:
    boot_result.write(tmp_path, GOOD, None)
    document = json.loads((tmp_path / "boot.json").read_text())
    (tmp_path / "boot.json").write_text(json.dumps({**document, name: value}))
    assert boot_result.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_file_that_is_no_result(tmp_path: Path, text: str) -> None:
    assert boot_result.read(tmp_path) is None
    (tmp_path / "boot.json").write_text(text)
    assert boot_result.read(tmp_path) is None


def test_result_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"boot\.json"):
        boot_result.write(tmp_path / "gone", GOOD, b"x")
