"""Lists made from images: what they hold, block by block, whatever way the image stores it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.qcow2_images import CLUSTER_BYTES, Image, Masked, Packed
from vbackup.errors import ChainError
from vbackup.qemu.qcow2_layer import TABLE_BYTES, Extent, Qcow2Layer
from vbackup.repository import block_scan
from vbackup.repository.block_list import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    SEGMENT_BLOCKS,
    SEGMENT_BYTES,
    BlockList,
    algorithm_of,
    best_algorithm,
    mask_of,
)
from vbackup.repository.block_scan import UNREADABLE, Difference, Scan, difference, differences

MIB = 1024 * 1024
SHA256 = algorithm_of("sha256:", where="here")


def filled(byte: int) -> bytes:
    return bytes([byte]) * CLUSTER_BYTES


def nothing() -> None:
    """No check."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vda.qcow2"


def listed(path: Path) -> BlockList:
    out = path.with_suffix(".blocks")
    record = block_scan.make(path, out, algorithm=SHA256, check=nothing)
    made = BlockList.open(out)
    assert (made.digest(), made.data_blocks, made.zero_blocks) == (
        record.digest,
        record.data_blocks,
        record.zero_blocks,
    )
    with Qcow2Layer(path) as layer:
        assert record.structure == block_scan.structure_digest(layer, SHA256)
    return made


def contents(made: BlockList) -> dict[int, bytes | None]:
    """The digest of each block that is data, None for each that is zeros."""
    found = {}
    for segment in made.segments():
        for block in range(SEGMENT_BLOCKS):
            if segment.held >> block & 1:
                is_data = segment.data >> block & 1
                found[segment.number * SEGMENT_BLOCKS + block] = segment.digest_of(block) if is_data else None
    return found


@pytest.mark.parametrize("compression", [0, 1])
def test_list_has_what_the_guest_sees(path: Path, compression: int) -> None:
    """Zeros that are stored are zeros, as are those that hide data; what is not held is not in the list."""
    is_zstd = compression == 1
    far = SEGMENT_BLOCKS * 3 + 8191
    clusters: dict[int, Any] = {
        0: filled(1),
        1: filled(0),
        2: None,
        3: Masked(filled(3)),
        40: Packed(filled(4), is_zstd),
        41: Packed(filled(0), is_zstd),
        far: filled(5),
    }
    Image(4 * SEGMENT_BYTES, clusters, features=8 * is_zstd, compression=compression).write(path)
    assert contents(listed(path)) == {
        0: SHA256.digest(filled(1)),
        1: None,
        2: None,
        3: None,
        40: SHA256.digest(filled(4)),
        41: None,
        far: SHA256.digest(filled(5)),
    }


def test_list_does_not_depend_on_how_the_image_stores_it(path: Path) -> None:
    def made(image: Image) -> bytes:
        image.write(path)
        listed(path).close()
        return path.with_suffix(".blocks").read_bytes()

    plain = made(Image(16 * MIB, {0: filled(1), 1: None, 2: filled(3)}))
    assert made(Image(16 * MIB, {0: Packed(filled(1)), 1: filled(0), 2: Packed(filled(3))})) == plain
    assert made(Image(16 * MIB, {2: filled(3), 0: filled(1), 1: Masked(filled(9))}, copied=0)) == plain


def test_block_in_which_the_disk_ends_has_zeros_after_the_end(path: Path) -> None:
    """Whatever the image has there: so its digest stays right when the disk grows."""
    Image(CLUSTER_BYTES + 512, {0: filled(1), 1: filled(2)}).write(path)
    expected = SHA256.digest((b"\2" * 512).ljust(BLOCK_BYTES, b"\0"))
    assert contents(listed(path)) == {0: SHA256.digest(filled(1)), 1: expected}
    Image(CLUSTER_BYTES + 512, {1: bytes(512).ljust(CLUSTER_BYTES, b"x")}).write(path)
    assert contents(listed(path)) == {1: None}


def test_clusters_after_the_end_of_the_disk_are_not_held(path: Path) -> None:
    """An image that was made smaller can have them."""
    Image(CLUSTER_BYTES * 2, {0: filled(1), 5: filled(2), 6: None}).write(path)
    assert contents(listed(path)) == {0: SHA256.digest(filled(1))}


def test_only_wanted_blocks_are_read(path: Path) -> None:
    Image(16 * MIB, {block: filled(block + 1) for block in range(40)}).write(path)
    read: list[int] = []
    with Qcow2Layer(path) as layer, Scan(layer, SHA256, check=nothing, progress=read.append) as scan:
        segment = scan.segment(0, wanted=mask_of(17, 19) | 1 << 39)
        assert segment.held == segment.data == mask_of(17, 19) | 1 << 39
        assert segment.digest_of(39) == SHA256.digest(filled(40))
    assert read == [3 * CLUSTER_BYTES]


def test_pieces_of_several_threads_are_in_order(path: Path) -> None:
    rng = random.Random(1)
    data = {block: rng.randbytes(CLUSTER_BYTES) for block in range(700) if rng.random() < 0.8}
    Image(64 * MIB, data).write(path)
    assert contents(listed(path)) == {block: SHA256.digest(content) for block, content in data.items()}


@pytest.mark.parametrize("is_compressed", [False, True])
def test_block_that_cannot_be_read_is_named_or_ends_the_scan(
    path: Path, is_compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbours in the same piece are read."""
    Image(16 * MIB, {b: Packed(filled(b + 1)) if is_compressed else filled(b + 1) for b in range(20)}).write(path)
    with Qcow2Layer(path) as layer:
        bad = next(e for e in layer.extents(0) if e.start <= 7 < e.start + e.clusters)
        assert bad.offset is not None
        start = bad.offset + (7 - bad.start) * CLUSTER_BYTES
        really, really_into = os.pread, os.preadv

        def fail(offset: int, length: int) -> None:
            if offset <= start < offset + length and (not is_compressed or offset == start):
                raise OSError(5, "Input/output error")

        def pread(fd: int, length: int, offset: int) -> bytes:
            fail(offset, length)
            return really(fd, length, offset)

        def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
            fail(offset, sum(len(buffer) for buffer in buffers))
            return really_into(fd, buffers, offset)

        monkeypatch.setattr(os, "pread", pread)
        monkeypatch.setattr(os, "preadv", preadv)
        with Scan(layer, SHA256, check=nothing, is_tolerant=True) as scan:
            segment = scan.segment(0)
            assert [b for b in range(20) if segment.digest_of(b) == UNREADABLE] == [7]
            assert segment.digest_of(8) == SHA256.digest(filled(9))
        with Scan(layer, SHA256, check=nothing) as scan, pytest.raises(ChainError, match="Input/output"):
            scan.segment(0)


def test_check_ends_the_scan_in_the_middle(path: Path) -> None:
    Image(256 * MIB, {block: filled(1) for block in range(2000)}).write(path)
    calls = 0
    lock = threading.Lock()

    def check() -> None:
        nonlocal calls
        with lock:
            calls += 1
            if calls > 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block_scan.make(path, path.with_suffix(".blocks"), algorithm=SHA256, check=check)
    assert calls < 2000 / block_scan.PIECE_BLOCKS


def test_image_that_is_damaged_gets_no_list(path: Path) -> None:
    Image(16 * MIB, {0: 1 << 40}).write(path)
    with pytest.raises(ChainError, match="damaged"):
        block_scan.make(path, path.with_suffix(".blocks"), algorithm=SHA256, check=nothing)


# comparing


def compared(path: Path, with_list: BlockList) -> list[Difference]:
    with Qcow2Layer(path) as layer, Scan(layer, with_list.algorithm, check=nothing, is_tolerant=True) as scan:
        return [*differences(with_list, scan, layer)]


def test_every_difference_is_found(path: Path) -> None:
    blocks: dict[int, Any] = {0: filled(1), 1: filled(2), 2: None, 5: filled(3), SEGMENT_BLOCKS + 1: filled(4)}
    size_bytes = 3 * SEGMENT_BYTES
    Image(size_bytes, blocks).write(path)
    with listed(path) as expected:
        assert compared(path, expected) == []
        for change, where in (
            ({1: filled(9)}, Difference(0, 1 << 1)),  # other data
            ({1: None}, Difference(0, 1 << 1)),  # zeros in place of data
            ({2: filled(9)}, Difference(0, 1 << 2)),  # data in place of zeros
            ({3: None}, Difference(0, 1 << 3)),  # one more
            ({0: filled(2), 1: filled(1)}, Difference(0, 0b11)),  # exchanged
            ({2 * SEGMENT_BLOCKS: filled(9)}, Difference(2, 1)),  # a segment more
        ):
            Image(size_bytes, {**blocks, **change}).write(path)
            assert compared(path, expected) == [where]
        Image(size_bytes, {0: filled(1), 1: filled(2), 2: None, 5: filled(3)}).write(path)
        assert compared(path, expected) == [Difference(1, 1 << 1)]  # a segment less
        os.truncate(path, 6 * CLUSTER_BYTES)
        assert compared(path, expected)[0].blocks & 0b110000 == 0b100000


def test_difference_of_segments_is_that_of_their_blocks(tmp_path: Path) -> None:
    rng = random.Random(2)

    def content() -> dict[int, bytes | None]:
        return {
            b: None if rng.random() < 0.3 else bytes([rng.randrange(3)]) * DIGEST_BYTES
            for b in range(200)
            if rng.random() < 0.7
        }

    def segment(blocks: dict[int, bytes | None]) -> Any:
        from vbackup.repository.block_list import Segment

        data = {b: d for b, d in blocks.items() if d is not None}
        return Segment(0, sum(1 << b for b in blocks), sum(1 << b for b in data), b"".join(data.values()))

    for _ in range(30):
        one, other = content(), content()
        missing = object()
        expected = sum(1 << b for b in range(200) if one.get(b, missing) != other.get(b, missing))
        assert difference(segment(one), segment(other)) == expected
        assert difference(segment(one), segment(dict(one))) == 0


# many terabytes


class Sparse:
    """40 TiB of which a thousand segments hold a cluster."""

    virtual_size_bytes = 40 << 40

    def tables(self) -> Iterator[int]:
        return iter(range(0, 81920, 82))

    def extents(self, number: int) -> list[Extent]:
        return [Extent(number % SEGMENT_BLOCKS, 1, 0), Extent(8000, 100, None)]

    def read(self, extent: Extent, _first: int, clusters: int, buffer: bytearray | None = None) -> memoryview:
        return memoryview(filled(extent.start % 256) * clusters)


def test_forty_tebibytes_are_not_walked(tmp_path: Path) -> None:
    calls: list[int] = []
    with Scan(Sparse(), best_algorithm(), check=lambda: calls.append(1)) as scan:
        made = [*scan.segments()]
    assert len(made) == 1000
    assert len(calls) < 3000


@pytest.mark.parametrize("progress_of", [Packed, None])
def test_progress_is_what_is_read_of_the_file(path: Path, progress_of: Callable[[bytes], Any] | None) -> None:
    data = os.urandom(CLUSTER_BYTES // 2).ljust(CLUSTER_BYTES, b"\1")
    Image(TABLE_BYTES * 2, {b: progress_of(data) if progress_of else data for b in (0, 1, 8192)}).write(path)
    seen: list[int] = []
    block_scan.make(path, path.with_suffix(".blocks"), algorithm=SHA256, check=nothing, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] <= path.stat().st_size
