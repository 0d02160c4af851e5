"""Files without names at the other end of the link: what is sent comes back, and holes stay holes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vbackup.errors import RemoteError
from vbackup.files import nameless
from vbackup.remote import helper
from vbackup.remote.link import PIECE_BYTES, Link
from vbackup.remote.nameless import NamelessFile

MIB = 1 << 20


@contextmanager
def file_here(directory: Path, size_bytes: int = 0, *pieces: tuple[int, bytes]) -> Iterator[int]:
    fd = nameless(directory)
    try:
        os.ftruncate(fd, size_bytes)
        for offset, data in pieces:
            os.pwrite(fd, data, offset)
        yield fd
    finally:
        os.close(fd)


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        ((0, b"a"),),
        ((3 * MIB + 5, b"b" * (2 * PIECE_BYTES + 77)), (40 * MIB - 3, b"end")),
        tuple((number * 128 * 1024, b"%d" % number) for number in range(200)),
    ],
)
def test_content_goes_there_and_back(link: Link, tmp_path: Path, pieces: tuple[tuple[int, bytes], ...]) -> None:
    place = tmp_path / "there"
    place.mkdir()
    with file_here(tmp_path, 40 * MIB, *pieces) as sent, file_here(tmp_path, 7, (0, b"old one")) as fetched:
        there = NamelessFile.make(link, str(place))
        there.send(sent, check=nothing)
        assert list(place.iterdir()) == []
        moved_bytes = there.fetch(fetched, check=nothing)
        assert moved_bytes == sum(end - start for start, end in there._extents())
        assert moved_bytes < 14 * MIB
        assert os.fstat(fetched).st_size == 40 * MIB
        assert os.pread(fetched, 40 * MIB, 0) == os.pread(sent, 40 * MIB, 0)
        assert os.fstat(fetched).st_blocks * 512 <= moved_bytes + MIB
        with Path(there.path).open("rb") as opened:  # as a program of the same user may
            assert opened.read() == os.pread(sent, 40 * MIB, 0)
        there.close()
        with pytest.raises(RemoteError):
            there.fetch(fetched, check=nothing)


def test_extents_come_in_more_than_one_line(link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = os.memfd_create("fragments")
    count = helper.EXTENTS + 3
    try:
        for number in range(count):
            os.pwrite(file, b"x", number * 8192)
        there = NamelessFile.make(link, str(tmp_path))
        there.send(file, check=nothing)
        if len(link.extents(there.handle, 0)[1]) == 1:
            pytest.skip("the filesystem here has no such small holes")
        assert len(link.extents(there.handle, 0)[1]) == helper.EXTENTS
        assert len(list(there._extents())) == count
    finally:
        os.close(file)


def test_check_ends_the_transfer(link: Link, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with file_here(tmp_path, MIB, (0, b"x" * MIB)) as fd, pytest.raises(KeyboardInterrupt):
        NamelessFile.make(link, str(tmp_path)).send(fd, check=stop)


def test_directory_that_is_not_there(link: Link, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="missing: No such file or directory"):
        NamelessFile.make(link, str(tmp_path / "missing"))
