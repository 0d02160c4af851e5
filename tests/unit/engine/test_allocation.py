"""How a full finds what to copy depends on the disk's layers, and on how much of it is not allocated."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit import builders
from tests.unit.builders import REPOSITORY, backup_id, layer
from vbackup.engine import allocation
from vbackup.engine.allocation import ALL, WORTH_BYTES, WORTH_UNTOLD_BYTES, Allocation
from vbackup.model import BlockDriver, Layer
from vbackup.names import Naming
from vbackup.qapi.actions import MirrorSyncMode

TIB = 1 << 40


def of(*layers: Layer, **more: Any) -> Allocation:
    return allocation.of_full(builders.node(*layers), backup_id=backup_id(1), naming=Naming(REPOSITORY), **more)


def one(size_bytes: int = 40 * TIB, allocated_bytes: int | None = 1 << 20, **changes: Any) -> Layer:
    return layer(virtual_size_bytes=size_bytes, allocated_bytes=allocated_bytes, **changes)


@pytest.mark.parametrize("size_bytes", [1 << 20, 40 * TIB])
def test_image_without_a_backing_file_is_copied_as_far_as_it_is_allocated(size_bytes: int) -> None:
    assert of(one(size_bytes)) == Allocation(MirrorSyncMode.TOP)


def test_chain_is_copied_by_bitmaps_of_its_layers() -> None:
    found = of(one(node_name="a"), one(node_name="b"))
    assert found.sync is MirrorSyncMode.BITMAP
    assert [(bitmap.node_name, bitmap.bitmap) for bitmap in found.bitmaps] == [
        (name, Naming(REPOSITORY).allocation_bitmap(backup_id(1), "vda")) for name in ("a", "b")
    ]


def test_layers_that_are_smaller_have_a_bitmap_together_on_a_node_as_large_as_the_disk() -> None:
    found = of(one(node_name="a"), one(TIB, node_name="b"), one(2 * TIB, node_name="c"), index=3)
    assert [bitmap.node_name for bitmap in found.bitmaps] == ["a", Naming(REPOSITORY).allocation_node(3)]
    assert [smaller.bitmap.node_name for smaller in found.smaller] == ["b", "c"]
    assert len({bitmap.bitmap for bitmap in found.bitmaps}) == 2, "removing one by its name must leave the other"


def test_layer_below_that_is_larger_is_not_asked() -> None:
    assert of(one(2 * TIB), one(3 * TIB)) == ALL


def test_it_has_to_be_worth_the_commands() -> None:
    size_bytes = WORTH_BYTES + (2 << 20)
    assert of(one(size_bytes), one(size_bytes)).bitmaps
    assert of(one(size_bytes - 1), one(size_bytes - 1)) == ALL
    assert of(one(size_bytes), one(size_bytes, allocated_bytes=size_bytes // 2)) == ALL


def test_raw_image_below_counts_up_to_its_size() -> None:
    assert of(one(), one(TIB, driver=BlockDriver.RAW)).bitmaps
    assert of(one(), one(40 * TIB, driver=BlockDriver.RAW)) == ALL
    assert of(one(), one(allocated_bytes=None)) == ALL


def test_view_is_copied_by_bitmaps_even_of_one_layer() -> None:
    assert of(one(), has_view=True).sync is MirrorSyncMode.BITMAP
    small = one(WORTH_UNTOLD_BYTES + (1 << 20))
    assert of(small, has_view=True) == ALL
    assert of(small, has_view=True, tells_zeros=False).sync is MirrorSyncMode.BITMAP


@pytest.mark.parametrize("driver", [BlockDriver.RAW, BlockDriver("vmdk")])
def test_other_formats_are_read_as_a_whole(driver: BlockDriver) -> None:
    assert of(one(driver=driver)) == ALL
    assert of(one(), one(driver=BlockDriver("qed"))) == ALL
