"""Decide whether what lies below a disk's bitmaps is the same as at the base, and unchanged.

The bitmaps of a base record the changes of the layers that have them. The layers below these (the underlay) and all
external data files are proven in one of two ways:

- The disk's device is that of the base (vbackup.qemu.device_mark). Then QEMU has had the chain open all the time: its
  locks keep others out, and what its own block jobs commit or pull does not change the disk.
- Each file is the same and has not been touched: size, mtime and ctime are those of then. If they are not, a digest of
  its content decides, which vbackup.engine.proof reads only then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
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
    if _is_of_same_device(then, now):
        if then.layers[0].node_name in {layer.node_name for layer in below}:
            return f"had {then.layers[0].file.path} as its active layer, which has lost the bitmap"
        return None
    return _difference_of_chains(then, now, below, is_known_image=is_known_image) or _flaw_of_data_files(
        then, data_files, same_boot=then.boot_id == now.boot_id
    )


def undecided(
    then: ChainState | None, now: ChainState, *, with_bitmap: Collection[str], is_known_image: bool = False
) -> tuple[FileState, ...]:
    """Return the files of ``now`` whose digests decide, empty if the answer does not depend on them.

    The parameters are those of ``flaw``.
    """
    if then is None or _is_of_same_device(then, now):
        return ()
    same_boot = then.boot_id == now.boot_id
    found = []

    def with_digest_of_then(file: FileState) -> FileState:
        for known in then.files:
            if known.is_undecided(file, same_boot=same_boot):
                found.append(file)
                return replace(file, digest=known.digest)
        return file

    at_best = now.with_files(with_digest_of_then, below=len(with_bitmap))
    is_flawed = flaw(then, at_best, with_bitmap=with_bitmap, is_known_image=is_known_image) is not None
    return () if is_flawed else tuple(found)


def remembered(now: ChainState, earlier: Iterable[ChainState | None], *, is_trusted: bool) -> ChainState:
    """Return the state to record, with the digests of files below the active layer that earlier backups recorded.

    ``is_trusted``: the backup starts from one of them, so its chain of images is one over that content. Then a digest
    goes on together with the ctime that it was read with, whatever ctime is now: QEMU has had the file open, and if it
    has been changed after all, the comparison after the next restart shows it. Nothing has to be read for that.
    """

    def with_digest(file: FileState) -> FileState:
        if file.digest is not None:
            return file
        for chain in earlier:
            for known in chain.files if chain is not None else ():
                same_boot = chain is not None and chain.boot_id == now.boot_id
                is_as_then = known.has_size_and_time_of if is_trusted else known.is_untouched
                if known.digest is not None and is_as_then(file, same_boot=same_boot):
                    return replace(file, ctime_ns=known.ctime_ns, digest=known.digest)
        return file

    return now.with_files(with_digest, below=1)


def unread(now: ChainState, base: ChainState | None, *, with_bitmaps: Collection[str]) -> tuple[FileState, ...]:
    """Return the files below the active layer whose digests have to be read, so that later backups can compare them.

    A full reads them anyway. After it, a layer with bitmaps (``with_bitmaps`` are their nodes) was an active one not
    long ago. It can be as large as the disk, and as a rule the layer above is committed into it soon. So it is only
    read when it has stayed unchanged from the base to the next backup.
    """
    found = []
    for layer in now.layers[1:]:
        for file in layer.files:
            if not file.is_proven or file.digest is not None:
                continue
            if base is not None and layer.node_name in with_bitmaps and not _has(base, file, boot_id=now.boot_id):
                continue
            found.append(file)
    return tuple(found)


def _has(chain: ChainState, file: FileState, *, boot_id: str | None) -> bool:
    """Return True if the chain has the file, with its times but for vbackup's own bitmaps."""
    same_boot = chain.boot_id == boot_id
    return any(replace(known, ctime_ns=None).is_unchanged(file, same_boot=same_boot) for known in chain.files)


def _is_of_same_device(then: ChainState, now: ChainState) -> bool:
    return then.device_mark is not None and then.device_mark == now.device_mark


def _difference_of_chains(
    then: ChainState, now: ChainState, below: Sequence[LayerState], *, is_known_image: bool
) -> str | None:
    recorded = now.layers[: len(now.layers) - len(below)]
    same_boot = then.boot_id == now.boot_id
    place = _place(then, recorded, same_boot=same_boot)
    if place is None:
        if not is_known_image:
            former, path = then.layers[0].file.path, now.layers[0].file.path
            what = "the file that has that name now" if former == path else path
            return f"was of {former}, and nothing proves that {what} has the content of that image"
        place = 0
    elif place > 0:
        # It was below, and has the bitmap only since the layers above were committed into it. Before that, but after a
        # restart of QEMU, anything can have written to it while no bitmap recorded that.
        was = then.layers[place]
        tracked = next(one for one in recorded if _is_same_image(was.file, one.file, same_boot=same_boot))
        if not was.file.is_proven or not was.file.is_unchanged(tracked.file, same_boot=same_boot):
            return f"had {was.file.path} below, into which layers were committed since, and QEMU was restarted"
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
            # Not ctime: libvirt may just be starting another domain with that file.
            if first.is_proven and not first.has_size_and_time_of(second, same_boot=True):
                return first.path
    return None


def agreed(before: ChainState, after: ChainState) -> ChainState:
    """Return the state between two looks that found no change: that of the earlier one, with the device of the later.

    A file that was only proven at the second look may have been written between the moment and that look. Its ctime and
    digest are those of the first look: a change after it is found later.
    """
    below = [
        replace(
            other,
            file=one.file if one.file.is_proven else other.file.unproven(),
            data_file=_agreed_data_file(one, other),
        )
        for one, other in zip(before.layers[1:], after.layers[1:])
    ]
    return replace(after, layers=(*after.layers[:1], *below))


def _agreed_data_file(before: LayerState, after: LayerState) -> FileState | None:
    if after.data_file is None or before.data_file is None:
        return None if after.data_file is None else after.data_file.unproven()
    return before.data_file if before.data_file.is_proven else after.data_file.unproven()


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
        return f"had {before.path} below, {_change(before, after, same_boot=same_boot)}"
    return None


def _change(before: FileState, after: FileState, *, same_boot: bool) -> str:
    if not before.has_size_and_time_of(after, same_boot=same_boot):
        return "which was written to since"
    if before.digest is None:
        return (
            "which was touched since (its owner or mode may have changed, or it was overwritten and given back its time"
            " of modification), and no digest of its content is recorded that would tell"
        )
    if after.digest is None:
        return "which was touched since, and cannot be read now to compare its content"
    return "which was overwritten since, and given back its time of modification"


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
