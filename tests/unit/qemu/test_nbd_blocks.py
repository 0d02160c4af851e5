"""Extents out of two descriptions of the same disk: any of them, at any place, in any pieces."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_nbd import FakeNbd
from vbackup.errors import MalformedError
from vbackup.qemu import nbd_blocks
from vbackup.qemu.nbd_blocks import Extent, NbdBlocks
from vbackup.qemu.nbd_client import ALLOCATION, DIRTY, HOLE, ZERO

BITMAP = "qemu:dirty-bitmap:b"
KIB = 1024


def fake(path: Path, bitmap: Sequence[tuple[int, int]], allocation: Sequence[tuple[int, int]], **more: int) -> FakeNbd:
    contexts: Mapping[str, Sequence[tuple[int, int]]] = {BITMAP: bitmap, ALLOCATION: allocation}
    return FakeNbd(path / "nbd", bytes(sum(length for length, _ in allocation)), contexts, **more)  # type: ignore[arg-type]


def test_changed_extents_say_which_of_them_are_zeros(tmp_path: Path) -> None:
    bitmap = [(64 * KIB, 0), (128 * KIB, DIRTY), (64 * KIB, 0)]
    allocation = [(96 * KIB, 0), (64 * KIB, HOLE | ZERO), (96 * KIB, 0)]
    with fake(tmp_path, bitmap, allocation) as server, NbdBlocks(server.address, bitmap=BITMAP) as blocks:
        assert blocks.size_bytes == 256 * KIB
        assert list(blocks.changed(0, 256 * KIB)) == [
            Extent(64 * KIB, 32 * KIB, is_dirty=True, is_zero=False),
            Extent(96 * KIB, 64 * KIB, is_dirty=True, is_zero=True),
            Extent(160 * KIB, 32 * KIB, is_dirty=True, is_zero=False),
        ]
        assert list(blocks.allocated(0, 256 * KIB)) == [
            Extent(0, 64 * KIB, is_dirty=False, is_zero=False),
            Extent(64 * KIB, 32 * KIB, is_dirty=True, is_zero=False),
            Extent(160 * KIB, 32 * KIB, is_dirty=True, is_zero=False),
            Extent(192 * KIB, 64 * KIB, is_dirty=False, is_zero=False),
        ]


def test_all_of_a_disk_without_a_base_is_dirty(tmp_path: Path) -> None:
    allocation = [(64 * KIB, 0), (64 * KIB, ZERO)]
    with fake(tmp_path, [], allocation) as server, NbdBlocks(server.address, bitmap=None) as blocks:
        assert list(blocks.changed(512, 96 * KIB)) == [
            Extent(512, 64 * KIB - 512, is_dirty=True, is_zero=False),
            Extent(64 * KIB, 32 * KIB, is_dirty=True, is_zero=True),
        ]
        assert list(blocks.changed(0, 0)) == []
        assert server.connections == 1


def test_what_a_disk_has_grown_by_is_dirty(tmp_path: Path) -> None:
    bitmap, allocation = [(64 * KIB, DIRTY), (192 * KIB, 0)], [(256 * KIB, ZERO)]
    with (
        fake(tmp_path, bitmap, allocation) as server,
        NbdBlocks(server.address, bitmap=BITMAP, base_size_bytes=128 * KIB) as blocks,
    ):
        assert list(blocks.changed(0, 256 * KIB)) == [
            Extent(0, 64 * KIB, is_dirty=True, is_zero=True),
            Extent(128 * KIB, 128 * KIB, is_dirty=True, is_zero=True),
        ]
        assert list(blocks.changed(200 * KIB, 256 * KIB)) == [Extent(200 * KIB, 56 * KIB, is_dirty=True, is_zero=True)]


def test_allocation_is_asked_about_what_is_dirty_only(tmp_path: Path) -> None:
    mib = KIB * KIB
    bitmap = [(2 * mib, 0), (64 * KIB, DIRTY), (mib, 0), (64 * KIB, DIRTY), (6 * mib, 0), (64 * KIB, DIRTY), (mib, 0)]
    size = sum(length for length, _ in bitmap)
    with (
        fake(tmp_path, bitmap, [(size, 0)]) as server,
        NbdBlocks(server.address, bitmap=BITMAP) as blocks,
    ):
        assert len(list(blocks.changed(0, size))) == 3
        asked = [(start, length) for context, start, length in server.asked if context == ALLOCATION]
        assert asked == [(2 * mib, mib + 128 * KIB), (9 * mib + 128 * KIB, 64 * KIB)]


def test_bitmap_that_is_not_exported_is_an_error(tmp_path: Path) -> None:
    with (
        fake(tmp_path, [], [(KIB, 0)]) as server,
        pytest.raises(MalformedError, match="no metadata context qemu:dirty-bitmap:other of vda"),
        NbdBlocks(server.address, bitmap="qemu:dirty-bitmap:other"),
    ):
        pass


UNIT = 512
FLAGS = st.lists(st.integers(0, 1), min_size=48, max_size=48)


def described(flags: Sequence[int], set_to: int) -> list[tuple[int, int]]:
    return [(UNIT, set_to if flag else 0) for flag in flags]


@pytest.fixture(params=[nbd_blocks.MAX_GAP_BYTES, UNIT], ids=["long gaps", "short gaps"])
def _gaps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_blocks, "MAX_GAP_BYTES", request.param)
    monkeypatch.setattr(nbd_blocks, "_MAX_TOGETHER", 5)


@pytest.mark.usefixtures("_gaps")
@settings(max_examples=40, deadline=None)
@given(FLAGS, FLAGS, st.integers(0, 48 * UNIT), st.integers(0, 48 * UNIT), st.integers(1, 7))
def test_extents_are_what_each_byte_is(dirty: list[int], zero: list[int], one: int, other: int, answer: int) -> None:
    start, end = sorted((one, other))
    with (
        tempfile.TemporaryDirectory() as directory,
        fake(Path(directory), described(dirty, DIRTY), described(zero, HOLE | ZERO), max_extents=answer) as server,
        NbdBlocks(server.address, bitmap=BITMAP) as blocks,
    ):
        for extents, is_listed in (
            (list(blocks.changed(start, end)), lambda unit: bool(dirty[unit])),
            (list(blocks.allocated(start, end)), lambda unit: not zero[unit]),
        ):
            told = {
                at: (extent.is_dirty, extent.is_zero)
                for extent in extents
                for at in range(extent.start_bytes, extent.end_bytes)
            }
            assert told == {
                at: (bool(dirty[at // UNIT]), bool(zero[at // UNIT]))
                for at in range(start, end)
                if is_listed(at // UNIT)
            }
            for before, after in zip(extents, extents[1:]):
                assert before.end_bytes < after.start_bytes or (
                    before.end_bytes == after.start_bytes and before[2:] != after[2:]
                )
