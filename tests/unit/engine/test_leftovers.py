"""What a dead run left goes; what a later backup starts from, and what others made, stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_qemu import MIB, FakeBitmap, FakeDisk, FakeQemu, qcow2_header
from tests.unit import builders
from tests.unit.blind_qemu import BlindQemu
from tests.unit.builders import FOREIGN, NOON, OTHER_TOKEN, REPOSITORY, TOKEN, Recorder, backup, incremental
from vbackup import names
from vbackup.engine import leftovers
from vbackup.errors import DomainGoneError, QmpError
from vbackup.images import targets
from vbackup.images.targets import Target
from vbackup.model import DiskNode, NodeBitmap
from vbackup.names import Naming
from vbackup.qemu.monitor import block_graph
from vbackup.repository.history import History
from vbackup.undo import Undo

ONE = backup(1)
TWO = incremental(2, ONE)
THREE = incremental(3, TWO)


@pytest.fixture
def qemu() -> Iterator[FakeQemu]:
    with FakeQemu([FakeDisk(path="/images/vda.qcow2")]) as made:
        yield made


def bitmap_of(one: object, dev: str = "vda", repository_id: str = REPOSITORY) -> str:
    return names.Naming(repository_id).bitmap(one.id, dev, TOKEN)  # type: ignore[attr-defined]


def add(qemu: FakeQemu, *bitmaps: str) -> None:
    for name in bitmaps:
        qemu.bitmaps(top(qemu))[name] = FakeBitmap(name)


def top(qemu: FakeQemu) -> str:
    return qemu.top("virtio-disk0")


def disks(qemu: FakeQemu) -> list[DiskNode]:
    return [block_graph(qemu).disk_node(builders.disk())]


def left(qemu: FakeQemu) -> set[str]:
    return set(qemu.bitmaps(top(qemu)))


# superseded


def remove_superseded(qemu: FakeQemu, *backups: object) -> list[str]:
    return leftovers.remove_superseded(qemu, disks(qemu), [History(backups)], Naming(REPOSITORY))  # type: ignore[arg-type]


def test_end_marks_of_the_bases_sizes_stay_and_go_last(qemu: FakeQemu) -> None:
    """A base must not be there without the mark that it had."""
    mine, other = (names.Naming(REPOSITORY).end_mark("vda", size) for size in (builders.SIZE_BYTES, 512))
    foreign = names.Naming(FOREIGN).end_mark("vda", 512)
    add(qemu, other, mine, foreign, bitmap_of(ONE), bitmap_of(TWO))
    assert remove_superseded(qemu, ONE, TWO, THREE) == [bitmap_of(TWO), other]
    assert left(qemu) == {mine, foreign, bitmap_of(ONE)}


def test_end_marks_are_not_uncommitted_unless_they_are_of_no_use(qemu: FakeQemu) -> None:
    marks = [names.Naming(REPOSITORY).end_mark("vda", size) for size in (512, 1024)]
    add(qemu, *marks)
    qemu.bitmaps(top(qemu))[marks[0]].inconsistent = True
    assert leftovers.remove_uncommitted(qemu, disks(qemu), [], Naming(REPOSITORY)) == marks[:1]
    assert left(qemu) == set(marks[1:])


def test_end_marks_of_sizes_that_no_checkpoint_has_any_more_go(qemu: FakeQemu) -> None:
    old, kept = (names.Naming(REPOSITORY).end_mark("vda", size) for size in (512, 1024))
    add(qemu, old, kept, bitmap_of(ONE))
    removed = leftovers.remove_uncommitted(qemu, disks(qemu), {ONE.id}, Naming(REPOSITORY), sizes={"vda": {1024}})
    assert removed == [old]
    assert leftovers.remove_uncommitted(qemu, disks(qemu), {ONE.id}, Naming(REPOSITORY), sizes={}) == [kept]
    assert left(qemu) == {bitmap_of(ONE)}


def test_only_the_bases_of_later_backups_stay(qemu: FakeQemu) -> None:
    add(qemu, bitmap_of(ONE), bitmap_of(TWO), bitmap_of(THREE))
    assert remove_superseded(qemu, ONE, TWO, THREE) == [bitmap_of(TWO)]
    assert left(qemu) == {bitmap_of(ONE), bitmap_of(THREE)}


def test_what_others_made_stays(qemu: FakeQemu) -> None:
    others = {bitmap_of(ONE, repository_id=FOREIGN), "libvirt-checkpoint", "vbackup-", "backup-1"}
    add(qemu, *others)
    assert remove_superseded(qemu, ONE) == []
    assert left(qemu) == others


def test_bitmap_of_another_backup_of_the_same_name_goes(qemu: FakeQemu) -> None:
    """A copy of the repository is written to as well."""
    other = names.Naming(REPOSITORY).bitmap(ONE.id, "vda", OTHER_TOKEN)
    add(qemu, bitmap_of(ONE), other)
    assert remove_superseded(qemu, ONE) == [other]
    assert left(qemu) == {bitmap_of(ONE)}


def test_working_bitmap_goes(qemu: FakeQemu) -> None:
    working = names.Naming(REPOSITORY).working_bitmap(TWO.id, "vda")
    add(qemu, bitmap_of(ONE), bitmap_of(TWO), working)
    assert remove_superseded(qemu, ONE, TWO) == [working]


def test_bitmap_of_an_image_that_changed_places_goes(qemu: FakeQemu) -> None:
    add(qemu, bitmap_of(ONE), bitmap_of(ONE, "vdb"))
    assert remove_superseded(qemu, ONE) == [bitmap_of(ONE, "vdb")]


def test_bitmap_that_qemu_will_not_remove_stays_and_keeps_no_other(qemu: FakeQemu) -> None:
    add(qemu, bitmap_of(ONE), bitmap_of(TWO), bitmap_of(THREE))
    qemu.refuse("transaction", "Bitmap is currently in use by another operation and cannot be used")
    qemu.refuse("block-dirty-bitmap-remove", "Bitmap is currently in use by another operation and cannot be used")
    assert remove_superseded(qemu) == sorted([bitmap_of(TWO), bitmap_of(THREE)])
    assert left(qemu) == {bitmap_of(ONE)}


def test_layers_below_are_left_alone(qemu: FakeQemu) -> None:
    """They are read-only to QEMU."""
    add(qemu, bitmap_of(ONE))
    below = top(qemu)
    qemu.snapshot("virtio-disk0", "/images/vda.one")
    node = block_graph(qemu).disk_node(builders.disk(path="/images/vda.one"))
    leftovers.remove_superseded(qemu, [node], [History([])], Naming(REPOSITORY))
    assert left(qemu) == set()
    assert set(qemu.bitmaps(below)) == {bitmap_of(ONE)}


def test_what_drove_a_copy_goes_below_too(qemu: FakeQemu) -> None:
    """libvirt has made an external snapshot meanwhile; what is not persistent QEMU lets go on a read-only layer too."""
    working = names.Naming(REPOSITORY).working_bitmap(TWO.id, "vda")
    add(qemu, bitmap_of(ONE), working)
    below = top(qemu)
    qemu.snapshot("virtio-disk0", "/images/vda.one")
    node = block_graph(qemu).disk_node(builders.disk(path="/images/vda.one"))
    leftovers.remove_superseded(qemu, [node], [History([])], Naming(REPOSITORY))
    assert left(qemu) == set()
    assert set(qemu.bitmaps(below)) == {bitmap_of(ONE)}


def test_end_of_the_domain_is_told_as_such(qemu: FakeQemu) -> None:
    add(qemu, bitmap_of(ONE))
    nodes = disks(qemu)
    qemu.kill()
    with pytest.raises(DomainGoneError):
        leftovers.remove_superseded(qemu, nodes, [History([])], Naming(REPOSITORY))


# uncommitted


def test_bitmap_of_a_backup_that_was_never_committed_goes(qemu: FakeQemu) -> None:
    add(qemu, bitmap_of(ONE), bitmap_of(TWO), bitmap_of(TWO, repository_id=FOREIGN), "libvirt-checkpoint")
    removed = leftovers.remove_uncommitted(qemu, disks(qemu), {ONE.id, "lock", "domain.json"}, Naming(REPOSITORY))
    assert removed == [bitmap_of(TWO)]
    assert left(qemu) == {bitmap_of(ONE), bitmap_of(TWO, repository_id=FOREIGN), "libvirt-checkpoint"}


def test_half_made_backup_is_not_committed(qemu: FakeQemu) -> None:
    add(qemu, bitmap_of(ONE))
    assert leftovers.remove_uncommitted(qemu, disks(qemu), {f"{ONE.id}.partial"}, Naming(REPOSITORY)) == [
        bitmap_of(ONE)
    ]


def test_working_bitmap_of_a_dead_run_goes(qemu: FakeQemu) -> None:
    working = names.Naming(REPOSITORY).working_bitmap(TWO.id, "vda")
    add(qemu, working)
    assert leftovers.remove_uncommitted(qemu, disks(qemu), {TWO.id}, Naming(REPOSITORY)) == [working]


# copies of the repository

HERE, THERE = Naming(REPOSITORY, "aaaa"), "bbbb"


def test_checkpoints_that_a_copy_of_the_repository_made_stay_with_the_end_marks(qemu: FakeQemu) -> None:
    """An original's base would be trusted without its end mark."""
    theirs = [HERE.bitmap(one.id, "vda", TOKEN + THERE) for one in (ONE, TWO)]
    marks = [HERE.end_mark("vda", 512), HERE.end_mark("vda", 1024)]
    own = [HERE.bitmap(TWO.id, "vda", OTHER_TOKEN + HERE.place), HERE.bitmap(THREE.id, "vda", OTHER_TOKEN)]
    add(qemu, *theirs, *own, *marks)
    qemu.bitmaps(top(qemu))[marks[1]].inconsistent = True
    assert list(leftovers.of_other_places(disks(qemu), HERE)) == sorted(theirs)
    assert leftovers.remove_uncommitted(qemu, disks(qemu), {THREE.id}, HERE) == [own[0], marks[1]]
    assert leftovers.remove_superseded(qemu, disks(qemu), [History([])], HERE) == [own[1]]
    assert left(qemu) == {*theirs, marks[0]}


# some bitmaps


def test_bitmaps_that_are_there_are_removed(qemu: FakeQemu) -> None:
    add(qemu, "one", "two", "three")
    node = top(qemu)
    wanted = [
        NodeBitmap(node, "one"),
        NodeBitmap(node, "gone"),
        NodeBitmap("gone", "one"),
        NodeBitmap(node, "two"),
    ]
    leftovers.remove_bitmaps(qemu, wanted)
    assert left(qemu) == {"three"}


def test_bitmaps_that_an_overlay_repeats_are_removed_there_and_stay_below(qemu: FakeQemu) -> None:
    """libvirt made an external snapshot in the middle; QEMU lets go of nothing on the layer that is read-only now."""
    below = top(qemu)
    qemu.snapshot("virtio-disk0", "/images/vda.one")
    for node in (below, top(qemu)):
        qemu.bitmaps(node)["one"] = FakeBitmap("one")
    qemu.bitmaps(top(qemu))["two"] = FakeBitmap("two")
    nth = 1 if below < top(qemu) else 3  # the one below, in the order of the nodes' names
    qemu.refuse("transaction", "Bitmap 'one' is readonly and cannot be modified")
    qemu.refuse("block-dirty-bitmap-remove", "Bitmap 'one' is readonly and cannot be modified", nth=nth)
    leftovers.remove_bitmaps(qemu, [NodeBitmap(below, "one"), NodeBitmap(below, "two")])
    assert (left(qemu), set(qemu.bitmaps(below))) == (set(), {"one"})


def test_refusal_to_remove_one_bitmap_keeps_no_other(qemu: FakeQemu) -> None:
    add(qemu, "one", "two")
    qemu.refuse("transaction", "Bitmap 'one' is currently in use by another operation")
    qemu.refuse("block-dirty-bitmap-remove", "Bitmap 'one' is currently in use by another operation")
    with pytest.raises(QmpError, match="in use"):
        leftovers.remove_bitmaps(qemu, [NodeBitmap(top(qemu), "one"), NodeBitmap(top(qemu), "two")])
    assert left(qemu) == {"one"}


def test_removing_nothing_asks_and_does_nothing(qemu: FakeQemu) -> None:
    leftovers.remove_bitmaps(qemu, [])
    assert left(qemu) == set()


# leftovers of a dead run


def leave(qemu: FakeQemu, tmp_path: Path, repository_id: str) -> tuple[str, str]:
    """The job and the node of a run that was killed while it copied."""
    path = tmp_path / f"{repository_id}.qcow2"
    path.write_bytes(qcow2_header(16 * MIB))
    one = Target(path, names.Naming(repository_id).target_node("vda"))
    with Undo(Recorder()) as undo:
        targets.open_in_qemu(qemu, [one], undo=undo)
        undo.release()
    job_id = names.Naming(repository_id).job(ONE.id, "vda")
    data = {"job-id": job_id, "device": top(qemu), "target": one.node_name, "sync": "full"}
    action = {"type": "blockdev-backup", "data": {**data, "auto-finalize": False, "auto-dismiss": False}}
    qemu.execute("transaction", {"actions": [action]})
    return job_id, one.node_name


def test_jobs_nodes_and_descriptors_of_a_dead_run_go(qemu: FakeQemu, tmp_path: Path) -> None:
    before = qemu.state()
    assert leftovers.remove_leftovers(qemu, Naming(REPOSITORY)) == []
    made = leave(qemu, tmp_path, REPOSITORY)
    assert leftovers.remove_leftovers(qemu, Naming(REPOSITORY)) == list(made)
    assert qemu.state() == before


def test_bitmaps_of_a_dead_audit_go_by_themselves(qemu: FakeQemu) -> None:
    before = qemu.state()
    audit_id = names.audit_id(NOON)
    assert leftovers.remove_leftovers(qemu, Naming(REPOSITORY)) == []
    for repository_id in (REPOSITORY, FOREIGN):
        name = names.Naming(repository_id).working_bitmap(audit_id, "vda")
        qemu.bitmaps(top(qemu))[name] = FakeBitmap(name)
    assert leftovers.remove_leftovers(qemu, Naming(REPOSITORY)) == [Naming(REPOSITORY).working_bitmap(audit_id, "vda")]
    leftovers.remove_leftovers(qemu, Naming(FOREIGN))
    assert qemu.state() == before


def test_what_another_repository_does_meanwhile_is_left_alone(qemu: FakeQemu, tmp_path: Path) -> None:
    leave(qemu, tmp_path, FOREIGN)
    before = qemu.state()
    leave(qemu, tmp_path, REPOSITORY)
    leftovers.remove_leftovers(qemu, Naming(REPOSITORY))
    assert qemu.state() == before


@pytest.mark.parametrize("ends", ["pending", "failed"])
def test_job_that_ended_meanwhile_goes_too(qemu: FakeQemu, tmp_path: Path, ends: str) -> None:
    before = qemu.state()
    if ends == "failed":
        qemu.fail_job(names.Naming(REPOSITORY).target_node("vda"), "No space left on device")
    leave(qemu, tmp_path, REPOSITORY)
    for _ in range(5):
        qemu.execute("query-jobs")
    leftovers.remove_leftovers(qemu, Naming(REPOSITORY))
    assert qemu.state() == before


def test_bitmaps_go_from_a_node_that_qemu_cannot_describe(caplog: pytest.LogCaptureFixture) -> None:
    """Its image was found corrupt: QEMU does not list its bitmaps, but removes them."""
    mark = Naming(REPOSITORY).end_mark("vda", 65536)
    with BlindQemu([FakeDisk(path="/images/vda.qcow2"), FakeDisk("virtio-disk1", path="/images/vdb.qcow2")]) as qemu:
        corrupt, healthy = qemu.eject("virtio-disk0"), qemu.top("virtio-disk1")
        for name in (bitmap_of(ONE), bitmap_of(TWO), mark):
            qemu.bitmaps(corrupt)[name] = FakeBitmap(name)
        qemu.bitmaps(healthy)[bitmap_of(TWO, "vdb")] = FakeBitmap(bitmap_of(TWO, "vdb"))
        new = [(corrupt, bitmap_of(TWO)), (corrupt, bitmap_of(THREE)), (healthy, bitmap_of(TWO, "vdb"))]
        leftovers.remove_bitmaps(qemu, [NodeBitmap(*place) for place in [*new, ("gone", bitmap_of(TWO))]])
        leftovers.remove_end_marks(qemu, [NodeBitmap(corrupt, mark), NodeBitmap(corrupt, f"{mark}0")])
        assert (set(qemu.bitmaps(corrupt)), set(qemu.bitmaps(healthy))) == ({bitmap_of(ONE)}, set())
    assert not caplog.messages


def test_other_refusal_on_a_node_that_qemu_cannot_describe_is_told() -> None:
    with BlindQemu([FakeDisk(path="/images/vda.qcow2")]) as qemu:
        bitmap = NodeBitmap(qemu.eject("virtio-disk0"), bitmap_of(TWO))
        qemu.refuse("block-dirty-bitmap-remove", "Bitmap is currently in use by another operation")
        with pytest.raises(QmpError, match="in use"):
            leftovers.remove_bitmaps(qemu, [bitmap])
