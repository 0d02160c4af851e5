"""One disk's part of the transactions: what it adds, merges, removes and copies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit import builders
from tests.unit.builders import REPOSITORY, TOKEN, end_mark, layer
from tests.unit.engine.plans import SECOND, make, since, vda, vdb, whole
from vbackup import names
from vbackup.engine.plan import FleecingAbilities
from vbackup.model import BlockDriver, Compression, Level

# the transaction


def test_full_adds_the_checkpoint_and_copies_all() -> None:
    made = make([(vda(), whole())], Level.FULL)
    job = f"vbackup-{REPOSITORY}-20261123T120000Z-full-vda"
    name = f"{job}-{TOKEN}"
    assert made.transaction() == [
        {
            "type": "block-dirty-bitmap-add",
            "data": {"node": "libvirt-2-format", "name": name, "granularity": 65536, "persistent": True},
        },
        {
            "type": "blockdev-backup",
            "data": {
                "job-id": job,
                "device": "libvirt-2-format",
                "target": f"vbackup-{REPOSITORY}-vda",
                "sync": "top",
                "auto-finalize": False,
                "auto-dismiss": False,
                "x-perf": {"max-workers": 16, "max-chunk": 524288},
            },
        },
    ]


def test_incremental_copies_what_a_frozen_union_of_the_changes_tells() -> None:
    """Add the new checkpoint; add and fill the working bitmap, which records nothing; copy by it and leave it."""
    made = make([(vda(), since(SECOND, "libvirt-2-format", "libvirt-3-format"))])
    job = f"vbackup-{REPOSITORY}-20261123T120000Z-incremental-vda"
    name = f"{job}-{TOKEN}"
    base = f"vbackup-{REPOSITORY}-{SECOND.id}-vda-{TOKEN}"
    assert made.transaction() == [
        {
            "type": "block-dirty-bitmap-add",
            "data": {"node": "libvirt-2-format", "name": name, "granularity": 65536, "persistent": True},
        },
        {
            "type": "block-dirty-bitmap-add",
            "data": {
                "node": "libvirt-2-format",
                "name": f"{job}-working",
                "granularity": 65536,
                "disabled": True,
            },
        },
        {
            "type": "block-dirty-bitmap-merge",
            "data": {
                "node": "libvirt-2-format",
                "target": f"{job}-working",
                "bitmaps": [
                    {"node": "libvirt-2-format", "name": base},
                    {"node": "libvirt-3-format", "name": base},
                ],
            },
        },
        {
            "type": "blockdev-backup",
            "data": {
                "job-id": job,
                "device": "libvirt-2-format",
                "target": f"vbackup-{REPOSITORY}-vda",
                "sync": "bitmap",
                "bitmap": f"{job}-working",
                "bitmap-mode": "never",
                "auto-finalize": False,
                "auto-dismiss": False,
                "x-perf": {"max-workers": 16, "max-chunk": 524288},
            },
        },
    ]


def test_copy_touches_no_bitmap() -> None:
    made = make([(vda(), whole(Level.COPY))], Level.COPY)
    assert [action["type"] for action in made.transaction()] == ["blockdev-backup"]
    assert (made.disks[0].bitmap, made.disks[0].working_bitmap) == (None, None)


@pytest.mark.parametrize("changes", [{"driver": BlockDriver.RAW}, {"stores_bitmaps": False}])
def test_image_that_stores_no_bitmaps_gets_one_for_as_long_as_qemu_lives(changes: dict[str, Any]) -> None:
    add = make([(vda(**changes), whole())], Level.FULL).transaction()[0]
    assert "persistent" not in add["data"]


def test_base_is_never_touched() -> None:
    """It goes on recording, so that a failed backup costs nothing."""
    made = make([(vda(), since(SECOND, "libvirt-2-format"))])
    base = f"vbackup-{REPOSITORY}-{SECOND.id}-vda-{TOKEN}"
    touching = [action for action in made.transaction() if base in str(action["data"].get("name", ""))]
    assert touching == []


def test_speed_and_compression_are_of_every_job() -> None:
    made = make([(vda(), whole()), (vdb(), whole())], Level.FULL, compression=Compression.ZSTD, speed_bytes_s=1000)
    jobs = [action["data"] for action in made.transaction() if action["type"] == "blockdev-backup"]
    assert [(job["speed"], job["compress"]) for job in jobs] == [(1000, True), (1000, True)]


# fleecing areas


@pytest.mark.parametrize(("spares_guest", "policy"), [(False, None), (True, "break-snapshot")])
def test_guest_waits_for_the_fleecing_area_and_the_view_is_copied(spares_guest: bool, policy: str | None) -> None:
    abilities = FleecingAbilities(spares_guest=spares_guest, tells_zeros=True)
    made = make([(vda(), whole()), (vdb(), whole())], fleecing=abilities, speed_bytes_s=1000)
    aside = [one["data"] for one in made.transaction() if one["type"] == "blockdev-backup"]
    assert [(one["sync"], one.get("on-cbw-error"), "speed" in one) for one in aside] == [("none", policy, False)] * 2
    copies = [one["data"] for one in made.copies()]
    assert [(one["sync"], one["device"]) for one in copies] == [
        ("full", names.Naming(REPOSITORY).fleecing_view(index)) for index in (0, 1)
    ]
    assert [one["speed"] for one in copies] == [1000, 1000]
    assert all("on-cbw-error" not in one for one in copies), "a copy would not notice"


def test_without_a_fleecing_area_there_is_one_transaction() -> None:
    made = make([(vda(), whole())])
    assert made.copies() == []
    assert [one["data"]["sync"] for one in made.transaction() if one["type"] == "blockdev-backup"] == ["top"]


@pytest.mark.parametrize(
    ("more", "shared"),
    [({}, True), ({"compression": Compression.ZSTD}, False), ({"fleecing": FleecingAbilities(True, True)}, False)],
    ids=["plain", "compressed", "of a view"],
)
def test_image_shares_data_with_the_disk_only_if_that_is_allowed_and_possible(
    more: dict[str, Any], shared: bool
) -> None:
    for allowed in (True, False):
        made = make([(vda(), whole())], allow_reflink=allowed, **more)
        actions = made.copies() or made.transaction()
        (perf,) = [one["data"]["x-perf"] for one in actions if "x-perf" in one["data"]]
        assert perf.get("use-copy-range") == (True if shared and allowed else None)


def test_disk_on_the_network_is_copied_with_the_defaults_of_qemu() -> None:
    """It takes long to answer, and 8 MiB on their way are not enough then."""
    node = vda()
    remote = replace(node, disk=replace(node.disk, path=None))
    (job,) = [one for one in make([(remote, whole())]).transaction() if one["type"] == "blockdev-backup"]
    assert "x-perf" not in job["data"]
    made = make([(remote, whole())], fleecing=FleecingAbilities(True, True))
    assert [one["data"]["x-perf"] for one in made.copies()] == [{"max-workers": 16}]


# what a full copies by


def test_full_of_a_chain_is_copied_by_what_its_layers_had_before_and_the_guest_wrote_since() -> None:
    """The bitmaps on the layers have served when the working bitmap is merged from them."""
    huge: dict[str, Any] = {"virtual_size_bytes": 40 << 40, "allocated_bytes": 1 << 20}
    base = layer(node_name="libvirt-3-format", **{**huge, "virtual_size_bytes": 3 << 40})
    node = builders.node(layer(end_mark("vda", 40 << 40), node_name="libvirt-2-format", **huge), base)
    made = make([(node, whole())], Level.FULL)
    job = f"vbackup-{REPOSITORY}-20261123T120000Z-full-vda"
    allocation = made.disks[0].allocation
    asked = replace(allocation, sources=(allocation.layers[0].bitmap, allocation.extended))
    made = replace(made, disks=(replace(made.disks[0], allocation=asked),))
    kinds = [one["type"].removeprefix("block-dirty-") for one in made.transaction()]
    assert kinds == ["bitmap-add", "bitmap-add", "bitmap-merge", "bitmap-remove", "bitmap-remove", "blockdev-backup"]
    merged, removed, removed_below, copy = (one["data"] for one in made.transaction()[2:])
    assert merged["bitmaps"] == [
        {"node": "libvirt-2-format", "name": f"{job}-allocated"},
        {"node": f"vbackup-{REPOSITORY}-alloc.0", "name": f"{job}-allocation"},
    ]
    assert removed == {"node": "libvirt-2-format", "name": f"{job}-allocated"}
    assert removed_below == {"node": "libvirt-3-format", "name": f"{job}-allocated"}
    assert (copy["sync"], copy["bitmap"], copy["bitmap-mode"]) == ("bitmap", f"{job}-working", "never")
    assert made.disks[0].draft().level is Level.FULL
