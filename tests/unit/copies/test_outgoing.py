"""What a store reads is slowed, counted and digested, also if a part is read twice or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from vbackup.copies import outgoing
from vbackup.copies.outgoing import Outgoing
from vbackup.errors import StorageError
from vbackup.repository.block_list import best_algorithm
from vbackup.repository.read_rate import ReadRate

DATA = bytes(range(256)) * 1000
ALGORITHM = best_algorithm()


def digest(data: bytes) -> str:
    made = ALGORITHM.new()
    made.update(data)
    return ALGORITHM.text(made)


def source(seen: list[int] | None = None, rate: ReadRate | None = None) -> Outgoing:
    progress = (lambda _: None) if seen is None else seen.append
    return Outgoing(io.BytesIO(DATA), ALGORITHM, rate=rate or ReadRate(None, check=lambda: None), progress=progress)


def test_digest_is_that_of_the_file_however_it_is_read() -> None:
    seen: list[int] = []
    one = source(seen)
    one.read(1000)
    one.read(1000)
    one.seek(500)
    one.read(5000)
    one.seek(0)
    one.read(100)
    one.rest()
    assert one.digest == digest(DATA)
    assert seen == sorted(set(seen))
    assert seen[-1] == len(DATA)


def test_what_was_not_read_is_read_at_the_end() -> None:
    one = source()
    one.rest()
    assert one.digest == digest(DATA)


def test_no_part_can_be_left_out() -> None:
    one = source()
    one.read(10)
    with pytest.raises(ValueError, match="not read yet"):
        one.seek(11)


def test_every_read_takes_its_share_of_the_rate() -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    rate = ReadRate(len(DATA), check=lambda: None, clock=lambda: now, sleep=sleep)
    one = source(rate=rate)
    while one.read(len(DATA) // 4):
        pass
    assert 0.7 < now < 1.1


def test_only_regular_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    with outgoing.opened(tmp_path / "file") as (file, size_bytes):
        assert (file.read(), size_bytes) == (DATA, len(DATA))
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("link", "missing"):
        with pytest.raises(StorageError), outgoing.opened(tmp_path / name):
            pass
