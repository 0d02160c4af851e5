"""Decide whether what lies below a disk's bitmaps is the same as at the base, and unchanged.

The bitmaps of a base record the changes of the layers that have them. The layers below these (the underlay) and all
external data files are proven in one of two ways:

- The disk's device is that of the base (vbackup.qemu.device_mark). Then QEMU has had the chain open all the time: its
  locks keep others out, and what its own block jobs commit or pull does not change the disk.
- Each file is the same and has its size and time of last change.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from vbackup.layers import ChainState, FileState, LayerState

UNRECORDED = "was made by a version of vbackup that did not record what lies below the bitmaps"


def flaw(
    then: ChainState | None, now: ChainState, *, with_bitmap: Collection[str], is_known_image: bool = False
) -> str | None:
    """Return why the underlay is not proven to be that of the base, or None if it is.

    ``then`` is the state at the base, None if it was not recorded. ``with_bitmap`` has the nodes of ``now`` with the
    base's bitmap, contiguous from the top. ``is_known_image``: the active image is known to be that of the base, or a
    copy of it, whatever its file. The text goes on after the id of the base.
    """
    recorded, below = now.layers[: len(with_bitmap)], now.layers[len(with_bitmap) :]
    data_files = [layer for layer in recorded if layer.data_file is not None]
    if then is None or not then.layers:
        return UNRECORDED if below or data_files else None
    if then.device_mark is not None and then.device_mark == now.device_mark:
        if then.layers[0].node_name in {layer.node_name for layer in below}:
            return f"had {then.layers[0].file.path} as its active layer, which has lost the bitmap"
        return None
    return _difference_of_chains(then, now, below, is_known_image=is_known_image) or _flaw_of_data_files(
        then, data_files, same_boot=then.boot_id == now.boot_id
    )


def _difference_of_chains(
    then: ChainState, now: ChainState, below: Sequence[LayerState], *, is_known_image: bool
) -> str | None:
    recorded = now.layers[: len(now.layers) - len(below)]
    same_boot = then.boot_id == now.boot_id
    place = _place(then, recorded, same_boot=same_boot)
    if place is None:
        if not is_known_image:
            return (
                f"was of {then.layers[0].file.path}, and nothing proves that {now.layers[0].file.path} has the content"
                " of that image"
            )
        place = 0
    expected = then.layers[place + 1 :]
    for before, after in zip(expected, below):
        difference = _difference(before.file, after.file, same_boot=same_boot) or _difference_of_data_files(
            before, after, same_boot=same_boot
        )
        if difference is not None:
            return difference
    if len(expected) != len(below):
        return f"had {_count(expected)} below, and now there {'is' if len(below) == 1 else 'are'} {_count(below)}"
    return None


def changed(before: ChainState, after: ChainState) -> str | None:
    """Return the path of a file below the active layer that was changed between two looks, or None.

    What is not proven does not count, and neither do the data files that the guest writes to.
    """
    if len(before.layers) != len(after.layers):
        return before.layers[-1].file.path
    for one, other in zip(before.layers[1:], after.layers[1:]):
        for first, second in zip(one.files, other.files):
            if first.is_proven and not first.is_unchanged(second, same_boot=True):
                return first.path
    return None


def agreed(before: ChainState, after: ChainState) -> ChainState:
    """Return the state between two looks that found no change: the later one, as far as the earlier one proves it.

    A file that was only proven at the second look may have been written between the moment and that look.
    """
    below = [
        replace(
            other,
            file=other.file if one.file.is_proven else other.file.unproven(),
            data_file=_agreed_data_file(one, other),
        )
        for one, other in zip(before.layers[1:], after.layers[1:])
    ]
    return replace(after, layers=(*after.layers[:1], *below))


def _agreed_data_file(before: LayerState, after: LayerState) -> FileState | None:
    if after.data_file is None or before.data_file is None:
        return None if after.data_file is None else after.data_file.unproven()
    return after.data_file if before.data_file.is_proven else after.data_file.unproven()


def _place(then: ChainState, recorded: Collection[LayerState], *, same_boot: bool) -> int | None:
    """Return the index of the topmost layer of the base that has the bitmap now, or None.

    libvirt gives the bitmap to a layer below only with what it commits from the layers above, so these may be gone.
    """
    for index, layer in enumerate(then.layers):
        if any(_is_same_image(layer.file, other.file, same_boot=same_boot) for other in recorded):
            return index
    return None


def _is_same_image(before: FileState, after: FileState, *, same_boot: bool) -> bool:
    """Return True if both are one image, which has the base's bitmap.

    Where there is no inode to compare (a block device, a file of another host) the name has to do: that the image has
    the bitmap shows that it is not just any other.
    """
    if before.is_proven and after.is_proven:
        return before.is_same_file(after, same_boot=same_boot)
    return before.path == after.path


def _difference(before: FileState, after: FileState, *, same_boot: bool) -> str | None:
    if not before.is_proven or not after.is_proven:
        return f"had {before.path} below, and nothing proves that this was not changed since"
    if not before.is_same_file(after, same_boot=same_boot):
        other = "another file of that name is there" if before.path == after.path else f"{after.path} is there"
        return f"had {before.path} below, and now {other}"
    if not before.is_unchanged(after, same_boot=same_boot):
        return f"had {before.path} below, which was written to since"
    return None


def _difference_of_data_files(before: LayerState, after: LayerState, *, same_boot: bool) -> str | None:
    if before.data_file is None and after.data_file is None:
        return None
    if before.data_file is None or after.data_file is None:
        return f"had {before.file.path} below, whose data file is another now"
    return _difference(before.data_file, after.data_file, same_boot=same_boot)


def _flaw_of_data_files(then: ChainState, layers: Collection[LayerState], *, same_boot: bool) -> str | None:
    """Return what is wrong with a data file of a layer that has the bitmap: the image cannot show it."""
    known = [layer for layer in then.layers if layer.data_file is not None]
    for layer in layers:
        assert layer.data_file is not None
        if not any(
            _is_same_image(before.file, layer.file, same_boot=same_boot)
            and before.data_file is not None
            and before.data_file.is_unchanged(layer.data_file, same_boot=same_boot)
            for before in known
        ):
            return (
                f"had the data file {layer.data_file.path}: unless the domain runs all the time, nothing proves"
                " that it has not been exchanged or put back to an earlier state"
            )
    return None


def _count(layers: Collection[LayerState]) -> str:
    return f"{len(layers)} image{'' if len(layers) == 1 else 's'}"
