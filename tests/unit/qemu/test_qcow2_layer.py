"""What one image holds by itself; tests/contract/test_qcow2_layer.py compares it with QEMU's own reading."""

from __future__ import annotations

import os
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.qcow2_images import CLUSTER_BYTES, COMPRESSED, COPIED, TABLE_CLUSTERS, Image, Masked, Packed
from vbackup.errors import ChainError, MissingPackageError
from vbackup.qemu.qcow2_layer import TABLE_BYTES, Extent, Qcow2Layer

MIB = 1024 * 1024
SIZE_BYTES = 16 * MIB
TIB = 1 << 40
RANDOM = os.urandom(CLUSTER_BYTES)


def filled(byte: int) -> bytes:
    return bytes([byte]) * CLUSTER_BYTES


def held(path: Path) -> dict[int, bytes | None]:
    """What the image holds of each cluster: content, None for zeros that it does not store."""
    found: dict[int, bytes | None] = {}
    with Qcow2Layer(path) as layer:
        for number in layer.tables():
            for extent in layer.extents(number):
                for cluster in range(extent.clusters):
                    key = number * TABLE_CLUSTERS + extent.start + cluster
                    assert key not in found
                    found[key] = None if extent.offset is None else bytes(layer.read(extent, cluster, 1))
        b"".join(layer.structure())
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vda.qcow2"


@pytest.mark.parametrize("copied", [COPIED, 0])
@pytest.mark.parametrize("compression", [0, 1])
def test_every_kind_of_cluster(path: Path, compression: int, copied: int) -> None:
    """Also where no entry has the flag that says that a cluster is used once, as an image with a snapshot."""
    is_zstd = compression == 1
    features = 8 if is_zstd else 0
    packed, other = Packed(RANDOM[:9999].ljust(CLUSTER_BYTES, b"x"), is_zstd), Packed(filled(5), is_zstd)
    clusters: dict[int, Any] = {0: filled(1), 1: filled(2), 2: None, 3: Masked(filled(3)), 5: packed, 6: other}
    clusters.update({7: filled(7), TABLE_CLUSTERS + 3: filled(8), TABLE_CLUSTERS * 2 - 1: None})
    Image(2 * TABLE_BYTES, clusters, features=features, compression=compression, copied=copied).write(path)
    zeros = dict.fromkeys((2, 3, TABLE_CLUSTERS * 2 - 1))
    assert held(path) == {
        0: filled(1),
        1: filled(2),
        5: packed.content,
        6: other.content,
        7: filled(7),
        TABLE_CLUSTERS + 3: filled(8),
        **zeros,
    }


def test_runs_are_followed(path: Path) -> None:
    """Clusters that follow each other on the disk and in the file are one extent."""
    Image(SIZE_BYTES, {0: filled(1), 1: filled(2), 2: None, 3: None, 4: filled(3), 9: filled(4)}).write(path)
    first = 5 * CLUSTER_BYTES
    with Qcow2Layer(path) as layer:
        assert layer.extents(0) == [
            Extent(0, 2, first),
            Extent(2, 2, None),
            Extent(4, 1, first + 2 * CLUSTER_BYTES),
            Extent(9, 1, first + 3 * CLUSTER_BYTES),
        ]
        assert bytes(layer.read(layer.extents(0)[0], 1, 1)) == filled(2)


def test_version_two(path: Path) -> None:
    """qemu-img create -o compat=0.10: no clusters of zeros, and none of the later members in the header."""
    Image(SIZE_BYTES, {0: filled(1), 3: Packed(filled(2))}, version=2, backing="../base/vda.qcow2").write(path)
    assert held(path) == {0: filled(1), 3: filled(2)}
    for masked in (None, Masked(filled(1))):
        Image(SIZE_BYTES, {0: masked}, version=2).write(path)
        with pytest.raises(ChainError, match="damaged"):
            held(path)


@pytest.mark.parametrize("size_bytes", [0, 1, CLUSTER_BYTES + 1, TABLE_BYTES + 512])
def test_sizes(path: Path, size_bytes: int) -> None:
    Image(size_bytes, {}).write(path)
    assert held(path) == {}


def test_last_cluster_that_the_file_does_not_have_whole(path: Path) -> None:
    """A compressed one ends anywhere, and so may the last one of data: QEMU reads zeros there."""
    packed = Packed(RANDOM)
    Image(SIZE_BYTES, {0: packed}).write(path)
    assert held(path) == {0: RANDOM}
    Image(SIZE_BYTES, {0: filled(1), 1: filled(2)[:5000]}).write(path)
    assert held(path) == {0: filled(1), 1: filled(2)[:5000].ljust(CLUSTER_BYTES, b"\0")}


def test_short_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image(SIZE_BYTES, {0: RANDOM, 1: Packed(filled(5))}).write(path)
    really = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: really(fd, min(length, 4097), offset))
    assert held(path) == {0: RANDOM, 1: filled(5)}


def test_header_is_of_the_file_that_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge can exchange an image at any moment; who has opened the old one goes on with it."""
    Image(SIZE_BYTES, {0: filled(1)}).write(path)
    other = Image(2 * SIZE_BYTES, {0: filled(2)}).write(path.with_name("other"))
    with Qcow2Layer(path) as layer:
        other.replace(path)
        assert layer.virtual_size_bytes == SIZE_BYTES
        assert bytes(layer.read(layer.extents(0)[0], 0, 1)) == filled(1)


def test_structure_is_all_but_content(path: Path) -> None:
    def structure() -> bytes:
        with Qcow2Layer(path) as layer:
            return b"".join(layer.structure())

    Image(SIZE_BYTES, {0: filled(1)}).write(path)
    before = structure()
    Image(SIZE_BYTES, {0: filled(2)}).write(path)
    assert structure() == before
    for cluster in (0, 1, 2, 3, 4):  # header, refcount table and block, L1, L2
        Image(SIZE_BYTES, {0: filled(1)}).write(path)
        with path.open("r+b") as file:
            file.seek(cluster * CLUSTER_BYTES + (60000 if cluster in (0, 2, 4) else 4))
            file.write(b"\0\2" if cluster == 3 else b"\0\0\2\0")
        if cluster in (1, 3):  # the table is elsewhere now
            continue
        assert structure() != before, cluster


def test_structure_with_refcounts_of_other_sizes(path: Path) -> None:
    """They are digested as they are, whatever their order."""
    Image(SIZE_BYTES, {0: filled(1)}).write(path)
    with path.open("r+b") as file:
        file.seek(96)
        file.write(b"\0\0\0\6")
    assert held(path) == {0: filled(1)}


# what is damaged or hostile


def zstd_bomb() -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(bytes(256 * MIB))


FAR = 1 << 40
DAMAGED: dict[str, Image] = {
    "corrupt mark": Image(SIZE_BYTES, {}, features=2),
    "data file": Image(SIZE_BYTES, {}, features=4),
    "extended L2 entries": Image(SIZE_BYTES, {}, features=16),
    "unknown feature": Image(SIZE_BYTES, {}, features=1 << 40),
    "encrypted": Image(SIZE_BYTES, {}, crypt_method=2),
    "unknown compression": Image(SIZE_BYTES, {}, features=8, compression=9),
    "disk that is huge": Image(1 << 62, {}, l1_entries=1),
    "L1 table that is too small": Image(2 * TABLE_BYTES, {}, l1_entries=1),
    "L1 table that is huge": Image(SIZE_BYTES, {}, l1_entries=0xFFFF_FFFF),
    "L1 table of more than QEMU takes": Image(SIZE_BYTES, {}, l1_entries=(32 * MIB >> 3) + 1),
    "L1 table out of the file": Image(SIZE_BYTES, {}, l1_offset=FAR),
    "L1 table at a huge place": Image(SIZE_BYTES, {}, l1_offset=(1 << 64) - 8),
    "L2 table out of the file": Image(SIZE_BYTES, {0: None}, l1={0: FAR}),
    "L2 table not at a cluster": Image(SIZE_BYTES, {0: None}, l1={0: 4 * CLUSTER_BYTES + 512}),
    "L2 table twice": Image(2 * TABLE_BYTES, {0: None}, l1={1: 4 * CLUSTER_BYTES | COPIED}),
    "L2 table beyond the end": Image(SIZE_BYTES, {0: None}, l1_entries=5, l1={4: 4 * CLUSTER_BYTES}),
    "data out of the file": Image(SIZE_BYTES, {0: FAR | COPIED}),
    "data at a huge place": Image(SIZE_BYTES, {0: 0x00FF_FFFF_FFFF_0000}),
    "data not at a cluster": Image(SIZE_BYTES, {0: 5 * CLUSTER_BYTES + 512}, end=filled(1) * 2),
    "data in the header": Image(SIZE_BYTES, {0: COPIED}),
    "compressed out of the file": Image(SIZE_BYTES, {0: COMPRESSED | FAR}),
    "compressed that is the header": Image(SIZE_BYTES, {0: COMPRESSED}),
    "compressed that is none": Image(SIZE_BYTES, {0: COMPRESSED | 0xFF << 54 | 5 * CLUSTER_BYTES}, end=RANDOM * 3),
    "compressed that is too short": Image(SIZE_BYTES, {0: Packed(bytes(100))}),
    "zstd that is none": Image(SIZE_BYTES, {0: COMPRESSED | 5 * CLUSTER_BYTES}, features=8, compression=1, end=RANDOM),
    "zstd that is too short": Image(SIZE_BYTES, {0: Packed(bytes(100), is_zstd=True)}, features=8, compression=1),
    "refcount table of no cluster": Image(SIZE_BYTES, {}, refcount_clusters=0),
    "refcount table that is huge": Image(SIZE_BYTES, {}, refcount_clusters=0xFFFF_FFFF),
    "refcount table out of the file": Image(SIZE_BYTES, {}, refcount_offset=FAR),
    "refcount block out of the file": Image(SIZE_BYTES, {}, refcount_table={0: FAR}),
    "refcount block twice": Image(SIZE_BYTES, {}, refcount_table=dict.fromkeys(range(8192), 2 * CLUSTER_BYTES)),
}


@pytest.mark.parametrize("image", DAMAGED.values(), ids=DAMAGED)
def test_damaged_image_is_refused(path: Path, image: Image) -> None:
    image.write(path)
    tracemalloc.start()
    try:
        with pytest.raises(ChainError) as caught:
            held(path)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "copy of the repository" in str(caught.value) or "cannot be read" in str(caught.value)


def test_what_unpacks_to_far_more_than_a_cluster_costs_no_memory(path: Path) -> None:
    """QEMU takes the first 64 KiB of it, and so is it here."""
    bomb = zstd_bomb()
    entry = COMPRESSED | (len(bomb) + 511) // 512 << 54 | 5 * CLUSTER_BYTES
    Image(SIZE_BYTES, {0: entry}, features=8, compression=1, end=bomb).write(path)
    tracemalloc.start()
    try:
        with suppress(ChainError):
            assert held(path) == {0: bytes(CLUSTER_BYTES)}
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [0, 1, 60, 104, CLUSTER_BYTES, 3 * CLUSTER_BYTES + 3, 5 * CLUSTER_BYTES])
def test_truncated_image_is_refused(path: Path, length: int) -> None:
    Image(SIZE_BYTES, {0: filled(1)}).write(path)
    os.truncate(path, length)
    with pytest.raises(ChainError):
        held(path)


@given(st.data())
def test_any_change_of_any_table_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.qcow2"
    Image(SIZE_BYTES, {0: filled(1), 1: None, 2: Packed(filled(3)), 4: Masked(filled(4))}).write(path)
    with path.open("r+b") as file:
        for _ in range(data.draw(st.integers(1, 4))):
            cluster = data.draw(st.sampled_from([0, 0, 1, 3, 4, 4]))
            file.seek(cluster * CLUSTER_BYTES + data.draw(st.integers(0, 120)))
            file.write(data.draw(st.binary(min_size=1, max_size=9)))
    with suppress(ChainError):
        held(path)


def test_bad_sector_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image(SIZE_BYTES, {0: filled(1)}).write(path)

    def fails(_fd: int, _where: object, _offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    with Qcow2Layer(path) as layer:
        extent = layer.extents(0)[0]
        monkeypatch.setattr(os, "preadv", fails)
        with pytest.raises(ChainError, match="cannot be read: Input/output error"):
            layer.read(extent, 0, 1)


def test_only_images_compressed_with_zstd_need_zstandard(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is no damage: whoever reads on after damage must not take it for that."""
    monkeypatch.setitem(sys.modules, "zstandard", None)  # import raises ImportError
    Image(SIZE_BYTES, {0: Packed(filled(1))}).write(path)
    assert held(path) == {0: filled(1)}
    Image(SIZE_BYTES, {0: None}, features=8, compression=1).write(path)
    with pytest.raises(MissingPackageError, match=r"vda.qcow2 is compressed with zstd.*python3-zstandard"):
        Qcow2Layer(path)


# many terabytes


def test_forty_tebibytes_with_little_in_them(path: Path) -> None:
    last = 40 * TIB // CLUSTER_BYTES - 1
    Image(40 * TIB, {0: filled(1), last: filled(2)}).write(path)
    tracemalloc.start()
    try:
        assert held(path) == {0: filled(1), last: filled(2)}
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()
