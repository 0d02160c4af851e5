"""What a restore in place has begun is recorded until all of its disks are restored, by whichever run."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder
from vbackup.hooks import half_restored
from vbackup.hooks.half_restored import Work
from vbackup.process import Process

COMMAND = "vbackup restore web --in-place -r /srv"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "var" / "half-restored"
    monkeypatch.setattr(half_restored, "DIRECTORY", path)
    return path


def begin(*disks: str, work: Work = Work.IN_PLACE, recorder: Recorder | None = None) -> None:
    half_restored.begin(UUID, disks, domain="web", command=COMMAND, reporter=recorder or Recorder(), work=work)


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


def test_record_of_another_host_keeps_the_disks_that_are_not_whole_yet() -> None:
    first = half_restored.text(["vda", "vdb"], domain="web", command=COMMAND).encode()
    second = half_restored.text(["vdc", "vda"], domain="web", command=COMMAND, earlier=first).encode()
    assert json.loads(second)["disks"] == ["vda", "vdb", "vdc"]
    left = half_restored.text_without(second, ["vdb", "vdc"])
    assert left is not None
    assert json.loads(left) == {**json.loads(second), "disks": ["vda"]}
    assert half_restored.text_without(left.encode(), ["vda"]) is None
    assert half_restored.text_without(b"[", []) is None


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


def test_user_who_may_not_record_goes_without(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: Any, **_more: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    recorder = Recorder()
    begin("vda", recorder=recorder)
    half_restored.end(UUID)
    assert recorder.warnings == []


def test_record_that_cannot_be_written_is_a_warning(directory: Path) -> None:
    directory.parent.touch()
    recorder = Recorder()
    begin("vda", recorder=recorder)
    half_restored.end(UUID)
    assert directory.parent.is_file()
    [warning] = recorder.warnings
    assert warning.startswith(f"{directory / UUID} cannot be written (File exists): if the restore is interrupted,")


def test_owner_of_a_live_restore_is_this_process(directory: Path) -> None:
    begin("vda", work=Work.LIVE)
    assert recorded(directory)["work"] == "live"
    assert recorded(directory)["owner"] == Process.this().document()


def test_live_restore_that_was_undone_leaves_what_was_half_restored_before(directory: Path) -> None:
    """Its own files are gone, and the disks of before can become the domain's again."""
    half_restored.take_back(UUID)
    begin("vdb", "vdc")
    before = recorded(directory)
    half_restored.take_back(UUID)  # it had begun nothing
    assert recorded(directory) == before
    for _ in range(2):  # it was resumed once
        begin("vda", work=Work.LIVE)
    assert recorded(directory)["disks"] == ["vda"]
    half_restored.take_back(UUID)
    assert recorded(directory) == before
    half_restored.end(UUID)
    begin("vda", work=Work.LIVE)
    half_restored.take_back(UUID)
    assert list(directory.iterdir()) == []


def test_record_of_a_live_restore_on_another_host_keeps_what_was_there() -> None:
    owner, earlier = Process(7, 8, "boot"), half_restored.text(["vdb"], domain="web", command="again").encode()
    more = {"domain": "web", "command": "resume", "owner": owner}
    text = half_restored.live_text(["vda"], earlier=earlier, **more).encode()  # type: ignore[arg-type]
    text = half_restored.live_text(["vda"], earlier=text, **more).encode()  # type: ignore[arg-type] # it was resumed
    record = json.loads(text)
    assert (record["work"], record["disks"], record["owner"]) == ("live", ["vda"], owner.document())
    before = half_restored.text_before(text)
    assert before is not None
    assert json.loads(before) == json.loads(earlier)
    assert half_restored.text_before(before.encode()) == before
    for nothing in (None, b"[]"):
        text = half_restored.live_text(["vda"], earlier=nothing, **more).encode()  # type: ignore[arg-type]
        assert half_restored.text_before(text) is None
