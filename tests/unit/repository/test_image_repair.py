"""The repair of one image; tests/unit/operations/test_repair.py has whole repairs."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

from tests.recorded import BLOCK, Recorded, Write
from tests.unit.builders import UUID
from vbackup.errors import ChainError, NoSpaceError
from vbackup.model import Level
from vbackup.repository import filesystem, image_repair, verify
from vbackup.repository.block_sources import BlockSources
from vbackup.repository.history import Link
from vbackup.repository.image_repair import ImageRepair
from vbackup.repository.repository import Repository


def repair_of(recorded: Recorded, *copies: Repository, number: int = 0) -> ImageRepair:
    """Of the image of vda in the full, or in the backup with that number."""
    one = recorded.backups[number]
    link = Link(one, one.disks[0])
    sources = BlockSources(recorded.repository, copies, UUID, check=lambda: None)
    return ImageRepair(verify.image_path(recorded.repository, link), link, sources, check=lambda: None)


def spoil(path: Path) -> None:
    """The second cluster of data."""
    with path.open("r+b") as file:
        file.seek(6 * 65536)
        file.write(b"\xee" * 100)


def test_good_image_needs_nothing(recorded: Recorded) -> None:
    assert repair_of(recorded).run(is_dry=False).staged is None


def test_copy_is_repaired_and_the_image_is_not_written_to(recorded: Recorded, untouched: Recorded) -> None:
    path, good = recorded.path(recorded.backups[0]), untouched.path(untouched.backups[0]).read_bytes()
    spoil(path)
    spoiled = path.read_bytes()
    assert spoiled != good
    repaired = repair_of(recorded).run(is_dry=False)
    assert (repaired.repaired, repaired.left) == (1, 0)
    assert repaired.staged is not None
    assert (repaired.staged.read_bytes(), path.read_bytes()) == (good, spoiled)
    assert repaired.staged.stat().st_mode & 0o777 == 0o600


def test_memory_is_that_of_one_block_however_many_are_damaged(recorded: Recorded, tmp_path: Path) -> None:
    """8 MiB of them, each another, are taken from a copy."""
    count, half = 128, BLOCK // 2
    writes = [Write(n * half, half, n % 250 + 1 if n % 2 else n // 2 % 199 + 1) for n in range(2 * count)]
    recorded.add({"vda": writes}, level=Level.FULL, size_bytes=count * BLOCK)
    shutil.copytree(recorded.repository.path, tmp_path / "copy")
    path = recorded.path(recorded.backups[-1])
    good = path.read_bytes()
    path.write_bytes(good[: 5 * BLOCK] + b"\xee" * (count * BLOCK) + good[(5 + count) * BLOCK :])
    damage = sum(good[n * BLOCK : (n + 1) * BLOCK] != b"\xee" * BLOCK for n in range(5, 5 + count))
    work = repair_of(recorded, Repository.open(tmp_path / "copy"), number=-1)
    del good
    tracemalloc.start()
    try:
        repaired = work.run(is_dry=False)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert damage == count
    assert (repaired.repaired, repaired.left) == (count, 0)
    assert peak_bytes < count * BLOCK // 2, peak_bytes


def test_no_room_leaves_nothing(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    path = recorded.path(recorded.backups[0])
    spoil(path)
    spoiled = path.read_bytes()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoSpaceError):
        repair_of(recorded).run(is_dry=False)
    assert not repair_of(recorded).staged.exists()
    assert path.read_bytes() == spoiled


def test_storage_that_stores_something_else_is_found(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the copy is compared before it takes the name."""
    spoil(recorded.path(recorded.backups[0]))
    really = image_repair.copy

    def other(source: Path, target: Path, **more: object) -> None:
        really(source, target, **more)  # type: ignore[arg-type]
        with target.open("r+b") as file:
            file.seek(8 * 65536)
            file.write(b"\xdd")

    monkeypatch.setattr(image_repair, "copy", other)
    with pytest.raises(ChainError, match="not what was written to it"):
        repair_of(recorded).run(is_dry=False)
    assert not repair_of(recorded).staged.exists()


def test_bad_sector_does_not_end_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be read is copied; the rest is repaired, or is still damaged then."""

    def cannot(*_args: object, **_more: object) -> None:
        raise OSError(95, "Operation not supported")

    def bad(*_args: object, **_more: object) -> None:
        raise OSError(5, "Input/output error")

    source, target = tmp_path / "source", tmp_path / "target"
    content = os.urandom(3 * 1024 * 1024 + 777)
    source.write_bytes(content)
    really = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        if offset <= 5000 < offset + length:
            raise OSError(5, "Input/output error")
        return really(fd, length, offset)

    monkeypatch.setattr(filesystem, "clone", cannot)
    monkeypatch.setattr(filesystem, "copy", bad)
    monkeypatch.setattr(os, "pread", pread)
    image_repair.copy(source, target, check=lambda: None)
    expected = bytearray(content)
    expected[4096:8192] = bytes(4096)
    assert target.read_bytes() == bytes(expected)


def test_image_without_its_tables_needs_a_copy(recorded: Recorded, untouched: Recorded) -> None:
    with recorded.path(recorded.backups[0]).open("r+b") as file:
        file.seek(3 * 65536 + 5)
        file.write(b"\xff")
    with pytest.raises(ChainError, match="--from"):
        repair_of(recorded).run(is_dry=False)
    repaired = repair_of(recorded, untouched.repository).run(is_dry=True)
    assert repaired.source == untouched.path(untouched.backups[0])
