"""Which images are merged into which, how, and in which order; nothing is read or written."""

from __future__ import annotations

import json

import pytest

from tests.unit.builders import MIB, backup, image, incremental
from vbackup.errors import ChainError, NoSpaceError, StorageError
from vbackup.model import Backup, BlocksRecord, Level
from vbackup.repository import merging
from vbackup.repository.history import History
from vbackup.repository.merging import Place, Way

BLOCKS = BlocksRecord("blake3:00", "blake3:11", data_blocks=3, zero_blocks=0)
ROOM = Place(reflinks=False, links=True, free_bytes=1 << 40)
XFS = Place(reflinks=True, links=True, free_bytes=1 << 40)


def full(number: int, *devs: str) -> Backup:
    return backup(number, *(image(dev, blocks=BLOCKS) for dev in devs or ("vda",)))


def upon(number: int, base: Backup, *devs: str, size_bytes: int = 16 * MIB) -> Backup:
    images = (
        image(dev, level=Level.INCREMENTAL, base=base.id, blocks=BLOCKS, virtual_size_bytes=size_bytes)
        for dev in devs or ("vda",)
    )
    return backup(number, *images, level=Level.INCREMENTAL)


def layers(plan: merging.Plan) -> dict[tuple[str, str], tuple[tuple[str, ...], str | None, Way]]:
    return {(merge.heir, disk.dev): (disk.layers, disk.base, disk.way) for merge in plan.merges for disk in merge.disks}


def test_several_adjacent_backups_are_merged_at_once() -> None:
    a = full(1)
    b, c, d = upon(2, a), None, None
    c = upon(3, b)
    d = upon(4, c)
    plan = merging.removal(History([a, b, c, d]), [a.id, b.id], way=Way.AUTO, place=ROOM)
    assert layers(plan) == {(c.id, "vda"): ((c.id, b.id, a.id), None, Way.IN_PLACE)}
    assert plan.removed == (b.id, a.id)
    assert plan.needs_bytes == 2 * 200704 + MIB
    json.dumps(plan.document())


def test_middle_of_a_chain_keeps_its_base() -> None:
    a = full(1)
    b = upon(2, a)
    c = upon(3, b)
    plan = merging.removal(History([a, b, c]), [b.id], way=Way.AUTO, place=XFS)
    assert layers(plan) == {(c.id, "vda"): ((c.id, b.id), a.id, Way.REFLINK)}


def test_last_of_several_heirs_takes_over_the_image_itself() -> None:
    """The others copy it first; in place comes last."""
    a = full(1)
    heirs = [upon(number, a) for number in (2, 3, 4)]
    plan = merging.removal(History([a, *heirs]), [a.id], way=Way.AUTO, place=ROOM)
    ways = [(merge.heir, merge.disks[0].way) for merge in plan.merges]
    assert ways == [(heirs[0].id, Way.COPY), (heirs[1].id, Way.COPY), (heirs[2].id, Way.IN_PLACE)]


def test_each_disk_has_its_own_heir() -> None:
    a = full(1, "vda", "vdb")
    b, c = upon(2, a, "vda"), upon(3, a, "vdb")
    plan = merging.removal(History([a, b, c]), [a.id], way=Way.AUTO, place=ROOM)
    assert layers(plan) == {
        (b.id, "vda"): ((b.id, a.id), None, Way.IN_PLACE),
        (c.id, "vdb"): ((c.id, a.id), None, Way.IN_PLACE),
    }


def test_what_no_other_needs_is_only_removed() -> None:
    a = full(1)
    b = upon(2, a)
    plan = merging.removal(History([a, b]), [b.id], way=Way.NEVER, place=ROOM)
    assert (plan.merges, plan.removed, plan.kept) == ((), (b.id,), {})
    assert merging.removal(History([a, b]), [a.id, b.id], way=Way.NEVER, place=ROOM).removed == (b.id, a.id)


def test_never_keeps_what_others_need() -> None:
    a = full(1)
    b = upon(2, a)
    c = upon(3, b)
    plan = merging.removal(History([a, b, c]), [a.id, b.id], way=Way.NEVER, place=ROOM)
    assert plan.removed == ()
    assert plan.kept == {b.id: f"{c.id} depends on it", a.id: f"{b.id} depends on it"}


def test_kept_backup_keeps_what_it_depends_on() -> None:
    a = full(1)
    b = upon(2, a)
    c = upon(3, b)
    plan = merging.removal(History([a, b, c]), [a.id, b.id], way=Way.AUTO, place=ROOM, kept={b.id: "in use"})
    assert (plan.removed, plan.merges) == ((), ())
    assert plan.kept == {b.id: "in use", a.id: f"{b.id} depends on it"}


@pytest.mark.parametrize("way", [Way.AUTO, Way.IN_PLACE])
def test_grown_disk_is_not_merged_in_place(way: Way) -> None:
    a = full(1)
    b = upon(2, a, size_bytes=32 * MIB)
    history = History([a, b])
    if way is Way.IN_PLACE:
        with pytest.raises(StorageError, match="the disk has grown between them; use --consolidate auto or copy"):
            merging.removal(history, [a.id], way=way, place=ROOM)
    else:
        plan = merging.removal(history, [a.id], way=way, place=ROOM)
        assert layers(plan)[b.id, "vda"][2] is Way.COPY


def test_image_without_a_list_is_not_merged_in_place() -> None:
    a = backup(1)
    b = incremental(2, a)
    plan = merging.removal(History([a, b]), [a.id], way=Way.AUTO, place=ROOM)
    assert layers(plan)[b.id, "vda"][2] is Way.COPY


def test_no_room_names_the_way_that_fits() -> None:
    a = full(1)
    b = upon(2, a)
    tight = Place(reflinks=False, links=True, free_bytes=200704 + MIB)
    with pytest.raises(NoSpaceError, match=r"need up to 1\.4 MiB, and 1\.2 MiB are free.*--consolidate in-place fits"):
        merging.removal(History([a, b]), [a.id], way=Way.COPY, place=tight)
    assert merging.removal(History([a, b]), [a.id], way=Way.AUTO, place=tight).merges
    with pytest.raises(NoSpaceError, match="no way fits"):
        merging.removal(History([a, b]), [a.id], way=Way.AUTO, place=Place(False, True, 1000))


def test_unknown_backup_and_broken_chain_are_refused() -> None:
    a = full(1)
    b = upon(2, a)
    with pytest.raises(ChainError, match="No backup"):
        merging.removal(History([a, b]), ["x"], way=Way.AUTO, place=ROOM)
    with pytest.raises(ChainError, match="missing or has another size"):
        merging.removal(History([a, b], {(a.id, "vda")}), [a.id], way=Way.AUTO, place=ROOM)


def test_independence_takes_the_whole_chain_and_removes_nothing() -> None:
    a = full(1)
    b = upon(2, a)
    c = upon(3, b)
    plan = merging.independence(History([a, b, c]), [(c.id, "vda"), (a.id, "vda")], way=Way.AUTO, place=ROOM)
    assert layers(plan) == {(c.id, "vda"): ((c.id, b.id, a.id), None, Way.COPY)}
    assert plan.removed == ()


def test_fulls_cut_long_chains() -> None:
    a = full(1)
    chain = [a]
    for number in range(2, 8):
        chain.append(upon(number, chain[-1]))
    assert merging.too_long(History(chain), 3) == [(chain[3].id, "vda"), (chain[6].id, "vda")]
    assert merging.too_long(History(chain), 7) == []


def test_record_of_an_heir() -> None:
    a = full(1, "vda", "vdb")
    b = upon(2, a, "vda", "vdb")
    history = History([a, b])
    plan = merging.removal(history, [a.id], way=Way.AUTO, place=ROOM)
    new = BlocksRecord("blake3:22", "blake3:33", data_blocks=5, zero_blocks=1)
    made = merging.merged_backup(b, dict.fromkeys(("vda", "vdb"), (new, 77)), plan.merges[0].disks, history)
    assert (made.id, made.sequence, made.level, made.parent) == (b.id, b.sequence, Level.FULL, None)
    one = made.image("vda")
    assert one is not None
    assert (one.base, one.level, one.blocks, one.file_size_bytes, one.digest) == (None, Level.FULL, new, 77, None)
    assert one.bitmap == b.disks[0].bitmap
    assert one.full == a.id
    # The next differential starts from it: its checkpoint's bitmap has to be kept.
    assert History([made]).last_full("vda") is made


def heirs_of(history: History, *removed: Backup) -> list[Backup]:
    """The records of all heirs, each made with the history that the one before has left."""
    plan = merging.removal(history, [one.id for one in removed], way=Way.COPY, place=ROOM)
    made = []
    for each in plan.merges:
        heir = merging.merged_backup(
            history.get(each.heir), {disk.dev: (BLOCKS, 77) for disk in each.disks}, each.disks, history
        )
        history = history.without([heir.id]).with_committed(heir)
        made.append(heir)
    return made


def test_full_of_many_merges_remembers_the_one_it_began_with() -> None:
    a = full(1)
    chain = [a]
    for number in range(2, 6):
        chain.append(upon(number, chain[-1]))
    history = History(chain)
    for removed in range(4):  # as retention of one day does it
        (heir,) = heirs_of(history, history.backups[0])
        assert heir.disks[0].full == a.id, removed
        history = History([heir, *history.backups[2:]])
    assert history.copied_whole("vda") == (a.id, a.time)
    c = upon(3, upon(2, a))
    (between,) = heirs_of(History([a, upon(2, a), c]), upon(2, a))
    assert between.disks[0].full is None


def test_heir_of_the_last_full_takes_over_its_checkpoint() -> None:
    a = full(1)
    b, d = upon(2, a), upon(3, a)
    c = upon(4, b)
    made = heirs_of(History([a, b, d, c]), a)
    assert {one.id for one in made} == {b.id, d.id}
    for one in made:
        assert (one.disks[0].bitmap, one.disks[0].checkpoint) == (a.disks[0].bitmap, a.id)
    after = History([*made, c])
    (start,) = after.starts("vda", of_full=True, on_disk=())
    assert (start.backup.id, start.checkpoint, start.is_latest) == (d.id, a.id, False)
    assert after.checkpoints == {a.id}
    assert after.base_bitmaps("vda") == History([a, b, c]).base_bitmaps("vda")
    # The next heir takes over what this one has taken over.
    again = heirs_of(History([made[0] if made[0].id == b.id else made[1], c, upon(5, c)]), b)
    assert (again[0].disks[0].bitmap, again[0].disks[0].checkpoint) == (a.disks[0].bitmap, a.id)


def test_heir_has_no_checkpoint_that_shows_too_little_or_is_not_there() -> None:
    a = full(1)
    b = upon(2, a)
    grown = upon(2, a, size_bytes=32 * MIB)
    end = backup(4, image(blocks=BLOCKS, level=Level.INCREMENTAL, base=b.id), level=Level.INCREMENTAL)
    cases = [
        History([a, grown, upon(3, grown, size_bytes=32 * MIB)]),
        History([a, b, full(3), end]),  # the bitmap of a was removed when the later full was made
        History([a, b, end], distrusted={(a.id, "vda"): "an audit found changes that it had missed"}),
    ]
    for history in cases:
        (heir,) = heirs_of(history, a)
        assert (heir.disks[0].bitmap, heir.disks[0].checkpoint, heir.level) == (None, None, Level.FULL)


def test_backup_that_is_being_merged_is_a_part_of_chains_only() -> None:
    a = full(1)
    b = upon(2, a)
    history = History([a, b], merging=[a.id])
    assert [one.id for one in history.backups] == [b.id]
    assert [link.backup.id for link in history.links(b.id, "vda")] == [b.id, a.id]
    with pytest.raises(ChainError, match="is being removed"):
        history.get(a.id)
    plan = merging.removal(history, [a.id], way=Way.AUTO, place=ROOM)
    assert layers(plan)[b.id, "vda"] == ((b.id, a.id), None, Way.IN_PLACE)
