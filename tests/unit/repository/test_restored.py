"""restored.json: what is recorded is read again, and a damaged file counts as none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.builders import REPOSITORY, backup_id
from vbackup.errors import StorageError
from vbackup.layers import ChainState, FileState, LayerState
from vbackup.names import Naming
from vbackup.repository import restored
from vbackup.repository.history import RestoredDisk


def disk(number: int, dev: str = "vda") -> RestoredDisk:
    chain = ChainState((LayerState("", FileState("/out/vda.qcow2", 1, 2, 3, 4)),), boot_id="b")
    bitmap = Naming(REPOSITORY).bitmap(backup_id(1), dev, f"{number:012x}")
    return RestoredDisk(dev, backup_id(1), bitmap, 1 << 20, number, chain)


def test_what_was_added_is_read_the_oldest_first(tmp_path: Path) -> None:
    assert restored.read(tmp_path) == []
    restored.add(tmp_path, [disk(1), disk(2, "vdb")])
    restored.add(tmp_path, [disk(3)])
    assert restored.read(tmp_path) == [disk(1), disk(2, "vdb"), disk(3)]
    assert (tmp_path / restored.NAME).stat().st_mode & 0o777 == 0o600


def test_oldest_of_a_disk_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restored, "MAX_OF_DISK", 2)
    restored.add(tmp_path, [disk(1, "vdb"), *(disk(number) for number in range(5))])
    assert restored.read(tmp_path) == [disk(1, "vdb"), disk(3), disk(4)]


def test_nothing_is_written_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "domain").symlink_to("outside")
    with pytest.raises(StorageError):
        restored.add(tmp_path / "domain", [disk(1)])
    (tmp_path / "outside" / restored.NAME).symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_text("precious")
    assert restored.read(tmp_path / "outside") == []
    restored.add(tmp_path / "outside", [disk(1)])
    assert (tmp_path / "victim").read_text() == "precious"
    assert restored.read(tmp_path / "outside") == [disk(1)]


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "vbackup.restored/2"},
        {"disks": [{"dev": "vda"}]},
        {"disks": 1},
    ],
)
def test_damaged_file_counts_as_none(tmp_path: Path, change: dict[str, object]) -> None:
    restored.add(tmp_path, [disk(1)])
    document = json.loads((tmp_path / restored.NAME).read_text())
    (tmp_path / restored.NAME).write_text(json.dumps({**document, **change}))
    assert restored.read(tmp_path) == []
    (tmp_path / restored.NAME).write_text("{")
    assert restored.read(tmp_path) == []


@pytest.mark.parametrize("bitmap", ["", "x", Naming(REPOSITORY).bitmap(backup_id(2), "vda", "0" * 12)])
def test_bitmap_of_another_backup_is_not_taken_for_that_of_this_one(tmp_path: Path, bitmap: str) -> None:
    restored.add(tmp_path, [disk(1)])
    document = json.loads((tmp_path / restored.NAME).read_text())
    document["disks"][0]["bitmap"] = bitmap
    (tmp_path / restored.NAME).write_text(json.dumps(document))
    assert restored.read(tmp_path) == []
