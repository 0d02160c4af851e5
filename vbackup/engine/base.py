"""Choose the checkpoint a backup starts from.

vbackup.engine.plan says what follows from the choice. A base is trusted only if its bitmap exists on every layer where
it is needed, is recording and is consistent; if the bitmap's name shows that this very backup made it; if no end mark
shows that the disk has been smaller since; if what no bitmap covers is unchanged (vbackup.engine.underlay); and if
every image below the base is in the repository.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from typing import TypedDict

from vbackup import names
from vbackup.engine import endmark, underlay
from vbackup.errors import BaseError, ChainError
from vbackup.layers import ChainState, FileState
from vbackup.model import GRANULARITY_BYTES, Backup, Bitmap, BlockDriver, DiskNode, Layer, Level, NodeBitmap
from vbackup.names import BitmapName, Naming
from vbackup.qemu.block_graph import LAYERS_NOT_LISTED
from vbackup.repository.history import History, Start, image_of


class Reason(Enum):
    """Why a disk starts from its base, or from none: the code of Choice.reason, for programs."""

    ASKED = "asked-for"  #: a full or a copy was asked for
    BASE = "base-trusted"  #: it starts from a base
    NO_BASE = "no-base"  #: there is no earlier backup to start from
    NO_BITMAPS = "disk-without-bitmaps"  #: the disk cannot have a bitmap that lasts, or is only read
    MISSING = "bitmap-missing"  #: gone with QEMU, with the image, or removed
    FOREIGN = "bitmap-foreign"  #: the bitmap is that of another backup
    INCONSISTENT = "bitmap-inconsistent"  #: QEMU did not close the image
    BUSY = "bitmap-busy"  #: another operation has it
    DISABLED = "bitmap-disabled"  #: it has missed changes
    GRANULARITY = "bitmap-granularity"  #: it is not vbackup's
    LAYERS = "bitmap-not-on-all-layers"  #: a layer without it has been active since
    RESIZED = "disk-resized"  #: the disk was shrunk, or has grown where no bitmap shows what is there
    BELOW = "below-changed"  #: what no bitmap covers was changed, or may have been
    DISTRUSTED = "base-distrusted"  #: an audit, or a damaged repository, speaks against the base


@dataclass(frozen=True)
class Choice:
    """How one disk is backed up, and why."""

    level: Level  #: full, incremental, differential or copy
    base: Backup | None
    bitmaps: tuple[NodeBitmap, ...]  #: bitmaps, including end marks, that together record the changes since the base
    reason: str
    chain: ChainState | None = None  #: of the disk at the base; None without one, or if it was not recorded
    code: Reason = Reason.ASKED  #: of ``reason``


def choose(
    level: Level,
    node: DiskNode,
    history: History,
    *,
    naming: Naming,
    started: datetime | None = None,
    starts: Sequence[Start] | None = None,
) -> Choice:
    """Choose how to back up one disk at the requested level.

    ``started`` is the last known start of the domain, or None: it can explain why a bitmap is missing. ``starts`` are
    the only checkpoints to start from; None: those of the history. Raises BaseError if no base can be trusted and the
    requested level is incremental or differential.
    """
    dev = node.disk.dev
    if level is Level.COPY or (level is Level.FULL and node.read_only_reason is None):
        return Choice(level, None, (), "asked for")
    if level is Level.FULL:
        return Choice(level, None, (), f"asked for; {_without_bitmap(node)}")
    wanted = Level.INCREMENTAL if level is Level.AUTO else level
    starts = _starts(level, node, history) if starts is None else starts
    refusals: list[_UntrustedError] = []
    for start in starts or _NONE:
        try:
            evidence = _evidence(node, start, history, naming=naming, started=started)
            flaw = underlay.flaw(evidence.chain, node.chain, **evidence.of_underlay)
            if flaw is not None:
                what = "checkpoint" if history.is_of_tracker else "backup"
                raise _UntrustedError(f"{what} {evidence.base.id} {flaw}", Reason.BELOW)
        except _UntrustedError as err:
            refusals.append(err)
            continue
        return Choice(
            wanted,
            evidence.base,
            (*evidence.bitmaps, *evidence.marks),
            _reason(evidence),
            chain=evidence.chain,
            code=Reason.BASE,
        )
    if level is not Level.AUTO:
        checkpoint = starts[0].backup.id if starts else None
        raise BaseError(dev, level.value, checkpoint, str(refusals[0]), noun=_noun(history))
    if node.read_only_reason is not None:
        return Choice(Level.FULL, None, (), _without_bitmap(node), code=Reason.NO_BITMAPS)
    return Choice(Level.FULL, None, (), str(refusals[0]), code=refusals[0].code)


def undecided(
    level: Level, node: DiskNode, history: History, *, naming: Naming, starts: Sequence[Start] | None = None
) -> tuple[FileState, ...]:
    """Return the files below the bitmaps whose digests ``choose`` needs to know whether a base can be trusted.

    Empty if nothing depends on them. ``starts`` as for ``choose``.
    """
    for start in (_starts(level, node, history) if starts is None else starts) or _NONE:
        try:
            evidence = _evidence(node, start, history, naming=naming, started=None)
        except _UntrustedError:
            continue
        return underlay.undecided(evidence.chain, node.chain, **evidence.of_underlay)
    return ()


#: In place of what the next backup may start from: the refusal says what is missing.
_NONE: Sequence[Start | None] = (None,)


def _starts(level: Level, node: DiskNode, history: History) -> list[Start]:
    if level in (Level.FULL, Level.COPY):
        return []
    on_disk = {name for layer in node.layers for name in layer.bitmaps}
    return history.starts(node.disk.dev, of_full=level is Level.DIFFERENTIAL, on_disk=on_disk)


def _reason(evidence: _Evidence) -> str:
    start = evidence.start
    was = ", to which the disk was restored" if start.is_restored else ""
    if start.checkpoint != start.backup.id:
        was = f", as the checkpoint of {start.checkpoint}, which was merged into it, shows them"
    return f"changes since {start.backup.id}{was}"


class _UntrustedError(Exception):
    """The reason why a base cannot be trusted."""

    def __init__(self, reason: str, code: Reason) -> None:
        self.code = code
        super().__init__(reason)


@dataclass(frozen=True)
class _Evidence:
    """What speaks for a base, but for what no bitmap covers."""

    start: Start
    bitmaps: tuple[NodeBitmap, ...]
    marks: tuple[NodeBitmap, ...]
    is_known_image: bool

    @property
    def base(self) -> Backup:
        """The backup that is started from."""
        return self.start.backup

    @property
    def chain(self) -> ChainState | None:
        """The chain of the disk at the checkpoint."""
        return self.start.chain

    @property
    def of_underlay(self) -> _OfUnderlay:
        """The further arguments of ``underlay.flaw``."""
        return {"with_bitmap": [one.node_name for one in self.bitmaps], "is_known_image": self.is_known_image}


class _OfUnderlay(TypedDict):
    with_bitmap: Collection[str]
    is_known_image: bool


def _evidence(
    node: DiskNode, start: Start | None, history: History, *, naming: Naming, started: datetime | None
) -> _Evidence:
    """Check all but what lies below the bitmaps, and every external data file.

    libvirt copies no end mark, so a mark on the active layer shows, with the bitmap of the newest backup or of a
    restored checkpoint, that the image is that one, or a copy of its file.
    """
    if not node.bears_checkpoints:
        raise _UntrustedError(_no_bitmap(node), Reason.NO_BITMAPS)
    if start is None:
        raise _UntrustedError(_no_start(node, history), Reason.NO_BASE)
    base = start.backup
    _check_images(node, start, history)
    bitmaps = _trusted_bitmaps(node, start, naming=naming, started=started)
    marks = _end_marks(node, base, naming=naming, bitmaps=bitmaps)
    _check_growth(node, base, marks=marks)
    is_known_image = start.is_latest and node.top.node_name in {mark.node_name for mark in marks}
    return _Evidence(start, bitmaps, marks, is_known_image)


def _noun(history: History) -> str:
    return "session" if history.is_of_tracker else "backup"


def _no_start(node: DiskNode, history: History) -> str:
    if history.newest(node.disk.dev) is not None:
        return f"no full {_noun(history)} of this disk has a checkpoint that a differential could start from"
    if history.is_of_tracker:
        return "the tracker has no checkpoint of this disk to start from"
    return "there is no earlier backup of this disk to start from"


def _check_images(node: DiskNode, start: Start, history: History) -> None:
    """Check that the images of the base are in the repository, and that the disk is not smaller than it was then."""
    base, dev = start.backup, node.disk.dev
    distrust = history.distrust(base.id, dev) or history.distrust(start.checkpoint, dev)
    if distrust is not None:
        raise _UntrustedError(distrust, Reason.DISTRUSTED)
    try:
        history.links(base.id, dev)
    except ChainError as err:
        raise _UntrustedError(str(err).rstrip("."), Reason.DISTRUSTED) from err
    if node.top.virtual_size_bytes < image_of(base, dev).virtual_size_bytes:
        raise _UntrustedError(f"the disk has shrunk {_change_of_size(node, base)}", Reason.RESIZED)


def _change_of_size(node: DiskNode, base: Backup) -> str:
    earlier_bytes, now_bytes = image_of(base, node.disk.dev).virtual_size_bytes, node.top.virtual_size_bytes
    return f"from {earlier_bytes} to {now_bytes} bytes since {base.id}"


def _end_marks(
    node: DiskNode, base: Backup, *, naming: Naming, bitmaps: Sequence[NodeBitmap]
) -> tuple[NodeBitmap, ...]:
    """Return the end marks on the layers of the base's bitmaps. A layer may lack one: libvirt does not copy them."""
    dev = node.disk.dev
    name = naming.end_mark(dev, image_of(base, dev).virtual_size_bytes)
    node_names = {bitmap.node_name for bitmap in bitmaps}
    marks = []
    for layer in node.layers:
        mark = layer.bitmaps.get(name) if layer.node_name in node_names else None
        if mark is None or mark.inconsistent:
            continue
        flaw = endmark.flaw(mark)
        if flaw is not None:
            raise _UntrustedError(flaw, Reason.RESIZED)
        marks.append(NodeBitmap(layer.node_name, name))
    return tuple(marks)


def _check_growth(node: DiskNode, base: Backup, *, marks: Sequence[NodeBitmap]) -> None:
    """Check that a disk that has grown is all zeros beyond its earlier end: no bitmap need then record that part."""
    top = node.top
    if top.virtual_size_bytes == image_of(base, node.disk.dev).virtual_size_bytes:
        return
    change = _change_of_size(node, base)
    if top.driver != BlockDriver.QCOW2:
        # The new part of a raw image or block device may contain anything.
        raise _UntrustedError(f"the {top.driver} disk has grown {change}", Reason.RESIZED)
    cluster_bytes = top.cluster_bytes or 0
    if not cluster_bytes or (
        cluster_bytes > GRANULARITY_BYTES and image_of(base, node.disk.dev).virtual_size_bytes % cluster_bytes
    ):
        # If the disk was larger before the base, QEMU left its data in the rest of the last cluster. Growing shows it.
        raise _UntrustedError(
            f"the disk has grown {change}, within a cluster of its image, which may have old data", Reason.RESIZED
        )
    if top.node_name not in {mark.node_name for mark in marks}:
        # The new part may belong to a larger layer that came back when a smaller overlay was committed.
        raise _UntrustedError(f"the disk has grown {change}, and has no end mark of the earlier size", Reason.RESIZED)


def _trusted_bitmaps(
    node: DiskNode, start: Start, *, naming: Naming, started: datetime | None
) -> tuple[NodeBitmap, ...]:
    """Return the base's bitmaps: on the active layer, and on the layers below that have been active since the base."""
    base, name, checkpoint = start.backup, start.bitmap, start.checkpoint
    parsed = names.parse_bitmap(name)
    own = (checkpoint, node.disk.dev)
    if parsed is not None and parsed.repository_id != naming.repository_id and (parsed.checkpoint, parsed.dev) == own:
        raise _UntrustedError(
            f"checkpoint {checkpoint} belongs to repository {parsed.repository_id}, of which this one was a copy",
            Reason.FOREIGN,
        )
    if parsed is None or (parsed.repository_id, parsed.checkpoint, parsed.dev) != (
        naming.repository_id,
        checkpoint,
        node.disk.dev,
    ):
        raise _UntrustedError(
            f"the manifest of {base.id} names the bitmap {name!r}, which does not belong to that backup",
            Reason.FOREIGN,
        )
    if not node.lists_bitmaps:
        raise _UntrustedError(LAYERS_NOT_LISTED, Reason.LAYERS)
    layers = [layer for layer in node.layers if name in layer.bitmaps]
    if not layers:
        raise _UntrustedError(
            f"checkpoint {checkpoint} is {_lost(node, base, parsed=parsed, started=started)}", Reason.MISSING
        )
    if layers != list(node.layers[: len(layers)]):
        raise _UntrustedError(
            f"checkpoint {checkpoint} is not on every layer above {layers[-1].filename}, as after an external snapshot"
            " that was made while the domain was off, or without libvirt",
            Reason.LAYERS,
        )
    for layer in layers:
        flaw = _flaw(layer.bitmaps[name])
        if flaw is not None:
            code, what = flaw
            raise _UntrustedError(f"checkpoint {checkpoint} {what}", code)
        if layer.virtual_size_bytes != node.top.virtual_size_bytes:
            # "Bitmaps are of different sizes (...) and can't be merged"
            raise _UntrustedError(
                f"the disk was resized from {layer.virtual_size_bytes} to {node.top.virtual_size_bytes} bytes above the"
                f" layer {layer.filename}, and QEMU does not merge the bitmaps of layers of different sizes",
                Reason.RESIZED,
            )
    if not layers[0].bitmaps[name].recording:
        raise _UntrustedError(f"checkpoint {checkpoint} is disabled, so later changes are unknown", Reason.DISABLED)
    return tuple(NodeBitmap(layer.node_name, name) for layer in layers)


def _lost(node: DiskNode, base: Backup, *, parsed: BitmapName, started: datetime | None) -> str:
    """Return what has become of a checkpoint that is on no layer."""
    if any(_is_namesake(layer, parsed) for layer in node.layers):
        return (
            "that of another backup of the same name: from a copy of this repository, or from another domain that had"
            " this image"
        )
    since = "the domain was restarted or migrated"
    if started is not None and started > base.time:
        since = f"the domain was started again at {started.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}Z"
    elif node.keeps_bitmaps:
        return "missing from the image"
    if node.keeps_bitmaps:
        return f"missing from the image ({since})"
    return f"gone: {since}, or the disk was attached again"


def _is_namesake(layer: Layer, parsed: BitmapName) -> bool:
    """Return True if the layer has a checkpoint's bitmap that differs from this name only in the token."""
    others = (names.parse_bitmap(name) for name in layer.bitmaps)
    return any(
        other is not None and not other.working and replace(other, token=parsed.token) == parsed for other in others
    )


def _flaw(bitmap: Bitmap) -> tuple[Reason, str] | None:
    """Return why a bitmap does not show all changes, or None if it does."""
    if bitmap.inconsistent:
        return Reason.INCONSISTENT, "is inconsistent (QEMU did not close the image)"
    if bitmap.busy:
        return Reason.BUSY, "is busy with another operation"
    if bitmap.granularity_bytes != GRANULARITY_BYTES:
        return (
            Reason.GRANULARITY,
            f"has a granularity of {bitmap.granularity_bytes} bytes, which is not vbackup's ({GRANULARITY_BYTES})",
        )
    return None


def _without_bitmap(node: DiskNode) -> str:
    return f"without a bitmap, so no incremental can start from it: {node.read_only_reason}"


def _no_bitmap(node: DiskNode) -> str:
    if node.read_only_reason is not None:
        return node.read_only_reason
    kind = "a qcow2 image of version 2" if node.top.driver == BlockDriver.QCOW2 else f"a {node.top.driver} image"
    return f"QEMU keeps no bitmap in {kind} while the domain is off"


def parent_of(choices: Sequence[Choice]) -> str | None:
    """Return the id of the newest base of the disks, or None if no disk has a base."""
    bases = [choice.base for choice in choices if choice.base is not None]
    return max(bases, key=lambda backup: backup.sequence).id if bases else None


def level_of(requested: Level, choices: Sequence[Choice]) -> Level:
    """Return the level of the backup as a whole: for AUTO, full only if no disk has a base."""
    if requested is not Level.AUTO:
        return requested
    return Level.INCREMENTAL if any(choice.base is not None for choice in choices) else Level.FULL
