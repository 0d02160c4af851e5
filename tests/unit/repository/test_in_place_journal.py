"""in-place.json: what is recorded is read again; one that is damaged, of a copy or of another host is told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vbackup.errors import ChainError, StorageError
from vbackup.repository import in_place_journal
from vbackup.repository.in_place_journal import Replaced, Seen, Step

ID = "20261123T101500Z-full"
DISKS = [
    Replaced("vda", Path("/images/vda.qcow2"), ID, True, Seen(1, 2, 3), Seen(4, 5, 6)),
    Replaced("vdb", Path("/images/b"), ID, False),
]


@pytest.mark.parametrize("step", Step)
def test_what_is_recorded_is_read_until_it_is_removed(tmp_path: Path, step: Step) -> None:
    assert in_place_journal.read(tmp_path) is None
    in_place_journal.write(tmp_path, step, backup=ID, disks=DISKS, rolled=["vdc"], host="hv1", uri="qemu+ssh://hv1/")
    entry = in_place_journal.read(tmp_path)
    assert entry is not None
    assert (entry.host, entry.uri) == ("hv1", "qemu+ssh://hv1/")
    assert (entry.devs, entry.is_begun) == ({"vda", "vdb", "vdc"}, step is not Step.WRITING)
    assert (entry.step, entry.backup, list(entry.disks)) == (step, ID, DISKS)
    assert entry.is_of(tmp_path)
    assert (tmp_path / in_place_journal.NAME).stat().st_mode & 0o777 == 0o600
    in_place_journal.remove(tmp_path)
    in_place_journal.remove(tmp_path)
    assert in_place_journal.read(tmp_path) is None


def change(directory: Path, **members: Any) -> None:
    path = directory / in_place_journal.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


def test_copy_of_the_repository_and_another_host_are_told(tmp_path: Path) -> None:
    in_place_journal.write(tmp_path, Step.EXCHANGING, backup=ID, disks=DISKS)
    writer = json.loads((tmp_path / in_place_journal.NAME).read_text())["writer"]
    for members in ({"inode": 1}, {"writer": {**writer, "boot_id": "x", "host": "other", "machine_id": "y"}}):
        in_place_journal.write(tmp_path, Step.EXCHANGING, backup=ID, disks=DISKS)
        change(tmp_path, **members)
        entry = in_place_journal.read(tmp_path)
        assert entry is not None
        assert not entry.is_of(tmp_path)


@pytest.mark.parametrize(
    "members",
    [
        {"step": "else"},
        {"backup": "../x"},
        {"disks": [{"dev": "vda", "path": "/x", "backup": "../../y", "kept": False}]},
        {"disks": "vda"},
        {"disks": [{"dev": "vda", "path": "/x", "backup": ID, "kept": False, "old": {"inode": 1}}]},
        {"rolled": [1]},
        {"inode": "1"},
    ],
)
def test_damaged_journal_is_an_error(tmp_path: Path, members: dict[str, Any]) -> None:
    in_place_journal.write(tmp_path, Step.WRITING, backup=ID, disks=DISKS)
    change(tmp_path, **members)
    with pytest.raises(ChainError):
        in_place_journal.read(tmp_path)
    (tmp_path / in_place_journal.NAME).write_text("{")
    with pytest.raises(ChainError, match=r"named \*\.before-ID"):
        in_place_journal.read(tmp_path)


def test_journal_of_a_newer_vbackup_is_left_to_it(tmp_path: Path) -> None:
    in_place_journal.write(tmp_path, Step.WRITING, backup=ID, disks=DISKS)
    change(tmp_path, schema="vbackup.replacing/2")
    with pytest.raises(StorageError, match="use the newer vbackup"):
        in_place_journal.read(tmp_path)
