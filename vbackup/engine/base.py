"""Choose the checkpoint a backup starts from.

plan.BackupPlan says what is done with the choice. A base is trusted only if its bitmap is there, on
every layer it must be on, recording and consistent, if its name says that it was made by that very backup,
if no end mark gives away that the disk was smaller meanwhile, and if every image below it is in the repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from vbackup import names
from vbackup.engine import endmark
from vbackup.errors import BaseError, ChainError
from vbackup.model import GRANULARITY_BYTES, Backup, Bitmap, DiskNode, Layer, Level, NodeBitmap
from vbackup.names import BitmapName, Naming
from vbackup.repository.history import History, image_of


@dataclass(frozen=True)
class Choice:
    """How one disk is backed up, and why."""

    level: Level  #: full, incremental, differential or copy
    base: Backup | None
    sources: tuple[NodeBitmap, ...]  #: bitmaps that together hold the changes since the base, end marks included
    reason: str


def choose(
    level: Level, node: DiskNode, history: History, *, naming: Naming, started: datetime | None = None
) -> Choice:
    """How to back up one disk at the level that was asked for.

    ``started`` is when the domain was last seen to start, if that is known: it tells why a bitmap may be gone.
    Raises BaseError where incremental or differential was asked for by name and no base can be trusted.
    """
    dev = node.disk.dev
    if level in (Level.FULL, Level.COPY):
        return Choice(level, None, (), "asked for")
    wanted = Level.INCREMENTAL if level is Level.AUTO else level
    base = history.last_full(dev) if wanted is Level.DIFFERENTIAL else history.newest(dev)
    try:
        if not node.bears_checkpoints:
            raise _UntrustedError(_no_bitmap(node))
        if base is None:
            raise _UntrustedError("there is no earlier backup of this disk to start from")
        _check_images(node, base, history)
        sources = _trusted_sources(node, base, naming, started)
        marks = _end_marks(node, base, naming, sources)
        _check_growth(node, base, marks)
    except _UntrustedError as err:
        if level is not Level.AUTO:
            raise BaseError(dev, level.value, base.id if base else None, str(err)) from None
        return Choice(Level.FULL, None, (), str(err))
    return Choice(wanted, base, (*sources, *marks), f"changes since {base.id}")


class _UntrustedError(Exception):
    """The reason why a base cannot be trusted."""


def _check_images(node: DiskNode, base: Backup, history: History) -> None:
    """What is in the repository, and whether the disk is smaller than it was."""
    dev = node.disk.dev
    try:
        history.links(base.id, dev)
    except ChainError as err:
        raise _UntrustedError(str(err).rstrip(".")) from err
    if node.top.virtual_size_bytes < image_of(base, dev).virtual_size_bytes:
        raise _UntrustedError(f"the disk shrank {_change_of_size(node, base)}")


def _change_of_size(node: DiskNode, base: Backup) -> str:
    earlier_bytes, now_bytes = image_of(base, node.disk.dev).virtual_size_bytes, node.top.virtual_size_bytes
    return f"from {earlier_bytes} to {now_bytes} bytes since {base.id}"


def _end_marks(node: DiskNode, base: Backup, naming: Naming, sources: Sequence[NodeBitmap]) -> tuple[NodeBitmap, ...]:
    """The end marks beside the base's bitmaps. A layer may have none: libvirt takes none along to another."""
    dev = node.disk.dev
    name = naming.end_mark(dev, image_of(base, dev).virtual_size_bytes)
    beside = {source.node_name for source in sources}
    marks = []
    for layer in node.layers:
        mark = layer.bitmaps.get(name) if layer.node_name in beside else None
        if mark is None or mark.inconsistent:
            continue
        flaw = endmark.flaw(mark)
        if flaw is not None:
            raise _UntrustedError(flaw)
        marks.append(NodeBitmap(layer.node_name, name))
    return tuple(marks)


def _check_growth(node: DiskNode, base: Backup, marks: Sequence[NodeBitmap]) -> None:
    """Growing is fine where all that the disk has grown by is zero, and no bitmap has to tell of it."""
    top = node.top
    if top.virtual_size_bytes == image_of(base, node.disk.dev).virtual_size_bytes:
        return
    change = _change_of_size(node, base)
    if top.driver != "qcow2":
        # What a raw image or block device has grown by may hold anything.
        raise _UntrustedError(f"the {top.driver} disk grew {change}")
    if top.node_name not in {mark.node_name for mark in marks}:
        # It may be of a larger layer that came back when a smaller one above it was committed.
        raise _UntrustedError(f"the disk grew {change}, and has no end mark of that size")


def _trusted_sources(node: DiskNode, base: Backup, naming: Naming, started: datetime | None) -> tuple[NodeBitmap, ...]:
    """The bitmaps of the base on the active layer and on all that it was on meanwhile."""
    name = image_of(base, node.disk.dev).bitmap or ""
    ours = names.parse_bitmap(name)
    if ours is None or (ours.repository_id, ours.checkpoint, ours.dev) != (
        naming.repository_id,
        base.id,
        node.disk.dev,
    ):
        raise _UntrustedError(f"the manifest of {base.id} names {name!r} as its bitmap, which is not one of its own")
    having = [layer for layer in node.layers if name in layer.bitmaps]
    if not having:
        raise _UntrustedError(f"checkpoint {base.id} is {_lost(node, base, ours, started)}")
    if having != list(node.layers[: len(having)]):
        raise _UntrustedError(f"checkpoint {base.id} is not on every layer above {having[-1].node_name}")
    for layer in having:
        flaw = _flaw(layer.bitmaps[name])
        if flaw is not None:
            raise _UntrustedError(f"checkpoint {base.id} {flaw}")
        if layer.virtual_size_bytes != node.top.virtual_size_bytes:
            # "Bitmaps are of different sizes (...) and can't be merged"
            raise _UntrustedError(
                f"the disk was resized from {layer.virtual_size_bytes} to {node.top.virtual_size_bytes} bytes above the"
                f" layer {layer.node_name}, and QEMU does not merge the bitmaps of layers of different sizes"
            )
    if not having[0].bitmaps[name].recording:
        raise _UntrustedError(f"checkpoint {base.id} is disabled, so later changes are unknown")
    return tuple(NodeBitmap(layer.node_name, name) for layer in having)


def _lost(node: DiskNode, base: Backup, ours: BitmapName, started: datetime | None) -> str:
    """Where a bitmap is that is on no layer."""
    if any(_is_namesake(layer, ours) for layer in node.layers):
        return (
            "that of another backup of the same name: into a copy of this repository, or of another domain that had"
            " this image"
        )
    since = "the domain was restarted or migrated"
    if started is not None and started > base.time:
        since = f"the domain was started anew at {started.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}Z"
    elif node.keeps_bitmaps:
        return "missing from the image"
    if node.keeps_bitmaps:
        return f"missing from the image ({since})"
    return f"gone: {since}, or the disk attached anew"


def _is_namesake(layer: Layer, ours: BitmapName) -> bool:
    others = (names.parse_bitmap(name) for name in layer.bitmaps)
    return any(one is not None and not one.working and replace(one, token=ours.token) == ours for one in others)


def _flaw(bitmap: Bitmap) -> str | None:
    """Why a bitmap does not tell what has changed; None if it does."""
    if bitmap.inconsistent:
        return "is inconsistent (QEMU did not close the image)"
    if bitmap.busy:
        return "is busy with another operation"
    if bitmap.granularity_bytes != GRANULARITY_BYTES:
        return f"has a granularity of {bitmap.granularity_bytes} bytes, which is not vbackup's ({GRANULARITY_BYTES})"
    return None


def _no_bitmap(node: DiskNode) -> str:
    kind = "a qcow2 image of version 2" if node.top.driver == "qcow2" else f"a {node.top.driver} image"
    return f"QEMU keeps no bitmap in {kind} while the domain is off"


def parent_of(choices: Sequence[Choice]) -> str | None:
    """The newest backup that one of the disks stands on, None if all are whole."""
    bases = [choice.base for choice in choices if choice.base is not None]
    return max(bases, key=lambda backup: backup.sequence).id if bases else None


def level_of(asked: Level, choices: Sequence[Choice]) -> Level:
    """The level of the backup as a whole: full only if every disk is whole."""
    if asked is not Level.AUTO:
        return asked
    return Level.INCREMENTAL if any(choice.base is not None for choice in choices) else Level.FULL
