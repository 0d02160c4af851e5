"""The plan names everything and puts the transaction together; nothing is touched."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.unit import builders
from tests.unit.builders import NOON, REPOSITORY, TOKEN, UUID, domain, end_mark, layer
from tests.unit.engine.plans import FULL, SECOND, make, whole
from vbackup import names
from vbackup.engine import plan
from vbackup.engine.base import Choice
from vbackup.errors import DiskError, UnsuitableError
from vbackup.model import BlockDriver, Compression, DiskNode, LeftOut, Level, NodeBitmap
from vbackup.repository.history import History


def vda(**changes: Any) -> DiskNode:
    return builders.node(layer(end_mark("vda"), node_name="libvirt-2-format", **changes))


def vdb(**changes: Any) -> DiskNode:
    return builders.node(layer(end_mark("vdb"), node_name="libvirt-1-format", **changes), dev="vdb")


def since(base: Any, *nodes: str, dev: str = "vda") -> Choice:
    sources = tuple(NodeBitmap(node, names.Naming(REPOSITORY).bitmap(base.id, dev, TOKEN)) for node in nodes)
    return Choice(Level.INCREMENTAL, base, sources, f"changes since {base.id}")


# which disks


def test_all_disks_unless_told_otherwise() -> None:
    selection = plan.select(domain("vda", "vdb", left_out=[LeftOut("hda", "cdrom")]), (), ())
    assert [disk.dev for disk in selection.disks] == ["vda", "vdb"]
    assert selection.left_out == (LeftOut("hda", "cdrom"),)


def test_only_the_wanted_disks_in_their_own_order() -> None:
    selection = plan.select(domain("vda", "vdb", "vdc"), ("vdc", "vda"), ())
    assert [disk.dev for disk in selection.disks] == ["vda", "vdc"]
    assert selection.left_out == (LeftOut("vdb", "excluded by the user"),)


def test_excluded_disks_are_left_out() -> None:
    selection = plan.select(domain("vda", "vdb"), (), ("vda",))
    assert [disk.dev for disk in selection.disks] == ["vdb"]
    assert selection.left_out == (LeftOut("vda", "excluded by the user"),)


def test_excluding_beats_wanting() -> None:
    selection = plan.select(domain("vda", "vdb"), ("vda", "vdb"), ("vdb",))
    assert [disk.dev for disk in selection.disks] == ["vda"]


def test_excluding_what_is_left_out_anyway_is_fine() -> None:
    selection = plan.select(domain("vda", left_out=[LeftOut("hda", "cdrom")]), (), ("hda",))
    assert [disk.dev for disk in selection.disks] == ["vda"]


@pytest.mark.parametrize(("wanted", "excluded"), [(("vdz",), ()), ((), ("vdz",))])
def test_unknown_disk_is_an_error_that_tells_the_known(wanted: tuple[str, ...], excluded: tuple[str, ...]) -> None:
    with pytest.raises(DiskError, match=r"Disk vdz: domain web has no such disk; it has vda, vdb\.") as caught:
        plan.select(domain("vda", "vdb"), wanted, excluded)
    assert caught.value.dev == "vdz"


def test_wanting_what_cannot_be_backed_up_is_an_error_with_the_reason() -> None:
    with pytest.raises(DiskError, match="Disk hda: it cannot be backed up: cdrom"):
        plan.select(domain("vda", left_out=[LeftOut("hda", "cdrom")]), ("hda",), ())


def test_nothing_to_back_up_is_an_error_with_the_reasons() -> None:
    with pytest.raises(UnsuitableError, match=r"nothing to back up \(hda: cdrom; vda: excluded by the user\)"):
        plan.select(domain("vda", left_out=[LeftOut("hda", "cdrom")]), (), ("vda",))


def test_domain_without_a_disk_is_an_error() -> None:
    with pytest.raises(UnsuitableError, match="it has no disk"):
        plan.select(domain(disks=()), (), ())


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


def test_all_disks_are_in_one_transaction() -> None:
    made = make([(vda(), since(SECOND, "libvirt-2-format")), (vdb(), whole())])
    assert [
        (action["type"], action["data"].get("node", action["data"].get("device"))) for action in made.transaction()
    ] == [
        ("block-dirty-bitmap-add", "libvirt-2-format"),
        ("block-dirty-bitmap-add", "libvirt-2-format"),
        ("block-dirty-bitmap-merge", "libvirt-2-format"),
        ("blockdev-backup", "libvirt-2-format"),
        ("block-dirty-bitmap-add", "libvirt-1-format"),
        ("blockdev-backup", "libvirt-1-format"),
    ]


# end marks


def test_disks_of_one_size_share_a_scratch_node() -> None:
    other_bytes = 2 * builders.SIZE_BYTES
    nodes = [builders.node(layer(), dev=dev) for dev in ("vda", "vdb")]
    nodes.append(builders.node(layer(virtual_size_bytes=other_bytes), dev="vdc"))
    made = make([(node, whole()) for node in nodes], Level.FULL)
    assert list(made.scratch_sizes.values()) == [builders.SIZE_BYTES, other_bytes]


def test_speed_and_compression_are_of_every_job() -> None:
    made = make([(vda(), whole()), (vdb(), whole())], Level.FULL, compression=Compression.ZSTD, speed_bytes_s=1000)
    jobs = [action["data"] for action in made.transaction() if action["type"] == "blockdev-backup"]
    assert [(job["speed"], job["compress"]) for job in jobs] == [(1000, True), (1000, True)]


# names


def test_plan_knows_what_becomes_of_each_disk() -> None:
    made = make([(vda(), since(SECOND, "libvirt-2-format")), (vdb(), whole())])
    assert (made.id, made.level, made.parent, made.sequence) == (
        "20261123T120000Z-incremental",
        Level.INCREMENTAL,
        SECOND.id,
        3,
    )
    assert (made.domain.uuid, made.left_out) == (UUID, (LeftOut("hda", "cdrom"),))
    assert [(disk.file, disk.backing_rpath) for disk in made.disks] == [
        ("vda.qcow2", f"../{SECOND.id}/vda.qcow2"),
        ("vdb.qcow2", None),
    ]


def test_names_of_two_disks_differ() -> None:
    made = make([(vda(), whole()), (vdb(), whole())], Level.FULL)
    for names_of in ("job_id", "target_node", "bitmap", "file"):
        assert len({getattr(disk, names_of) for disk in made.disks}) == 2


def test_sequence_of_the_first_backup_is_one() -> None:
    made = make([(vda(), whole())], history=History([]))
    assert (made.sequence, made.parent, made.level) == (1, None, Level.FULL)


def test_free_id_is_the_moment() -> None:
    assert make([(vda(), whole())]).id == "20261123T120000Z-full"


def test_taken_id_takes_the_next_free_second() -> None:
    taken = ["20261123T120000Z-full", "20261123T120001Z-full", "20261123T120003Z-full", "lock", "domain.json"]
    assert make([(vda(), whole())], taken=taken).id == "20261123T120002Z-full"


def test_clock_that_stepped_back_finds_a_free_id() -> None:
    taken = [names.backup_id(NOON + timedelta(seconds=second), Level.FULL) for second in range(100)]
    assert make([(vda(), whole())], taken=taken).id == "20261123T120140Z-full"


def test_broken_backup_keeps_its_id() -> None:
    """``taken`` has what is in the directory, whether or not its manifest can be read."""
    assert make([(vda(), whole())], taken=[FULL.id], now=NOON + timedelta(hours=1)).id != FULL.id


# fleecing areas


@pytest.mark.parametrize(("spares_guest", "policy"), [(False, None), (True, "break-snapshot")])
def test_guest_waits_for_the_fleecing_area_and_the_view_is_copied(spares_guest: bool, policy: str | None) -> None:
    abilities = plan.FleecingAbilities(spares_guest=spares_guest, tells_zeros=True)
    made = make([(vda(), whole()), (vdb(), whole())], fleecing=abilities, speed_bytes_s=1000)
    aside = [one["data"] for one in made.transaction() if one["type"] == "blockdev-backup"]
    assert [(one["sync"], one.get("on-cbw-error"), "speed" in one) for one in aside] == [("none", policy, False)] * 2
    copies = [one["data"] for one in made.copies()]
    assert [(one["sync"], one["device"]) for one in copies] == [
        ("full", names.Naming(REPOSITORY).fleecing_view(index)) for index in (0, 1)
    ]
    assert [one["speed"] for one in copies] == [1000, 1000]
    assert all("on-cbw-error" not in one for one in copies), "a copy would not notice"


@pytest.mark.parametrize(("count", "workers"), [(1, 16), (2, 8), (27, 1)])
def test_copies_leave_threads_of_qemu_to_the_guest(count: int, workers: int) -> None:
    abilities = plan.FleecingAbilities(spares_guest=False, tells_zeros=False)
    made = make([(builders.node(layer(), dev=f"vd{number}"), whole()) for number in range(count)], fleecing=abilities)
    assert [one["data"]["x-perf"] for one in made.copies()] == [{"max-workers": workers, "max-chunk": 524288}] * count


def test_without_a_fleecing_area_there_is_one_transaction() -> None:
    made = make([(vda(), whole())])
    assert made.copies() == []
    assert [one["data"]["sync"] for one in made.transaction() if one["type"] == "blockdev-backup"] == ["top"]


@pytest.mark.parametrize(
    ("more", "shared"),
    [({}, True), ({"compression": Compression.ZSTD}, False), ({"fleecing": plan.FleecingAbilities(True, True)}, False)],
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
