"""The terms of vbackup: what follows from facts that are read once and never change."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from tests.unit import builders
from tests.unit.builders import backup, bitmap, image, layer
from vbackup import model
from vbackup.model import QEMUS_OWN, BlockDriver, NodeOptions, SecretRef


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "recording"),
        ({"recording": False}, "disabled"),
        ({"busy": True}, "busy"),
        ({"busy": True, "recording": False}, "busy"),
        ({"inconsistent": True, "busy": True}, "inconsistent"),
    ],
)
def test_state_of_a_bitmap_is_its_gravest_flaw(changes: dict[str, bool], state: str) -> None:
    assert bitmap("b", **changes).state == state


@pytest.mark.parametrize(
    ("driver", "lasting", "bears"),
    [("qcow2", True, True), ("qcow2", False, True), ("raw", True, True), ("raw", False, False)],
)
def test_raw_disk_of_a_storage_daemon_bears_no_checkpoint(driver: str, lasting: bool, bears: bool) -> None:
    node = replace(builders.node(layer(driver=BlockDriver(driver))), lasting=lasting)
    assert node.bears_checkpoints == bears
    assert node.keeps_bitmaps == (driver == "qcow2")


def test_disk_that_is_only_read_bears_no_checkpoint() -> None:
    node = replace(builders.node(), read_only_reason="its image cannot be written")
    assert (node.keeps_bitmaps, node.bears_checkpoints) == (False, False)


def test_guest_writes_to_the_first_layer() -> None:
    node = builders.node(layer(node_name="overlay"), layer(node_name="below", read_only=True))
    assert node.top.node_name == "overlay"


def test_node_options_of_qemu_itself_are_not_written() -> None:
    assert QEMUS_OWN.members() == {}
    assert NodeOptions(no_flush=True, detect_zeroes=True).members() == {
        "cache": {"no-flush": True},
        "detect-zeroes": "on",
    }


def test_image_of_a_backup_is_found_by_its_disk() -> None:
    one = backup(1, image("vda"), image("vdb"))
    assert one.image("vdb") == one.disks[1]
    assert one.image("vdc") is None


def test_secret_is_shown_by_its_uuid_or_its_usage() -> None:
    assert str(SecretRef(uuid="5ec4e700-0000-4000-8000-000000000001")) == "5ec4e700-0000-4000-8000-000000000001"
    assert str(SecretRef(usage="/images/vda.qcow2")) == "with the usage /images/vda.qcow2"


def test_every_fact_is_frozen() -> None:
    classes = [
        one for one in vars(model).values() if dataclasses.is_dataclass(one) and one.__module__ == model.__name__
    ]
    assert len(classes) > 10
    assert [one for one in classes if not one.__dataclass_params__.frozen] == []  # type: ignore[attr-defined]
