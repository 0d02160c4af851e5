"""A base is trusted only if every check passes; otherwise the disk gets a full backup, and the reason is reported."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.unit import builders
from tests.unit.builders import (
    MIB,
    OTHER_TOKEN,
    REPOSITORY,
    SIZE_BYTES,
    TOKEN,
    backup,
    bitmap,
    copy,
    end_mark,
    image,
    incremental,
    layer,
)
from vbackup import names
from vbackup.engine.base import Choice, Reason, choose, level_of, parent_of, undecided
from vbackup.errors import BaseError
from vbackup.layers import ChainState, FileState, LayerState
from vbackup.model import Backup, Bitmap, BlockDriver, DiskNode, Layer, Level, NodeBitmap
from vbackup.names import Naming
from vbackup.repository.history import History, RestoredDisk

#: The device that had the disk at the first backup.
DEVICE = ChainState((LayerState("libvirt-1-format", FileState("/images/vda.qcow2")),), device_mark="mark")
ONE = backup(1, image(chain=DEVICE))
TWO = incremental(2, ONE)
THREE = incremental(3, TWO)


def name_of(base: Backup, dev: str = "vda", repository_id: str = REPOSITORY) -> str:
    return names.Naming(repository_id).bitmap(base.id, dev, TOKEN)


def having(*bases: Backup, **changes: Any) -> DiskNode:
    """A disk with a good bitmap of each of these backups."""
    return builders.node(layer(*(bitmap(name_of(base)) for base in bases), **changes))


def auto(node: DiskNode, *backups: Backup, unusable: tuple[tuple[str, str], ...] = ()) -> Choice:
    return choose(Level.AUTO, node, History(backups, unusable), naming=Naming(REPOSITORY))


def of_one_device(*layers: Layer) -> DiskNode:
    """A disk whose device has been there since the first backup."""
    node = builders.node(*layers)
    return replace(node, looked_at=replace(node.chain, device_mark="mark"))


def test_bitmaps_of_lower_layers_that_qemu_does_not_list_cost_a_full() -> None:
    top, below = layer(bitmap(name_of(ONE))), layer(node_name="below", lists_bitmaps=False)
    choice = auto(of_one_device(top, below), ONE)
    assert choice.level is Level.FULL
    assert choice.reason.startswith("QEMU does not list the bitmaps of its lower layers")
    assert auto(of_one_device(top, replace(below, lists_bitmaps=True)), ONE).level is Level.INCREMENTAL


@pytest.mark.parametrize("level", [Level.AUTO, Level.INCREMENTAL])
def test_checkpoint_that_an_audit_distrusts_is_no_base(level: Level) -> None:
    history = History([ONE, TWO], (), {(TWO.id, "vda"): "an audit found changes"})
    if level is Level.AUTO:
        choice = choose(level, having(ONE, TWO), history, naming=Naming(REPOSITORY))
        assert choice == Choice(Level.FULL, None, (), "an audit found changes", code=Reason.DISTRUSTED)
    else:
        with pytest.raises(BaseError, match=f"since {TWO.id} is possible: an audit found changes"):
            choose(level, having(ONE, TWO), history, naming=Naming(REPOSITORY))


# the levels


@pytest.mark.parametrize("level", [Level.FULL, Level.COPY])
def test_whole_disk_needs_no_base(level: Level) -> None:
    choice = choose(level, having(ONE), History([ONE]), naming=Naming(REPOSITORY))
    assert choice == Choice(level, None, (), "asked for")


WHY = "its image /x is open in qemu-system-x86 (pid 7), so it is only read"


@pytest.mark.parametrize(
    ("level", "reason", "code"),
    [
        (Level.AUTO, f"without a bitmap, so no incremental can start from it: {WHY}", Reason.NO_BITMAPS),
        (Level.FULL, f"asked for; without a bitmap, so no incremental can start from it: {WHY}", Reason.ASKED),
        (Level.COPY, "asked for", Reason.ASKED),
    ],
)
def test_disk_that_is_only_read_is_copied_whole_whatever_base_it_has(level: Level, reason: str, code: Reason) -> None:
    node = replace(having(ONE), lasting=False, read_only_reason=WHY)
    choice = choose(level, node, History([ONE]), naming=Naming(REPOSITORY))
    assert choice == Choice(Level.COPY if level is Level.COPY else Level.FULL, None, (), reason, code=code)


@pytest.mark.parametrize("level", [Level.INCREMENTAL, Level.DIFFERENTIAL])
def test_no_increment_of_a_disk_that_is_only_read(level: Level) -> None:
    node = replace(having(ONE), lasting=False, read_only_reason=WHY)
    with pytest.raises(BaseError, match="is open in qemu-system-x86"):
        choose(level, node, History([ONE]), naming=Naming(REPOSITORY))


def test_incremental_starts_from_the_newest() -> None:
    choice = choose(Level.INCREMENTAL, having(ONE, TWO), History([ONE, TWO]), naming=Naming(REPOSITORY))
    assert (choice.level, choice.base) == (Level.INCREMENTAL, TWO)
    assert choice.bitmaps == (NodeBitmap("libvirt-1-format", name_of(TWO)),)
    assert choice.reason == f"changes since {TWO.id}"


def test_differential_starts_from_the_last_full() -> None:
    choice = choose(Level.DIFFERENTIAL, having(ONE, TWO), History([ONE, TWO]), naming=Naming(REPOSITORY))
    assert (choice.level, choice.base) == (Level.DIFFERENTIAL, ONE)


def test_differential_after_a_differential_starts_from_the_full() -> None:
    second = backup(2, image(level=Level.DIFFERENTIAL, base=ONE.id), level=Level.DIFFERENTIAL)
    choice = choose(Level.DIFFERENTIAL, having(ONE, second), History([ONE, second]), naming=Naming(REPOSITORY))
    assert choice.base == ONE


def test_differential_starts_from_the_heir_of_the_full_with_the_bitmap_of_the_full() -> None:
    heir = backup(2, image(bitmap=name_of(ONE), checkpoint=ONE.id))
    third = incremental(3, heir)
    history = History([heir, third])
    choice = choose(Level.DIFFERENTIAL, having(ONE, third), history, naming=Naming(REPOSITORY))
    assert (choice.base, choice.bitmaps) == (heir, (NodeBitmap("libvirt-1-format", name_of(ONE)),))
    assert ONE.id in choice.reason
    with pytest.raises(BaseError, match=f"since {heir.id} is possible: checkpoint {ONE.id} is missing"):
        choose(Level.DIFFERENTIAL, having(heir, third), History([heir, third]), naming=Naming(REPOSITORY))
    for distrusted in (heir.id, ONE.id):
        history = History([heir, third], distrusted={(distrusted, "vda"): "an audit found a change"})
        with pytest.raises(BaseError, match="an audit found a change"):
            choose(Level.DIFFERENTIAL, having(ONE, third), history, naming=Naming(REPOSITORY))


def test_full_without_a_checkpoint_is_no_start_of_a_differential() -> None:
    heir = backup(2, image(bitmap=None))
    third = incremental(3, heir)
    with pytest.raises(BaseError, match="no full backup of this disk has a checkpoint"):
        choose(Level.DIFFERENTIAL, having(third), History([heir, third]), naming=Naming(REPOSITORY))


def test_auto_is_incremental_where_it_can_be() -> None:
    choice = auto(having(ONE, TWO), ONE, TWO)
    assert (choice.level, choice.base) == (Level.INCREMENTAL, TWO)


def test_first_backup_is_a_full() -> None:
    choice = auto(having())
    assert (choice.level, choice.base, choice.bitmaps) == (Level.FULL, None, ())
    assert "no earlier backup of this disk" in choice.reason


def test_session_has_a_tracker_and_its_checkpoints_and_no_backups() -> None:
    nothing = History([], is_of_tracker=True)
    first = choose(Level.AUTO, having(), nothing, naming=Naming(REPOSITORY))
    assert first.reason == "the tracker has no checkpoint of this disk to start from"
    for level, known, why in (
        (Level.INCREMENTAL, nothing, "no incremental session is possible: the tracker has no checkpoint"),
        (
            Level.DIFFERENTIAL,
            History([TWO], is_of_tracker=True),
            "no differential session is possible: no full session",
        ),
    ):
        with pytest.raises(BaseError, match=why) as raised:
            choose(level, having(ONE), known, naming=Naming(REPOSITORY))
        assert "backup" not in str(raised.value)


def test_copy_is_no_base() -> None:
    choice = auto(having(ONE), ONE, copy(2))
    assert choice.base == ONE


def test_new_full_begins_a_new_chain() -> None:
    full = backup(3)
    choice = choose(Level.DIFFERENTIAL, having(ONE, TWO, full), History([ONE, TWO, full]), naming=Naming(REPOSITORY))
    assert choice.base == full


def test_new_disk_gets_a_full_beside_incrementals() -> None:
    choice = choose(Level.AUTO, builders.node(layer(), dev="vdb"), History([ONE, TWO]), naming=Naming(REPOSITORY))
    assert (choice.level, choice.base) == (Level.FULL, None)


# reasons for distrust


def untrusted(node: DiskNode, *backups: Backup, unusable: tuple[tuple[str, str], ...] = ()) -> str:
    """The reason why ``auto`` takes a full; by name the same reason is an error."""
    choice = auto(node, *backups, unusable=unusable)
    assert (choice.level, choice.base, choice.bitmaps) == (Level.FULL, None, ())
    for level in (Level.INCREMENTAL, Level.DIFFERENTIAL):
        with pytest.raises(BaseError) as caught:
            choose(level, node, History(backups, unusable), naming=Naming(REPOSITORY))
        evidence = (caught.value.dev, caught.value.level, caught.value.checkpoint)
        assert evidence == (node.disk.dev, level.value, ONE.id)
        assert ONE.id in str(caught.value)
        assert "Take a full backup, or use --level auto" in str(caught.value)
        assert choice.reason in str(caught.value)
    return choice.reason


def test_missing_bitmap_is_not_trusted() -> None:
    assert untrusted(having(), ONE) == f"checkpoint {ONE.id} is missing from the image"


def test_bitmap_of_a_raw_disk_goes_with_qemu() -> None:
    assert "gone: the domain was restarted" in untrusted(having(driver=BlockDriver.RAW), ONE)


def test_bitmap_of_another_repository_is_not_taken() -> None:
    other = layer(bitmap(name_of(ONE, repository_id=builders.FOREIGN)))
    assert "missing" in untrusted(builders.node(other), ONE)


def test_bitmap_of_another_disk_is_not_taken() -> None:
    """Two images that changed places between two backups."""
    other = layer(bitmap(name_of(ONE, "vdb")))
    assert "missing" in untrusted(builders.node(other), ONE)


def test_bitmap_of_another_backup_of_the_same_name_is_not_taken() -> None:
    """Made into a copy of the repository, or on an image that was another domain's, in the same second."""
    other = layer(bitmap(names.Naming(REPOSITORY).bitmap(ONE.id, "vda", builders.OTHER_TOKEN)))
    reason = untrusted(builders.node(other), ONE)
    assert reason.startswith(f"checkpoint {ONE.id} is that of another backup of the same name")


@pytest.mark.parametrize(
    "recorded",
    [
        None,
        "libvirt-checkpoint",
        f"vbackup-{REPOSITORY}-{ONE.id}-vda",
        names.Naming(builders.FOREIGN).bitmap(ONE.id, "vdb", TOKEN),
        names.Naming(REPOSITORY).bitmap(TWO.id, "vda", TOKEN),
        names.Naming(REPOSITORY).bitmap(ONE.id, "vdb", TOKEN),
    ],
)
def test_bitmap_that_a_manifest_names_must_be_its_own(recorded: str | None) -> None:
    one = backup(1, image(bitmap=recorded))
    node = builders.node(layer(bitmap(recorded or "")))
    choice = auto(node, one)
    assert choice.base is None
    assert ("no earlier backup" if recorded is None else "does not belong to that backup") in choice.reason


def test_checkpoint_of_the_original_is_no_base_in_a_copy_that_was_adopted() -> None:
    """The manifests of a copy have the names of the original's bitmaps."""
    name = names.Naming(builders.FOREIGN).bitmap(ONE.id, "vda", TOKEN)
    choice = auto(builders.node(layer(bitmap(name))), backup(1, image(bitmap=name)))
    assert choice.base is None
    assert choice.reason == (
        f"checkpoint {ONE.id} belongs to repository {builders.FOREIGN}, of which this one was a copy"
    )


def test_working_bitmap_is_not_taken() -> None:
    working = bitmap(names.Naming(REPOSITORY).working_bitmap(ONE.id, "vda"))
    assert "missing" in untrusted(builders.node(layer(working)), ONE)


def test_older_bitmap_does_not_stand_in_for_the_newest() -> None:
    choice = auto(having(ONE), ONE, TWO)
    assert (choice.level, choice.base) == (Level.FULL, None)
    assert TWO.id in choice.reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inconsistent": True, "recording": False}, "inconsistent"),
        ({"inconsistent": True}, "inconsistent"),
        ({"busy": True}, "busy"),
        ({"recording": False}, "disabled"),
        ({"granularity_bytes": 131072}, "a granularity of 131072 bytes, which is not vbackup's (65536)"),
    ],
)
def test_bitmap_in_a_bad_state_is_not_trusted(change: dict[str, bool], said: str) -> None:
    reason = untrusted(builders.node(layer(bitmap(name_of(ONE), **change))), ONE)
    assert ONE.id in reason
    assert said in reason


def test_shrunk_disk_is_not_trusted() -> None:
    reason = untrusted(having(ONE, virtual_size_bytes=SIZE_BYTES - 512), ONE)
    assert reason == f"the disk has shrunk from {SIZE_BYTES} to {SIZE_BYTES - 512} bytes since {ONE.id}"


@pytest.mark.parametrize("driver", ["raw", "luks", "one-of-a-newer-qemu"])
def test_grown_disk_that_is_not_qcow2_is_not_trusted(driver: str) -> None:
    reason = untrusted(having(ONE, driver=BlockDriver(driver), virtual_size_bytes=SIZE_BYTES + MIB), ONE)
    assert reason == f"the {driver} disk has grown from {SIZE_BYTES} to {SIZE_BYTES + MIB} bytes since {ONE.id}"


def test_grown_qcow2_disk_is_trusted_beside_the_mark_of_its_old_end() -> None:
    grown = builders.node(layer(bitmap(name_of(ONE)), end_mark(), virtual_size_bytes=SIZE_BYTES + MIB))
    assert auto(grown, ONE).base == ONE


def test_grown_disk_without_a_mark_of_its_old_end_is_not_trusted() -> None:
    """It may be a larger layer that came back when the overlay was committed."""
    mark = end_mark(size_bytes=SIZE_BYTES + MIB)
    grown = builders.node(layer(bitmap(name_of(ONE)), mark, virtual_size_bytes=SIZE_BYTES + MIB))
    change = f"from {SIZE_BYTES} to {SIZE_BYTES + MIB} bytes since {ONE.id}"
    assert untrusted(grown, ONE) == f"the disk has grown {change}, and has no end mark of the earlier size"


@pytest.mark.parametrize(
    ("cluster_bytes", "is_trusted"), [(512, True), (65536, True), (MIB, True), (2 * SIZE_BYTES, False), (None, False)]
)
def test_growth_within_a_cluster_shows_what_a_larger_disk_had_there(
    cluster_bytes: int | None, is_trusted: bool
) -> None:
    grown = layer(bitmap(name_of(ONE)), end_mark(), virtual_size_bytes=SIZE_BYTES + MIB, cluster_bytes=cluster_bytes)
    if is_trusted:
        assert auto(builders.node(grown), ONE).base == ONE
    else:
        assert "within a cluster of its image" in untrusted(builders.node(grown), ONE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dirty_bytes": 0}, "the disk has been shrunk and grown again"),
        ({"busy": True}, "the disk's end mark is busy with another operation"),
        ({"recording": True}, "the disk's end mark was enabled, so it may not show that the disk was shrunk"),
    ],
)
@pytest.mark.parametrize("grown_bytes", [0, MIB])
def test_end_mark_that_does_not_vouch_distrusts_the_base(change: dict[str, Any], said: str, grown_bytes: int) -> None:
    bitmaps = bitmap(name_of(ONE)), end_mark(**change)
    node = builders.node(layer(*bitmaps, virtual_size_bytes=SIZE_BYTES + grown_bytes))
    assert untrusted(node, ONE) == said


def test_end_mark_is_a_source_so_that_the_last_granule_is_copied() -> None:
    choice = auto(builders.node(layer(bitmap(name_of(ONE)), end_mark())), ONE)
    assert [source.bitmap for source in choice.bitmaps] == [name_of(ONE), end_mark().name]


@pytest.mark.parametrize("mark", [None, end_mark(inconsistent=True), end_mark("vdb"), end_mark(size_bytes=512)])
def test_base_without_an_end_mark_is_trusted(mark: Bitmap | None) -> None:
    """libvirt takes none along to an overlay or a copy."""
    bitmaps = [] if mark is None else [mark]
    choice = auto(builders.node(layer(bitmap(name_of(ONE)), *bitmaps)), ONE)
    assert (choice.base, [source.bitmap for source in choice.bitmaps]) == (ONE, [name_of(ONE)])


def test_end_mark_below_an_overlay_distrusts_a_base_that_is_there_too() -> None:
    below = layer(bitmap(name_of(ONE)), end_mark(dirty_bytes=0), node_name="libvirt-2-format", read_only=True)
    assert "shrunk and grown again" in untrusted(builders.node(layer(bitmap(name_of(ONE))), below), ONE)
    assert auto(of_one_device(layer(bitmap(name_of(ONE)), end_mark()), replace_bitmaps(below)), ONE).base == ONE


def replace_bitmaps(below: Layer) -> Layer:
    """Without the base's bitmap, which is that of a later backup than the snapshot."""
    return replace(below, bitmaps={name: one for name, one in below.bitmaps.items() if "-end-" in name})


def test_raw_disk_is_trusted_while_its_bitmap_is_there() -> None:
    node = builders.node(layer(bitmap(name_of(ONE), persistent=False), driver=BlockDriver.RAW))
    assert auto(node, ONE).base == ONE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "is missing from the image (the domain was started again at 2026-11-23 14:00:00Z)"),
        (
            {"driver": BlockDriver.RAW},
            "is gone: the domain was started again at 2026-11-23 14:00:00Z, or the disk was attached again",
        ),
    ],
)
def test_start_of_the_domain_tells_why_a_bitmap_is_gone(changes: dict[str, str], said: str) -> None:
    started = builders.NOON + timedelta(hours=2)
    choice = choose(Level.AUTO, having(**changes), History([ONE]), naming=Naming(REPOSITORY), started=started)
    assert choice.reason == f"checkpoint {ONE.id} {said}"


def test_start_before_the_backup_tells_nothing() -> None:
    choice = choose(Level.AUTO, having(), History([ONE]), naming=Naming(REPOSITORY), started=ONE.time)
    assert choice.reason == f"checkpoint {ONE.id} is missing from the image"


def test_missing_link_below_the_base_is_not_trusted() -> None:
    choice = auto(having(TWO), TWO)
    assert choice.base is None
    assert f"backup {ONE.id} is missing" in choice.reason
    with pytest.raises(BaseError, match=f"backup {ONE.id} is missing"):
        choose(Level.INCREMENTAL, having(TWO), History([TWO]), naming=Naming(REPOSITORY))


def test_unusable_image_below_the_base_is_not_trusted() -> None:
    choice = auto(having(ONE, TWO), ONE, TWO, unusable=((ONE.id, "vda"),))
    assert choice.base is None
    assert ONE.id in choice.reason


def test_unusable_image_of_another_disk_does_not_matter() -> None:
    assert auto(having(ONE, TWO), ONE, TWO, unusable=((ONE.id, "vdb"),)).base == TWO


# layers


def layers_with(*states: dict[str, Any] | None) -> DiskNode:
    """Layers from the active one down, each with a bitmap of ONE in that state, or without it."""
    layers = [
        layer(
            *([] if state is None else [bitmap(name_of(ONE), **state)]),
            node_name=f"libvirt-{number}-format",
            filename=f"/images/{number}.qcow2",
            read_only=number > 0,
        )
        for number, state in enumerate(states)
    ]
    return of_one_device(*layers)


@pytest.mark.parametrize("recording", [False, True], ids=["libvirt 9.0", "libvirt 11.3"])
def test_changes_are_the_union_over_the_layers_above_the_base(recording: bool) -> None:
    """An external snapshot was made since: libvirt repeats the bitmap in the overlay and may disable the old one."""
    choice = auto(layers_with({}, {"recording": recording}, None), ONE)
    assert choice.base == ONE
    assert [source.node_name for source in choice.bitmaps] == ["libvirt-0-format", "libvirt-1-format"]


def test_overlay_without_the_bitmap_is_not_trusted() -> None:
    """Somebody made it without libvirt: what was written to it since is recorded nowhere."""
    assert "not on every layer above /images/1.qcow2," in untrusted(layers_with(None, {}), ONE)


def test_gap_between_the_layers_is_not_trusted() -> None:
    assert "not on every layer above /images/2.qcow2," in untrusted(layers_with({}, None, {}), ONE)


def test_disk_resized_over_an_overlay_is_not_trusted() -> None:
    """QEMU merges no bitmaps of different sizes."""
    top = layer(bitmap(name_of(ONE)), end_mark(), virtual_size_bytes=SIZE_BYTES + MIB)
    below = layer(bitmap(name_of(ONE)), node_name="libvirt-2-format", filename="/images/below.qcow2", read_only=True)
    said = untrusted(builders.node(top, below), ONE)
    assert f"resized from {SIZE_BYTES} to {SIZE_BYTES + MIB} bytes above the layer /images/below.qcow2," in said


def test_disk_resized_over_a_layer_that_does_not_count_is_trusted() -> None:
    top = layer(bitmap(name_of(ONE)), end_mark(), virtual_size_bytes=SIZE_BYTES + MIB)
    assert auto(of_one_device(top, layer(node_name="libvirt-2-format", read_only=True)), ONE).base == ONE


# what no bitmap covers


def test_layer_below_that_is_not_proven_to_be_unchanged_is_not_trusted() -> None:
    node = builders.node(layer(bitmap(name_of(ONE))), layer(node_name="libvirt-2-format", filename="/images/base"))
    assert untrusted(node, ONE) == f"backup {ONE.id} had 0 images below, and now there is 1 image"
    old = backup(1, image(chain=None))
    assert untrusted(node, old).startswith(f"backup {old.id} was made by a version of vbackup that did not record")


def test_content_is_asked_for_only_if_everything_else_speaks_for_the_base() -> None:
    file = FileState("/images/base", 1, 2, size_bytes=3, mtime_ns=4, ctime_ns=5, digest="sha256-bytes:00")
    top = LayerState("libvirt-1-format", FileState("/images/vda.qcow2"))
    one = backup(1, image(chain=ChainState((top, LayerState("below", file)))))
    touched = replace(file, ctime_ns=6, digest=None)
    now = ChainState((top, LayerState("below", touched)))

    def ask(*bitmaps: Bitmap, level: Level = Level.AUTO) -> tuple[FileState, ...]:
        node = replace(builders.node(layer(*bitmaps), layer(node_name="below")), looked_at=now)
        return undecided(level, node, History([one]), naming=Naming(REPOSITORY))

    good = bitmap(name_of(one))
    assert ask(good) == ask(good, level=Level.INCREMENTAL) == ask(good, level=Level.DIFFERENTIAL) == (touched,)
    assert ask(good, level=Level.FULL) == ask(good, level=Level.COPY) == ask() == ()
    assert ask(replace(good, inconsistent=True)) == ()


def test_data_file_that_is_not_proven_to_be_unchanged_is_not_trusted() -> None:
    node = builders.node(layer(bitmap(name_of(ONE)), data_file="/images/data"))
    assert "had the data file /images/data" in untrusted(node, ONE)


def test_base_without_a_record_is_trusted_where_nothing_is_below() -> None:
    """Earlier versions made it."""
    old = backup(1, image(chain=None))
    assert auto(having(old), old).base == old


def test_image_of_another_name_is_known_by_the_end_mark_of_the_newest_backup() -> None:
    moved = layer(bitmap(name_of(ONE)), bitmap(name_of(TWO)), end_mark(), filename="/images/moved.qcow2")
    assert auto(builders.node(moved), ONE).base == ONE
    assert "nothing proves that /images/moved.qcow2 has the content" in untrusted(
        builders.node(layer(bitmap(name_of(ONE)), filename="/images/moved.qcow2")), ONE
    )
    # Since the full, libvirt may have made the image as an overlay, and the second backup its end mark.
    with pytest.raises(BaseError, match="nothing proves"):
        choose(Level.DIFFERENTIAL, builders.node(moved), History([ONE, TWO]), naming=Naming(REPOSITORY))


def test_disabled_bitmap_on_the_active_layer_is_not_trusted() -> None:
    assert "disabled" in untrusted(layers_with({"recording": False}, {"recording": False}), ONE)


@pytest.mark.parametrize("state", [{"inconsistent": True}, {"busy": True}, {"granularity_bytes": 4096}])
def test_bad_bitmap_on_a_lower_layer_is_not_trusted(state: dict[str, Any]) -> None:
    untrusted(layers_with({}, {"recording": False, **state}), ONE)


# the whole backup


def choice(base: Backup | None) -> Choice:
    return Choice(Level.INCREMENTAL if base else Level.FULL, base, (), "")


def test_parent_is_the_newest_base() -> None:
    assert parent_of([choice(None), choice(None)]) is None
    assert parent_of([choice(ONE), choice(THREE), choice(None), choice(TWO)]) == THREE.id


def test_backup_is_full_only_if_every_disk_is() -> None:
    assert level_of(Level.AUTO, [choice(None), choice(None)]) is Level.FULL
    assert level_of(Level.AUTO, [choice(None), choice(ONE)]) is Level.INCREMENTAL
    for asked in (Level.FULL, Level.COPY, Level.DIFFERENTIAL, Level.INCREMENTAL):
        assert level_of(asked, [choice(ONE)]) is asked


RESTORED_IMAGE = FileState("/out/vda.qcow2", 1, 7, 1, 1)


def restored(base: Backup, *, after: int, token: str = OTHER_TOKEN, dev: str = "vda") -> RestoredDisk:
    """A restore of that backup, when the backup with the sequence ``after`` was the newest."""
    bitmap_name = names.Naming(REPOSITORY).bitmap(base.id, dev, token)
    return RestoredDisk(dev, base.id, bitmap_name, SIZE_BYTES, after, ChainState((LayerState("", RESTORED_IMAGE),)))


def on(*names_of_bitmaps: str, file: FileState = RESTORED_IMAGE, marked: bool = True) -> DiskNode:
    """A disk with these bitmaps and that file."""
    one = layer(*map(bitmap, names_of_bitmaps), *([end_mark()] if marked else []))
    return replace(builders.node(one), looked_at=ChainState((LayerState("libvirt-1-format", file),)))


def after_restores(node: DiskNode, *restores: RestoredDisk, level: Level = Level.AUTO) -> Choice:
    history = History([ONE, TWO, THREE], restored=restores)
    return choose(level, node, history, naming=Naming(REPOSITORY))


def test_restored_disk_starts_from_the_point_and_not_from_the_newest() -> None:
    one = restored(TWO, after=3)
    choice = after_restores(on(one.bitmap), one)
    assert (choice.level, choice.base) == (Level.INCREMENTAL, TWO)
    assert choice.reason == f"changes since {TWO.id}, to which the disk was restored"
    assert choice.chain is one.chain
    assert after_restores(on(one.bitmap), one, level=Level.INCREMENTAL).base == TWO


def test_newer_restore_comes_first_and_the_bitmap_of_the_newest_stays_second() -> None:
    first, second = restored(TWO, after=3), restored(ONE, after=3, token="0" * 12)
    assert after_restores(on(name_of(THREE), first.bitmap, second.bitmap), first, second).base == ONE
    assert after_restores(on(name_of(THREE), first.bitmap), first, second).base == TWO
    # As after a rollback whose backup was removed.
    full = backup(4)
    lost = History([ONE, TWO, full], [(TWO.id, "vda")], restored=[replace(first, after=4)])
    node = on(name_of(full), first.bitmap, file=FileState("/images/vda.qcow2"))
    assert choose(Level.AUTO, node, lost, naming=Naming(REPOSITORY)).base == full


def test_restored_image_comes_into_use_after_further_backups() -> None:
    one = restored(ONE, after=1)
    assert after_restores(on(one.bitmap), one).base == ONE
    assert after_restores(on(one.bitmap, name_of(THREE)), one).base == THREE


@pytest.mark.parametrize(
    "change",
    [
        {"inconsistent": True},
        {"recording": False},
        {"busy": True},
        {"granularity_bytes": 4096},
    ],
)
def test_restored_bitmap_is_trusted_like_any_other(change: dict[str, Any]) -> None:
    one = restored(TWO, after=3)
    node = on(one.bitmap)
    node = replace(node, layers=(layer(bitmap(one.bitmap, **change), end_mark()),))
    choice = after_restores(node, one)
    assert choice.base is None
    assert f"checkpoint {TWO.id}" in choice.reason


def test_restored_bitmap_of_another_restore_disk_or_file_is_not_trusted() -> None:
    one = restored(TWO, after=3)
    unknown = names.Naming(REPOSITORY).bitmap(TWO.id, "vda", "0" * 12)
    assert after_restores(on(unknown), one).base is None
    assert after_restores(on(one.bitmap), restored(TWO, after=3, dev="vdb")).base is None
    # An overlay of another file: libvirt gives it the bitmap, and no end mark.
    other = replace(RESTORED_IMAGE, path="/other", inode=8)
    assert "nothing proves that /other" in after_restores(on(one.bitmap, file=other, marked=False), one).reason
    assert after_restores(on(one.bitmap, file=other), one).base == TWO  # a copy of the file


def test_end_mark_vouches_for_the_latest_checkpoint_of_a_disk_alone() -> None:
    """libvirt may have laid this file over the image, and whatever came after that has made its end mark there."""
    moved = replace(RESTORED_IMAGE, path="/images/overlay.qcow2", inode=9)
    first, second = restored(ONE, after=3), restored(TWO, after=3, token="0" * 12)
    assert after_restores(on(second.bitmap, first.bitmap, file=moved), first, second).base == TWO
    # A later restore, whose bitmap is no longer of use.
    broken = layer(bitmap(second.bitmap, inconsistent=True), bitmap(first.bitmap), end_mark())
    assert after_restores(replace(on(file=moved), layers=(broken,)), first, second).base is None
    # A later backup.
    earlier = restored(ONE, after=1)
    assert after_restores(on(earlier.bitmap, file=moved), earlier).base is None
    # A later restore, for the bitmap of the newest backup.
    three = replace(THREE, disks=(replace(THREE.disks[0], chain=ChainState((LayerState("", RESTORED_IMAGE),))),))
    rolled_back = replace(first, is_in_place=True)
    for on_disk, restores, is_trusted in (
        ([], [], True),
        ([], [first], True),  # to a directory, which has nothing to do with this image
        ([], [rolled_back], False),
        ([first.bitmap], [first], False),
    ):
        unusable = [bitmap(name, inconsistent=True) for name in on_disk]
        node = replace(on(file=moved), layers=(layer(bitmap(name_of(three)), *unusable, end_mark()),))
        choice = choose(Level.AUTO, node, History([ONE, TWO, three], restored=restores), naming=Naming(REPOSITORY))
        assert (choice.base == three) is is_trusted


def test_restore_is_older_than_a_backup_that_has_got_the_sequence_of_a_lost_one() -> None:
    since = replace(restored(ONE, after=3), after_id=THREE.id)
    lost = replace(since, after_id="20261123T235959Z-full")
    for one, base in ((since, ONE), (lost, THREE)):
        assert after_restores(on(one.bitmap, name_of(THREE)), one).base == base


def test_differential_starts_from_a_restored_full_only() -> None:
    full, other = restored(ONE, after=3), restored(TWO, after=3, token="0" * 12)
    assert after_restores(on(full.bitmap), full, level=Level.DIFFERENTIAL).base == ONE
    with pytest.raises(BaseError):
        after_restores(on(other.bitmap), other, level=Level.DIFFERENTIAL)


def test_audit_that_distrusts_the_point_counts_after_a_restore() -> None:
    one = restored(TWO, after=3)
    history = History([ONE, TWO, THREE], (), {(TWO.id, "vda"): "an audit found changes"}, restored=[one])
    assert choose(Level.AUTO, on(one.bitmap), history, naming=Naming(REPOSITORY)).reason == "an audit found changes"


# what a pull session names


def test_checkpoint_that_is_named_is_the_only_start() -> None:
    history = History([ONE, TWO])
    start = history.start_at(ONE.id, "vda")
    assert start is not None
    choice = choose(Level.AUTO, having(ONE, TWO), history, naming=Naming(REPOSITORY), starts=[start])
    assert (choice.base, choice.code) == (ONE, Reason.BASE)
    choice = choose(Level.AUTO, having(TWO), history, naming=Naming(REPOSITORY), starts=[start])
    assert (choice.base, choice.code) == (None, Reason.MISSING)
    choice = choose(Level.AUTO, having(ONE, TWO), history, naming=Naming(REPOSITORY), starts=[])
    assert (choice.base, choice.code) == (None, Reason.NO_BASE)
