"""Block lists: what was written is read; what is damaged or hostile is refused in one sentence, and costs no memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.errors import ChainError, MissingPackageError, NoSpaceError, StorageError
from vbackup.repository import block_list
from vbackup.repository.block_list import (
    ALL,
    BLOCK_BYTES,
    DIGEST_BYTES,
    HEADER,
    RECORD,
    SEGMENT_BLOCKS,
    SEGMENT_BYTES,
    Algorithm,
    BlockList,
    Segment,
    algorithm_of,
    best_algorithm,
    count,
    mask_of,
    runs,
    write,
)

SHA256 = algorithm_of("sha256:", where="here")
TEN_SEGMENTS = 10 * SEGMENT_BYTES
TIB = 1 << 40


def digests(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(DIGEST_BYTES, "big") for number in numbers)


#: Data in blocks 0, 1 and 5, zeros in 2 and 8191; a segment of zeros; one block of zeros.
SEGMENTS = (
    Segment(0, 0b100111 | 1 << 8191, 0b100011, digests(10, 11, 15)),
    Segment(3, ALL, 0, b""),
    Segment(9, 1 << 7, 0, b""),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A list of SEGMENTS."""
    made = tmp_path / "vda.blocks"
    write(made, SEGMENTS, virtual_size_bytes=TEN_SEGMENTS, algorithm=SHA256)
    return made


@pytest.mark.parametrize("small_bytes", [0, 1 << 20])
def test_what_was_written_is_read(path: Path, small_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its file, and from memory if it is small."""
    monkeypatch.setattr(block_list, "_SMALL_BYTES", small_bytes)
    with BlockList.open(path) as listed:
        assert [*listed.segments()] == [*SEGMENTS]
        assert (listed.numbers, listed.virtual_size_bytes, listed.algorithm) == ([0, 3, 9], TEN_SEGMENTS, SHA256)
        assert (listed.data_blocks, listed.zero_blocks) == (3, 2 + SEGMENT_BLOCKS + 1)
        assert listed.segment(1) == Segment(1, 0, 0, b"")
        assert listed.segment(10**6) == Segment(10**6, 0, 0, b"")
        assert listed.digest() == "sha256:" + sha256(path.read_bytes()).hexdigest()


def test_small_lists_keep_no_file_open(tmp_path: Path) -> None:
    """A chain of hundreds would otherwise need more files than a process may open."""
    lists = []
    for number in range(50):
        path = tmp_path / f"{number}.blocks"
        write(path, SEGMENTS, virtual_size_bytes=TEN_SEGMENTS, algorithm=SHA256)
        lists.append(BlockList.open(path))
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if str(tmp_path) in _target(fd)]
    assert all(listed.segment(0) == SEGMENTS[0] for listed in lists)


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except OSError:
        return ""


def test_format_is_that_of_the_man_page(path: Path) -> None:
    """Byte for byte: other programs read it."""
    data = path.read_bytes()
    assert data[:64].hex() == (
        "7662626c6f636b73"  # vbblocks
        "01000000020000000000010000200000"  # version, SHA-256, bytes of a block, blocks of a segment
        "0000004001000000a0100000000000000300000000000000"  # size of the disk, place and records of the index
        + "00"
        * 16
    )
    assert data[INDEX:] == struct.pack("<QQIIQQIIQQII", 0, 64, 3, 2, 3, 0, 0, 8192, 9, 64 + 2048 + 96, 0, 1)
    held, data_mask = data[64 : 64 + 1024], data[64 + 1024 : 64 + 2048]
    assert (held[0], held[1023], data_mask[0]) == (0b100111, 0x80, 0b100011)
    assert data[64 + 2048 : 64 + 2048 + 96] == digests(10, 11, 15)


def test_written_record_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "vda.blocks"
    path.write_text("left by a dead run")
    made = write(path, SEGMENTS, virtual_size_bytes=TEN_SEGMENTS, algorithm=SHA256)
    assert (made.data_blocks, made.zero_blocks) == (3, SEGMENT_BLOCKS + 3)
    assert made.digest == "sha256:" + sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_mode & 0o777 == 0o600


def test_empty_segments_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "vda.blocks"
    write(path, [Segment(0, 0, 0, b"")], virtual_size_bytes=TEN_SEGMENTS, algorithm=SHA256)
    assert path.stat().st_size == HEADER.size
    with BlockList.open(path) as listed:
        assert listed.numbers == []


def test_list_of_an_empty_disk(tmp_path: Path) -> None:
    path = tmp_path / "vda.blocks"
    write(path, [], virtual_size_bytes=0, algorithm=SHA256)
    with BlockList.open(path) as listed:
        assert [*listed.segments()] == []


def test_full_filesystem_and_closed_directory_are_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        write(tmp_path / "missing" / "vda.blocks", [], virtual_size_bytes=0, algorithm=SHA256)

    def no_room() -> Iterator[Segment]:
        yield SEGMENTS[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(NoSpaceError, match="no space left"):
        write(tmp_path / "vda.blocks", no_room(), virtual_size_bytes=TEN_SEGMENTS, algorithm=SHA256)


@given(
    st.sets(st.integers(0, SEGMENT_BLOCKS - 1), max_size=300),
    st.sets(st.integers(0, SEGMENT_BLOCKS - 1), max_size=300),
)
def test_masks_are_sets_of_blocks(held: set[int], data: set[int]) -> None:
    mask = sum(1 << block for block in held)
    assert count(mask) == len(held)
    assert [block for start, end in runs(mask) for block in range(start, end)] == sorted(held)
    assert all(start < end for start, end in runs(mask))
    assert sum(mask_of(start, end) for start, end in runs(mask)) == mask
    both = sorted(data & held)
    segment = Segment(0, mask, sum(1 << block for block in both), digests(*both))
    assert [int.from_bytes(segment.digest_of(block), "big") for block in both] == both
    assert (segment.data_blocks, segment.zero_blocks) == (len(both), len(held) - len(both))


# what is damaged or hostile


def changed(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


HUGE_64, HUGE_32 = b"\xff" * 8, b"\xff" * 4
INDEX = 64 + 2048 + 96 + 2048  # two bodies: of segments 0 and 9
HOSTILE: dict[str, Callable[[Path], None]] = {
    "magic": lambda path: changed(path, 0, b"QFI\xfb"),
    "version": lambda path: changed(path, 8, b"\x02"),
    "algorithm": lambda path: changed(path, 12, b"\x09"),
    "size of a block": lambda path: changed(path, 16, b"\x01"),
    "size of a block is 0": lambda path: changed(path, 16, bytes(4)),
    "blocks of a segment": lambda path: changed(path, 20, HUGE_32),
    "disk that is huge": lambda path: changed(path, 24, HUGE_64),
    "disk of no bytes": lambda path: changed(path, 24, bytes(8)),
    "disk that is smaller": lambda path: changed(path, 24, SEGMENT_BYTES.to_bytes(8, "little")),
    "place of the index is huge": lambda path: changed(path, 32, HUGE_64),
    "place of the index is in the header": lambda path: changed(path, 32, bytes(8)),
    "number of records is huge": lambda path: changed(path, 40, HUGE_64),
    "no records": lambda path: changed(path, 40, bytes(8)),
    "a record less": lambda path: changed(path, 40, (2).to_bytes(8, "little")),
    "place and number agree and are wrong": lambda path: changed(
        path, 32, (INDEX + RECORD.size).to_bytes(8, "little") + (2).to_bytes(8, "little")
    ),
    "number of a segment is huge": lambda path: changed(path, INDEX + 48, HUGE_64),
    "segment twice": lambda path: changed(path, INDEX + 48, (3).to_bytes(8, "little")),
    "body elsewhere": lambda path: changed(path, INDEX + 8, (65).to_bytes(8, "little")),
    "body after the end": lambda path: changed(path, INDEX + 56, HUGE_64),
    "body in the header": lambda path: changed(path, INDEX + 8, (1).to_bytes(8, "little")),
    "no body, but data": lambda path: changed(path, INDEX + 8, bytes(8)),
    "number of data is huge": lambda path: changed(path, INDEX + 16, HUGE_32),
    "number of data is one more": lambda path: changed(path, INDEX + 16, b"\x04"),
    "number of zeros is huge": lambda path: changed(path, INDEX + 20, HUGE_32),
    "number of zeros is one less": lambda path: changed(path, INDEX + 20, b"\x01"),
    "all zeros of less than a segment": lambda path: changed(path, INDEX + 44, b"\x01"),
    "a block held that the index does not know": lambda path: changed(path, 64 + 100, b"\x01"),
    "data that the image does not hold": lambda path: changed(path, 64 + 1024 + 100, b"\x01"),
    "truncated in the index": lambda path: os.truncate(path, INDEX + 20),
    "truncated in a body": lambda path: os.truncate(path, 1000),
    "truncated in the header": lambda path: os.truncate(path, 63),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: changed(path, path.stat().st_size, bytes(24)),
    "sparse giant": lambda path: os.truncate(path, 1 << 40),
}


def read_all(path: Path) -> None:
    with BlockList.open(path) as listed:
        for _ in listed.segments():
            pass


@pytest.mark.parametrize("small_bytes", [0, 1 << 20])
@pytest.mark.parametrize("harm", HOSTILE.values(), ids=HOSTILE)
def test_hostile_list_is_refused(
    path: Path, harm: Callable[[Path], None], small_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_list, "_SMALL_BYTES", small_bytes)
    harm(path)
    tracemalloc.start()
    try:
        with pytest.raises(ChainError) as caught:
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "vbackup check" in str(caught.value) or "newer vbackup" in str(caught.value)


def test_blocks_beyond_the_disk_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vda.blocks"
    for segment in (Segment(1, ALL, 0, b""), Segment(1, 0b1000, 0, b"")):
        write(path, [segment], virtual_size_bytes=SEGMENT_BYTES + 3 * BLOCK_BYTES, algorithm=SHA256)
        with pytest.raises(ChainError, match="damaged"):
            read_all(path)
    write(path, [Segment(1, 0b111, 0, b"")], virtual_size_bytes=SEGMENT_BYTES + 2 * BLOCK_BYTES + 1, algorithm=SHA256)
    read_all(path)


@given(st.data())
def test_any_bytes_are_a_list_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "any.blocks"
    write(path, SEGMENTS, virtual_size_bytes=TEN_SEGMENTS, algorithm=SHA256)
    size_bytes = path.stat().st_size
    for _ in range(data.draw(st.integers(1, 4))):
        places = st.integers(0, 63) | st.integers(INDEX, size_bytes - 1) | st.integers(0, size_bytes - 1)
        changed(path, data.draw(places), data.draw(st.binary(min_size=1, max_size=9)))
    with suppress(ChainError):
        read_all(path)


@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.blocks"
    path.write_bytes(b"vbblocks" + content)
    with suppress(ChainError):
        read_all(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_impostor_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "vda.blocks"
    make(path)
    with pytest.raises(ChainError, match="cannot be read"):
        BlockList.open(path)


def test_missing_list_is_told(tmp_path: Path) -> None:
    with pytest.raises(ChainError, match=r"cannot be read: No such file.*copy of the repository"):
        BlockList.open(tmp_path / "vda.blocks")


def test_list_that_is_truncated_while_it_is_open_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapped one would end the process with SIGBUS."""
    monkeypatch.setattr(block_list, "_SMALL_BYTES", 0)
    with BlockList.open(path) as listed:
        os.truncate(path, 100)
        with pytest.raises(ChainError, match="too short"):
            listed.segment(0)
        with pytest.raises(ChainError, match="too short"):
            listed.digest()


def test_bad_sector_below_a_list_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_list, "_SMALL_BYTES", 0)

    def fails(_fd: int, _length: int, _offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    with BlockList.open(path) as listed:
        monkeypatch.setattr(os, "pread", fails)
        with pytest.raises(ChainError, match="cannot be read: Input/output error"):
            listed.segment(0)


def test_reads_may_be_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: really(fd, min(length, 100), offset))
    read_all(path)


# many terabytes


def test_list_of_forty_tebibytes_of_zeros_is_small_and_quick(tmp_path: Path) -> None:
    path = tmp_path / "vda.blocks"
    numbers = range(40 * TIB // SEGMENT_BYTES)
    write(path, (Segment(n, ALL, 0, b"") for n in numbers), virtual_size_bytes=40 * TIB, algorithm=SHA256)
    assert path.stat().st_size == HEADER.size + len(numbers) * RECORD.size
    tracemalloc.start()
    try:
        with BlockList.open(path) as listed:
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
            tracemalloc.stop()
            assert listed.zero_blocks == 40 * TIB // BLOCK_BYTES
            assert listed.segment(numbers[-1]).held == ALL
    finally:
        tracemalloc.stop()


def test_list_of_data_is_read_and_written_segment_by_segment(tmp_path: Path) -> None:
    """64 segments of data have lists of 16 MiB."""
    path = tmp_path / "vda.blocks"
    content = bytes(range(256)) * (DIGEST_BYTES * SEGMENT_BLOCKS // 256)
    tracemalloc.start()
    try:
        write(
            path,
            (Segment(n, ALL, ALL, content) for n in range(64)),
            virtual_size_bytes=64 * SEGMENT_BYTES,
            algorithm=SHA256,
        )
        with BlockList.open(path) as listed:
            assert sum(segment.data_blocks for segment in listed.segments()) == 64 * SEGMENT_BLOCKS
            listed.digest()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# algorithms


def test_digests_name_their_algorithm() -> None:
    assert SHA256.digest(b"abc") == sha256(b"abc").digest()
    assert SHA256.zero_block == sha256(bytes(BLOCK_BYTES)).digest()
    best = best_algorithm()
    assert algorithm_of(best.text(best.new()), where="here") is best
    with pytest.raises(ChainError, match="digests of an unknown kind; use a newer vbackup"):
        algorithm_of("md5:1234", where="The manifest")


@pytest.fixture
def without_blake3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)  # import raises ImportError
    monkeypatch.setattr(block_list, "_KNOWN", block_list._known())


@pytest.mark.usefixtures("without_blake3")
def test_without_blake3_digests_are_sha256() -> None:
    assert best_algorithm().name == "sha256"


@pytest.mark.skipif(best_algorithm().name != "blake3", reason="blake3 is not installed")
def test_blake3_list_without_blake3_names_the_package(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """It is not damaged, so that is no ChainError."""
    blake3: Algorithm = best_algorithm()
    path = tmp_path / "vda.blocks"
    write(path, SEGMENTS, virtual_size_bytes=TEN_SEGMENTS, algorithm=blake3)
    request.getfixturevalue("without_blake3")
    with pytest.raises(MissingPackageError, match=r"vda.blocks has BLAKE3 digests.*python3-blake3.*pip install blake3"):
        BlockList.open(path)
    with pytest.raises(MissingPackageError, match="The manifest has BLAKE3"):
        algorithm_of("blake3:00", where="The manifest")


def test_module_is_imported_where_blake3_cannot_be() -> None:
    code = (
        "import sys; sys.modules['blake3'] = None\n"
        "from vbackup.repository import block_list\n"
        "print(block_list.best_algorithm().name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "sha256\n"


@pytest.mark.parametrize("count", [1, 15, 16, 17, 18, 4096])
def test_runs_of_many_and_few_are_the_same(count: int) -> None:
    """Few are found by shifting, the others by a search."""
    expected = [(2 * n, 2 * n + 1) for n in range(count)]
    assert list(runs(sum(mask_of(start, end) for start, end in expected))) == expected
    wide = [(100 * n + 7, 100 * n + 60) for n in range(min(count, 80))]
    assert list(runs(sum(mask_of(start, end) for start, end in wide))) == wide
    assert list(runs(ALL)) == [(0, SEGMENT_BLOCKS)]
    assert list(runs(0)) == []
