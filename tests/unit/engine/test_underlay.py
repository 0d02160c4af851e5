"""What no bitmap covers is trusted if it is proven to be unchanged, and only then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vbackup.engine import underlay
from vbackup.layers import ChainState, FileState, LayerState

TOP, MIDDLE, BASE, OVER, OTHER = (
    LayerState(f"node-{name}", FileState(f"/images/{name}", 1, number, size_bytes=100, mtime_ns=1000 + number))
    for number, name in enumerate(("top", "middle", "base", "over", "other"))
)
DATA = FileState("/images/data.raw", 1, 50, size_bytes=200, mtime_ns=5)


def chain(*layers: LayerState, mark: str | None = None, boot: str = "boot") -> ChainState:
    return ChainState(layers, device_mark=mark, boot_id=boot)


def flaw(then: ChainState | None, now: ChainState, covered: int = 1, *, known: bool = False) -> str | None:
    """``covered`` layers from the top down have the bitmap."""
    with_bitmap = [layer.node_name for layer in now.layers[:covered]]
    return underlay.flaw(then, now, with_bitmap=with_bitmap, is_known_image=known)


def written(layer: LayerState) -> LayerState:
    return replace(layer, file=replace(layer.file, mtime_ns=9999))


def unproven(layer: LayerState) -> LayerState:
    return replace(layer, file=layer.file.unproven())


def of_another_name(layer: LayerState) -> LayerState:
    return replace(layer, node_name=f"{layer.node_name}-again")


THREE = chain(TOP, MIDDLE, BASE)


@pytest.mark.parametrize(
    ("now", "covered"),
    [
        (THREE, 1),
        (chain(written(TOP), MIDDLE, BASE), 1),
        (chain(*map(of_another_name, (TOP, MIDDLE, BASE))), 1),
        (chain(OVER, TOP, MIDDLE, BASE), 2),
        (chain(MIDDLE, BASE), 1),
    ],
)
def test_chain_whose_lower_files_are_unchanged_is_trusted(now: ChainState, covered: int) -> None:
    assert flaw(THREE, now, covered) is None


@pytest.mark.parametrize(
    ("now", "covered"),
    [
        (chain(written(MIDDLE), BASE), 1),  # the top was committed into it, and with it the bitmap
        (chain(OVER, written(MIDDLE), BASE), 2),
        (chain(written(BASE)), 1),
    ],
)
def test_layer_that_has_the_bitmap_only_since_a_commit_is_trusted_while_qemu_runs(
    now: ChainState, covered: int
) -> None:
    """Before the commit, and after a restart, something may have written to it that no bitmap has."""
    found = flaw(THREE, now, covered)
    assert found is not None
    assert "into which layers were committed since" in found
    same = replace(THREE, device_mark="1"), replace(now, device_mark="1")
    assert flaw(*same, covered) is None


@pytest.mark.parametrize(
    ("now", "covered", "said"),
    [
        (chain(TOP, OTHER, BASE), 1, "had /images/middle below, and now /images/other is there"),
        (
            chain(TOP, replace(MIDDLE, file=replace(MIDDLE.file, inode=77)), BASE),
            1,
            "had /images/middle below, and now another file of that name is there",
        ),
        (chain(TOP, written(MIDDLE), BASE), 1, "had /images/middle below, which was written to since"),
        (chain(TOP, MIDDLE, written(BASE)), 1, "had /images/base below, which was written to since"),
        (chain(TOP, BASE), 1, "had /images/middle below, and now /images/base is there"),
        (chain(TOP, MIDDLE), 1, "had 2 images below, and now there is 1 image"),
        (chain(TOP), 1, "had 2 images below, and now there are 0 images"),
        (chain(TOP, MIDDLE, BASE, OTHER), 1, "had 2 images below, and now there are 3 images"),
        (chain(TOP, unproven(MIDDLE), BASE), 1, "nothing proves that this was not changed since"),
        (chain(OVER, MIDDLE, BASE), 1, "was of /images/top, and nothing proves that /images/over has the content"),
        (chain(OVER, TOP, MIDDLE, BASE), 1, "was of /images/top, and nothing proves"),
        (chain(OVER, BASE), 1, "was of /images/top, and nothing proves"),
    ],
)
def test_change_below_is_told(now: ChainState, covered: int, said: str) -> None:
    found = flaw(THREE, now, covered)
    assert found is not None
    assert said in found


def test_unproven_at_the_base_is_not_trusted_later() -> None:
    assert "nothing proves" in (flaw(chain(TOP, unproven(MIDDLE), BASE), THREE) or "")


# content: what size and times do not tell

D1, D2 = "sha256-bytes:11", "sha256-bytes:22"


def known(layer: LayerState, digest: str | None = D1, **changes: int | None) -> LayerState:
    return replace(layer, file=replace(layer.file, **{"ctime_ns": 7, **changes}, digest=digest))


def undecided(then: ChainState | None, now: ChainState, covered: int = 1) -> list[str]:
    with_bitmap = [layer.node_name for layer in now.layers[:covered]]
    return [file.path for file in underlay.undecided(then, now, with_bitmap=with_bitmap)]


RECORDED = chain(TOP, known(MIDDLE), known(BASE, D2))


def test_digest_is_asked_for_only_where_it_decides() -> None:
    touched = chain(TOP, known(MIDDLE, None, ctime_ns=8), known(BASE, None))
    assert undecided(RECORDED, touched) == ["/images/middle"]
    # Unchanged, the same device, another file above or below, or nothing recorded: nothing is read for that.
    assert undecided(RECORDED, chain(TOP, known(MIDDLE, None), known(BASE, None))) == []
    assert undecided(replace(RECORDED, device_mark="m"), replace(touched, device_mark="m")) == []
    assert undecided(RECORDED, chain(TOP, known(MIDDLE, None, ctime_ns=8), OTHER)) == []
    assert undecided(RECORDED, chain(TOP, known(MIDDLE, None, ctime_ns=8))) == []
    assert undecided(RECORDED, chain(OTHER, *touched.layers[1:])) == []
    assert undecided(None, touched) == []
    assert undecided(THREE, touched) == []
    # The one is not recorded, so that it is no use to read the other.
    half = chain(TOP, known(MIDDLE), known(BASE, None))
    assert undecided(half, chain(TOP, known(MIDDLE, None, ctime_ns=8), known(BASE, None, ctime_ns=8))) == []
    # What has the bitmap is not compared.
    assert undecided(RECORDED, chain(known(MIDDLE, None, mtime_ns=9, ctime_ns=8), known(BASE, None))) == []


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (known(MIDDLE), known(MIDDLE, D1, ctime_ns=8), None),
        (known(MIDDLE), known(MIDDLE, D1, mtime_ns=9, ctime_ns=8), None),
        (known(MIDDLE), known(MIDDLE, D2, mtime_ns=9, ctime_ns=8), "which was written to since"),
        (known(MIDDLE), known(MIDDLE, D2, ctime_ns=8), "which was overwritten since, and given back its time of"),
        (
            known(MIDDLE),
            known(MIDDLE, None, ctime_ns=8),
            "touched since, and cannot be read now to compare its content",
        ),
        (known(MIDDLE, None), known(MIDDLE, D1, ctime_ns=8), "and no digest of its content is recorded that would"),
    ],
)
def test_content_decides_where_the_file_was_touched(then: LayerState, now: LayerState, said: str | None) -> None:
    found = flaw(chain(TOP, then, BASE), chain(TOP, now, BASE))
    if said is None:
        assert found is None
    else:
        assert (found or "").startswith("had /images/middle below, which was ")
        assert said in (found or "")


def test_digest_goes_on_without_reading_while_a_base_is_trusted() -> None:
    """With the ctime that it was read with: what was changed meanwhile is found at the next comparison."""
    now = chain(known(TOP, None), known(MIDDLE, None, ctime_ns=8), known(BASE, None))
    assert underlay.remembered(now, [RECORDED], is_trusted=True) == chain(
        known(TOP, None), known(MIDDLE), known(BASE, D2)
    )
    # A full copies what is there now.
    assert underlay.remembered(now, [RECORDED], is_trusted=False) == chain(
        known(TOP, None), known(MIDDLE, None, ctime_ns=8), known(BASE, D2)
    )
    assert underlay.remembered(now, [None, THREE, RECORDED], is_trusted=True).layers[1:] == RECORDED.layers[1:]
    assert underlay.remembered(now, [], is_trusted=True) == now
    written_to = chain(TOP, known(MIDDLE, None, mtime_ns=9))
    assert underlay.remembered(written_to, [RECORDED], is_trusted=True) == written_to
    compared = chain(TOP, known(MIDDLE, D1, ctime_ns=8))
    assert underlay.remembered(compared, [RECORDED], is_trusted=True) == compared


def test_digests_that_are_missing_are_read_once() -> None:
    def unread(now: ChainState, base: ChainState | None, *with_bitmaps: LayerState) -> list[str]:
        names = [layer.node_name for layer in with_bitmaps]
        return [file.path for file in underlay.unread(now, base, with_bitmaps=names)]

    now = chain(TOP, MIDDLE, known(BASE))
    assert unread(now, None) == ["/images/middle"]
    assert unread(now, THREE) == ["/images/middle"]
    assert unread(chain(TOP, unproven(MIDDLE)), None) == []
    # The active layer of the base, which a snapshot has just made one below: it is as large as the disk.
    snapshot = chain(OVER, written(TOP), MIDDLE)
    assert unread(snapshot, chain(TOP, MIDDLE), OVER, TOP) == ["/images/middle"]
    assert unread(snapshot, None, OVER, TOP) == ["/images/top", "/images/middle"]
    assert unread(snapshot, snapshot, OVER, TOP) == ["/images/top", "/images/middle"]  # it has stayed
    # A template whose own backup has put bitmaps there.
    own = replace(MIDDLE, file=replace(MIDDLE.file, mtime_ns=9999, earlier=((100, 1001),)))
    assert unread(chain(TOP, own, known(BASE)), THREE, MIDDLE) == ["/images/middle"]


# the device


@pytest.mark.parametrize(
    "now",
    [
        chain(TOP, written(MIDDLE), unproven(BASE), mark="m"),
        chain(TOP, mark="m"),
        chain(OVER, mark="m"),
        chain(OVER, OTHER, mark="m"),
    ],
)
def test_chain_of_one_device_is_trusted_whatever_became_of_it(now: ChainState) -> None:
    """Block jobs commit, pull and copy it, also away from all of its files."""
    assert flaw(chain(TOP, MIDDLE, BASE, mark="m"), now) is None


def test_active_layer_that_lost_its_bitmap_is_not_trusted() -> None:
    said = flaw(chain(TOP, BASE, mark="m"), chain(OVER, TOP, BASE, mark="m"))
    assert said == "had /images/top as its active layer, which has lost the bitmap"


@pytest.mark.parametrize(("then", "now"), [("m", "n"), (None, None), ("m", None), (None, "m")])
def test_another_device_proves_nothing(then: str | None, now: str | None) -> None:
    assert flaw(chain(TOP, BASE, mark=then), chain(TOP, written(BASE), mark=now)) is not None


# the active image


def test_image_that_is_known_may_be_another_file() -> None:
    assert flaw(chain(TOP, BASE), chain(OTHER, BASE), known=True) is None
    assert flaw(chain(TOP, BASE), chain(OTHER, written(BASE)), known=True) is not None
    assert flaw(chain(TOP), chain(OTHER), known=True) is None


def test_image_that_cannot_be_looked_at_is_known_by_its_name() -> None:
    """A block device, or a file of another host; it has the bitmap."""
    assert flaw(chain(unproven(TOP)), chain(unproven(TOP))) is None
    assert flaw(chain(unproven(TOP)), chain(unproven(OTHER))) is not None


def test_files_keep_their_inodes_over_a_reboot() -> None:
    moved = [replace(layer, file=replace(layer.file, device=9)) for layer in (TOP, BASE)]
    assert flaw(chain(TOP, BASE), chain(*moved, boot="another")) is None
    assert flaw(chain(TOP, BASE), chain(*moved)) is not None


# manifests of earlier versions


def test_base_without_a_record_is_trusted_where_nothing_is_below() -> None:
    assert flaw(None, chain(TOP)) is None
    assert flaw(None, chain(OVER, TOP), 2) is None
    assert flaw(None, chain(TOP, BASE)) == underlay.UNRECORDED
    assert flaw(chain(), chain(TOP, BASE)) == underlay.UNRECORDED  # somebody emptied it
    assert flaw(None, chain(replace(TOP, data_file=DATA))) == underlay.UNRECORDED


# data files


def test_data_file_is_trusted_while_nothing_has_written_to_it() -> None:
    then = chain(replace(TOP, data_file=DATA), BASE)
    assert flaw(then, then) is None
    for data_file in (replace(DATA, mtime_ns=6), replace(DATA, inode=51), DATA.unproven()):
        said = flaw(then, chain(replace(TOP, data_file=data_file), BASE))
        assert said is not None
        assert said.startswith(
            "had the data file /images/data.raw: unless the domain runs all the time, nothing proves"
        )
    assert flaw(chain(TOP, BASE), then) is not None


def test_data_file_of_a_lower_layer_counts_as_the_layer_does() -> None:
    then = chain(TOP, replace(BASE, data_file=DATA))
    assert flaw(then, then) is None
    assert "data.raw below, which was written to" in (
        flaw(then, chain(TOP, replace(BASE, data_file=replace(DATA, mtime_ns=6)))) or ""
    )
    for one, other in ((then, chain(TOP, BASE)), (chain(TOP, BASE), then)):
        assert flaw(one, other) == "had /images/base below, whose data file is another now"


# between two looks


def test_change_between_two_looks_is_found() -> None:
    assert underlay.changed(THREE, chain(written(TOP), MIDDLE, BASE)) is None
    assert underlay.changed(THREE, chain(TOP, MIDDLE, written(BASE))) == "/images/base"
    assert underlay.changed(chain(TOP, unproven(BASE)), chain(TOP, BASE)) is None
    assert underlay.changed(chain(TOP, BASE), chain(TOP, unproven(BASE))) == "/images/base"
    assert underlay.changed(THREE, chain(TOP)) == "/images/base"
    # libvirt starts another domain with that file.
    assert underlay.changed(RECORDED, chain(TOP, known(MIDDLE, None, ctime_ns=8), known(BASE, None))) is None


def test_what_only_the_second_look_proves_is_not_proven() -> None:
    """It may have been written between the moment and that look."""
    marked = chain(TOP, MIDDLE, BASE, mark="m")
    assert underlay.agreed(THREE, marked) == marked
    assert underlay.agreed(chain(unproven(TOP), unproven(MIDDLE), BASE), marked) == chain(
        TOP, unproven(MIDDLE), BASE, mark="m"
    )
    with_data = chain(TOP, replace(BASE, data_file=DATA))
    without_proof = chain(TOP, replace(BASE, data_file=DATA.unproven()))
    assert underlay.agreed(with_data, with_data) == with_data
    assert underlay.agreed(without_proof, with_data) == without_proof
    assert underlay.agreed(chain(TOP, BASE), with_data) == without_proof


def test_digest_is_recorded_with_the_ctime_of_the_first_look() -> None:
    """So that a change between the looks is found by the next backup."""
    later = chain(TOP, known(MIDDLE, None, ctime_ns=8), known(BASE, None), mark="m")
    assert underlay.agreed(RECORDED, later) == replace(RECORDED, device_mark="m")


def test_another_file_of_the_same_name_is_called_that() -> None:
    copy = replace(TOP, file=replace(TOP.file, inode=99))
    said = flaw(THREE, chain(copy, MIDDLE, BASE), 1)
    assert said is not None
    assert said.startswith(
        "was of /images/top, and nothing proves that the file that has that name now has the content"
    )
