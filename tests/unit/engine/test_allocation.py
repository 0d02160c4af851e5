"""How a full finds what to copy depends on the disk's layers, and on how much of it is not allocated."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit import builders
from tests.unit.builders import REPOSITORY, backup_id, layer
from vbackup.engine import allocation
from vbackup.engine.allocation import ALL, LONG_BYTES, WORTH_BYTES, WORTH_UNTOLD_BYTES, Allocation
from vbackup.model import BlockDriver, Layer
from vbackup.names import Naming
from vbackup.qapi.actions import MirrorSyncMode

TIB = 1 << 40


def of(*layers: Layer, **more: Any) -> Allocation:
    return allocation.of_full(builders.node(*layers), backup_id=backup_id(1), naming=Naming(REPOSITORY), **more)


def one(size_bytes: int = 40 * TIB, allocated_bytes: int | None = 1 << 20, **changes: Any) -> Layer:
    return layer(virtual_size_bytes=size_bytes, allocated_bytes=allocated_bytes, **changes)


@pytest.mark.parametrize("size_bytes", [1 << 20, LONG_BYTES - 1])
def test_image_without_a_backing_file_is_copied_as_far_as_it_is_allocated(size_bytes: int) -> None:
    assert of(one(size_bytes)) == Allocation(MirrorSyncMode.TOP)


def test_looking_at_a_very_large_one_is_not_left_to_the_moment_of_the_backup() -> None:
    assert [layer.bitmap.node_name for layer in of(one(LONG_BYTES, node_name="a")).layers] == ["a"]
    assert of(one(LONG_BYTES, LONG_BYTES - 1)) == Allocation(MirrorSyncMode.TOP)


def test_chain_is_copied_by_bitmaps_of_its_layers() -> None:
    found = of(one(node_name="a"), one(node_name="b"))
    assert found.sync is MirrorSyncMode.BITMAP
    assert [(one.bitmap.node_name, one.bitmap.bitmap) for one in found.layers] == [
        (name, Naming(REPOSITORY).allocation_bitmap(backup_id(1), "vda")) for name in ("a", "b")
    ]


def test_removing_a_bitmap_of_a_layer_by_its_name_leaves_those_on_nodes_of_ours() -> None:
    found = of(one(node_name="a"), one(TIB, node_name="b"), index=3)
    assert [(layer.bitmap.node_name, layer.size_bytes) for layer in found.layers] == [("a", 40 * TIB), ("b", TIB)]
    naming = Naming(REPOSITORY)
    assert [found.extended.node_name, found.file_data.node_name] == [naming.extended_node(3), naming.file_data_node(3)]
    assert not {found.extended.bitmap, found.file_data.bitmap} & {layer.bitmap.bitmap for layer in found.layers}


def test_layer_below_that_is_larger_is_not_asked() -> None:
    assert of(one(2 * TIB), one(3 * TIB)) == ALL


def test_it_has_to_be_worth_the_commands() -> None:
    size_bytes = WORTH_BYTES + (2 << 20)
    assert of(one(size_bytes), one(size_bytes)).layers
    assert of(one(size_bytes - 1), one(size_bytes - 1)) == ALL
    assert of(one(size_bytes), one(size_bytes, allocated_bytes=size_bytes // 2)) == ALL


@pytest.mark.parametrize("driver", ["raw", "file"])
def test_raw_image_counts_as_far_as_its_file_takes_storage(driver: str) -> None:
    """libvirt 11 opens it without a node of the raw format."""
    raw = one(driver=BlockDriver(driver), filename="/images/vda.raw")
    assert [layer.raw_path for layer in of(raw).layers] == ["/images/vda.raw"]
    assert [layer.raw_path for layer in of(one(), raw).layers] == [None, "/images/vda.raw"]


@pytest.mark.parametrize(
    "changes",
    [{"filename": 'json:{"driver":"raw","offset":512}'}, {"allocated_bytes": 0}, {"allocated_bytes": None}],
    ids=["part of a file", "block device", "unknown"],
)
def test_other_raw_images_count_up_to_their_size(changes: dict[str, Any]) -> None:
    assert of(one(driver=BlockDriver.RAW, **changes)) == ALL
    assert of(one(), one(driver=BlockDriver.RAW, **changes)) == ALL
    assert of(one(), one(TIB, driver=BlockDriver.RAW, **changes)).layers


def test_view_is_copied_by_bitmaps_even_of_one_layer() -> None:
    assert of(one(), has_view=True).sync is MirrorSyncMode.BITMAP
    small = one(WORTH_UNTOLD_BYTES + (1 << 20))
    assert of(small, has_view=True) == ALL
    assert of(small, has_view=True, tells_zeros=False).sync is MirrorSyncMode.BITMAP


@pytest.mark.parametrize("driver", [BlockDriver("luks"), BlockDriver("vmdk")])
def test_other_formats_are_read_as_a_whole(driver: BlockDriver) -> None:
    assert of(one(driver=driver)) == ALL
    assert of(one(), one(driver=BlockDriver("qed"))) == ALL
