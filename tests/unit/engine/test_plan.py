"""The plan names everything and puts the transaction together; nothing is touched."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.unit import builders
from tests.unit.builders import NOON, UUID, domain, layer
from tests.unit.engine.plans import FULL, SECOND, make, since, vda, vdb, whole
from vbackup import names
from vbackup.engine import plan
from vbackup.errors import DiskError, UnsuitableError
from vbackup.model import LeftOut, Level
from vbackup.repository.history import History

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


# one transaction


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


def test_disks_of_one_size_share_a_scratch_node() -> None:
    other_bytes = 2 * builders.SIZE_BYTES
    nodes = [builders.node(layer(), dev=dev) for dev in ("vda", "vdb")]
    nodes.append(builders.node(layer(virtual_size_bytes=other_bytes), dev="vdc"))
    made = make([(node, whole()) for node in nodes], Level.FULL)
    assert list(made.scratch_sizes.values()) == [builders.SIZE_BYTES, other_bytes]


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


@pytest.mark.parametrize(("count", "workers"), [(1, 16), (2, 8), (27, 1)])
def test_copies_leave_threads_of_qemu_to_the_guest(count: int, workers: int) -> None:
    abilities = plan.FleecingAbilities(spares_guest=False, tells_zeros=False)
    made = make([(builders.node(layer(), dev=f"vd{number}"), whole()) for number in range(count)], fleecing=abilities)
    assert [one["data"]["x-perf"] for one in made.copies()] == [{"max-workers": workers, "max-chunk": 524288}] * count
