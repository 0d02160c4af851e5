"""Bitmaps are listed with their owners; one that a backup relies on is only removed, and only by force."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.fake_qemu import FakeBitmap, FakeDisk, FakeQemu
from tests.unit import builders
from tests.unit.builders import (
    FOREIGN,
    MIB,
    REPOSITORY,
    TOKEN,
    TRACKER,
    TRACKER_ID,
    Recorder,
    backup,
    bitmap_of,
    incremental,
    session_checkpoint,
)
from vbackup.domain.attached import AttachedQemu
from vbackup.errors import DiskError, TransactionError, TransactionRefusedError, UnsafeError, UnsuitableError
from vbackup.model import DiskNode
from vbackup.names import Naming
from vbackup.operations import bitmap, transaction
from vbackup.operations.bitmap import Change, ChangeRequest, Owner
from vbackup.qemu.monitor import block_graph
from vbackup.repository.history import History
from vbackup.stop import Stop

ONE = backup(1)
TWO = incremental(2, ONE)
THREE = incremental(3, TWO)
NAMING = Naming(REPOSITORY)
SIZE_BYTES = 16 * MIB
UNSAFE = [Change.CLEAR, Change.ENABLE, Change.DISABLE, Change.MERGE]


@pytest.fixture
def qemu() -> Iterator[FakeQemu]:
    """A disk vda over a base image, and a disk vdb."""
    disks = [
        FakeDisk("virtio-disk0", backing_paths=("/images/base.qcow2",)),
        FakeDisk("virtio-disk1", path="/images/vdb.qcow2"),
    ]
    with FakeQemu(disks) as made:
        yield made


@pytest.fixture
def attached(qemu: FakeQemu) -> AttachedQemu:
    def disks() -> Mapping[str, DiskNode]:
        graph = block_graph(qemu)
        return {dev: graph.disk_node(builders.disk(dev)) for dev in ("vda", "vdb")}

    return AttachedQemu("test", qemu, disks, libvirt_checkpoints=frozenset({"daily"}))


def add(qemu: FakeQemu, *names: str, alias: str = "virtio-disk0") -> None:
    for name in names:
        qemu.bitmaps(qemu.top(alias))[name] = FakeBitmap(name)


def names_on(qemu: FakeQemu, alias: str = "virtio-disk0") -> set[str]:
    return set(qemu.bitmaps(qemu.top(alias)))


def nothing(_repository_id: str) -> History | None:
    return None


def change(
    attached: AttachedQemu,
    request: ChangeRequest,
    *,
    history: Callable[[str], History | None] = nothing,
    recorder: Recorder | None = None,
) -> list[str]:
    changed = bitmap.change(request, attached=attached, history=history, reporter=recorder or Recorder(), stop=Stop())
    return [one.dev for one in changed]


# list


def test_bitmaps_of_all_layers_have_their_owners(qemu: FakeQemu, attached: AttachedQemu) -> None:
    below = attached.disks()["vda"].layers[1].node_name
    mark = NAMING.end_mark("vda", SIZE_BYTES)
    add(qemu, "mine", "daily", bitmap_of(ONE), mark)
    qemu.bitmaps(below)["old"] = FakeBitmap("old")
    listed = bitmap.listing(attached)
    assert [(one.dev, one.depth, one.bitmap.name) for one in listed] == [
        *(("vda", 0, name) for name in sorted(["mine", "daily", bitmap_of(ONE), mark])),
        ("vda", 1, "old"),
    ]
    assert {one.bitmap.name: (one.owner, one.repository_id, one.checkpoint) for one in listed} == {
        "mine": (Owner.OTHER, None, None),
        "daily": (Owner.LIBVIRT, None, None),
        bitmap_of(ONE): (Owner.VBACKUP, REPOSITORY, ONE.id),
        mark: (Owner.VBACKUP, REPOSITORY, None),
        "old": (Owner.OTHER, None, None),
    }


def test_only_the_wanted_disks_are_listed(qemu: FakeQemu, attached: AttachedQemu) -> None:
    add(qemu, "b")
    add(qemu, "b", alias="virtio-disk1")
    assert [one.dev for one in bitmap.listing(attached, disks=["vdb"])] == ["vdb"]
    with pytest.raises(DiskError, match="no such disk; the disks are: vda, vdb"):
        bitmap.listing(attached, disks=["vdz"])


# change


def test_new_bitmap_is_on_all_disks_in_one_transaction(qemu: FakeQemu, attached: AttachedQemu) -> None:
    request = ChangeRequest(Change.ADD, "b", granularity_bytes=4096, persistent=True, disabled=True)
    assert change(attached, request) == ["vda", "vdb"]
    (sent,) = [sent for sent in qemu.sent if sent.command == "transaction"]
    assert [action["data"]["node"] for action in sent.arguments["actions"]] == [
        qemu.top(alias) for alias in ("virtio-disk0", "virtio-disk1")
    ]
    made = qemu.bitmaps(qemu.top("virtio-disk0"))["b"]
    assert (made.granularity, made.persistent, made.recording) == (4096, True, False)


def test_change_is_made_where_the_bitmap_is(qemu: FakeQemu, attached: AttachedQemu) -> None:
    add(qemu, "b", alias="virtio-disk1")
    assert change(attached, ChangeRequest(Change.REMOVE, "b")) == ["vdb"]
    assert names_on(qemu, "virtio-disk1") == set()
    with pytest.raises(UnsuitableError, match="No disk has a bitmap b on its active layer"):
        change(attached, ChangeRequest(Change.REMOVE, "b"))


def test_bitmap_that_one_wanted_disk_lacks_is_changed_on_none(qemu: FakeQemu, attached: AttachedQemu) -> None:
    add(qemu, "b")
    with pytest.raises(TransactionError, match=r"^Disk vdb: .*'b'.*Nothing was changed\.$"):
        change(attached, ChangeRequest(Change.REMOVE, "b", disks=("vda", "vdb")))
    assert names_on(qemu) == {"b"}


def test_refusal_of_qemu_names_the_disk(
    qemu: FakeQemu, attached: AttachedQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise TransactionRefusedError("No bitmap for you.", 1, "block-dirty-bitmap-add")

    monkeypatch.setattr(transaction, "run", refuse)
    with pytest.raises(TransactionRefusedError) as caught:
        change(attached, ChangeRequest(Change.ADD, "b"))
    assert str(caught.value) == (
        "QEMU refused the change of disk vdb: No bitmap for you. The transaction had no effect."
    )


def test_layer_below_is_named_by_its_node(qemu: FakeQemu, attached: AttachedQemu) -> None:
    below = attached.disks()["vda"].layers[1].node_name
    qemu.bitmaps(below)["old"] = FakeBitmap("old", recording=True)
    assert change(attached, ChangeRequest(Change.DISABLE, "old", node_name=below)) == ["vda"]
    assert not qemu.bitmaps(below)["old"].recording
    with pytest.raises(UnsuitableError, match="No disk has the node none"):
        change(attached, ChangeRequest(Change.ADD, "b", node_name="none"))


@pytest.mark.parametrize("kind", UNSAFE)
@pytest.mark.parametrize("force", [False, True])
def test_bitmap_that_a_backup_relies_on_is_not_changed_even_by_force(
    qemu: FakeQemu, attached: AttachedQemu, kind: Change, force: bool
) -> None:
    for name in (bitmap_of(ONE), NAMING.end_mark("vda", SIZE_BYTES), "daily"):
        add(qemu, name, "source")
        request = ChangeRequest(kind, name, sources=("source",), force=force)
        with pytest.raises(UnsafeError, match=f"to {kind.value} it would make the next backup wrong"):
            change(attached, request)
    assert not any(sent.command == "transaction" for sent in qemu.sent)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (bitmap_of(THREE), "the next backup of disk vda to repository .* is a full"),
        (bitmap_of(ONE), "a differential of disk vda .* is not possible until the next full"),
        (bitmap_of(backup(9)), "which is still running or cannot be read, cannot be a base"),
        (NAMING.working_bitmap(ONE.id, "vda"), "the running backup to repository .* fails"),
        (NAMING.end_mark("vda", SIZE_BYTES), "does not notice if disk vda was shrunk"),
        ("daily", "libvirt can no longer use its checkpoint"),
    ],
    ids=["newest", "last full", "not committed", "working", "end mark", "libvirt"],
)
def test_removal_that_has_a_consequence_needs_force_and_warns(
    qemu: FakeQemu, attached: AttachedQemu, name: str, said: str
) -> None:
    def history(repository_id: str) -> History | None:
        return History([ONE, TWO, THREE]) if repository_id == REPOSITORY else None

    add(qemu, name)
    recorder = Recorder()
    with pytest.raises(UnsafeError, match=rf"(?s){said}.*--force removes it anyway"):
        change(attached, ChangeRequest(Change.REMOVE, name), history=history, recorder=recorder)
    assert (names_on(qemu), recorder.warnings) == ({name}, [])
    change(attached, ChangeRequest(Change.REMOVE, name, force=True), history=history, recorder=recorder)
    assert names_on(qemu) == set()
    (warning,) = recorder.warnings
    assert warning.startswith("Disk vda: ")


@pytest.mark.parametrize(
    "name",
    [bitmap_of(TWO), Naming(REPOSITORY).end_mark("vda", SIZE_BYTES // 2), "mine"],
    ids=["superseded", "mark of another size", "other"],
)
def test_bitmap_that_nobody_relies_on_is_simply_removed(qemu: FakeQemu, attached: AttachedQemu, name: str) -> None:
    add(qemu, name)
    recorder = Recorder()
    change(
        attached,
        ChangeRequest(Change.REMOVE, name),
        history=lambda _id: History([ONE, TWO, THREE]),
        recorder=recorder,
    )
    assert (names_on(qemu), recorder.warnings) == (set(), [])


def test_checkpoint_of_a_repository_that_is_not_there_may_be_the_base(qemu: FakeQemu, attached: AttachedQemu) -> None:
    name = Naming(FOREIGN).bitmap(ONE.id, "vda", TOKEN)
    add(qemu, name)
    with pytest.raises(UnsafeError, match=f"is a full if it would have started from {ONE.id}"):
        change(attached, ChangeRequest(Change.REMOVE, name))


# a tracker of pull sessions


def test_bitmaps_of_a_tracker_are_its_own_and_not_removed_by_mistake(qemu: FakeQemu, attached: AttachedQemu) -> None:
    checkpoint = session_checkpoint(1, "vda").disks["vda"].bitmap
    assert checkpoint is not None
    mark = Naming(TRACKER_ID).end_mark("vda", SIZE_BYTES)
    add(qemu, checkpoint, mark)
    for known, shown in (([TRACKER, "other"], TRACKER), ([], TRACKER_ID)):
        listed = bitmap.listing(attached, trackers=known)
        assert {(one.owner, one.repository_id, one.tracker) for one in listed} == {(Owner.TRACKER, None, shown)}
    for name, said in ((checkpoint, "next session of tracker .* is full"), (mark, "does not notice if disk vda")):
        with pytest.raises(UnsafeError, match=rf"(?s){said}.*--force removes it anyway"):
            change(attached, ChangeRequest(Change.REMOVE, name))
        with pytest.raises(UnsafeError, match="it can only be removed"):
            change(attached, ChangeRequest(Change.CLEAR, name))
        change(attached, ChangeRequest(Change.REMOVE, name, force=True))
    assert names_on(qemu) == set()
