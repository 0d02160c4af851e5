"""Look at the dirty bitmaps of disks, and change them, in one transaction for all disks.

Whose a bitmap is decides what may be done to it: changing one that a repository or libvirt starts its next
backup from would make that backup wrong, removing it makes it a full. ``vbackup bitmap`` is the door.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from vbackup import names
from vbackup.domain.attached import AttachedQemu
from vbackup.errors import DiskError, UnsafeError, UnsuitableError
from vbackup.model import Bitmap, DiskNode, Layer
from vbackup.operations import transaction
from vbackup.operations.transaction import TransactionRequest
from vbackup.qapi.actions import (
    Action,
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapClear,
    BlockDirtyBitmapDisable,
    BlockDirtyBitmapEnable,
    BlockDirtyBitmapMerge,
    BlockDirtyBitmapRemove,
)
from vbackup.report import Reporter
from vbackup.repository.history import History
from vbackup.stop import Stop


class Owner(Enum):
    """Who made a bitmap and counts on it."""

    VBACKUP = "vbackup"  #: a checkpoint of a repository, or what a backup is being copied by
    LIBVIRT = "libvirt"  #: of the same name as a checkpoint of libvirt's
    OTHER = "other"


class Change(Enum):
    """What can be done to a bitmap."""

    ADD = "add"
    REMOVE = "remove"
    CLEAR = "clear"
    ENABLE = "enable"
    DISABLE = "disable"
    MERGE = "merge"


@dataclass(frozen=True)
class Listed:
    """A bitmap, where it is and whose."""

    dev: str
    layer: Layer
    depth: int  #: 0 is the active layer
    bitmap: Bitmap
    owner: Owner
    repository_id: str | None = None  #: where it is vbackup's
    checkpoint: str | None = None  #: where it is vbackup's; None for an end mark


@dataclass(frozen=True)
class ChangeRequest:
    """What is asked for; the fields are the options of ``vbackup bitmap``."""

    change: Change
    name: str
    disks: tuple[str, ...] = ()  #: none: all disks (add), or all that have it
    node_name: str | None = None  #: another layer than the active one
    sources: tuple[BlockDirtyBitmap | str, ...] = ()  #: to merge
    granularity_bytes: int | None = None
    persistent: bool = False
    disabled: bool = False
    force: bool = False


@dataclass(frozen=True)
class Changed:
    """A bitmap that was changed."""

    dev: str
    node_name: str
    name: str


def listing(attached: AttachedQemu, *, disks: Sequence[str] = ()) -> list[Listed]:
    """The bitmaps of all layers, those of the active one first. Raises DiskError for a disk that is not there."""
    found = []
    for dev, node in _select(attached.disks(), disks).items():
        for depth, layer in enumerate(node.layers):
            for name in sorted(layer.bitmaps):
                ours, repository_id = names.parse_bitmap(name), names.repository_of(name)
                owner = Owner.LIBVIRT if name in attached.libvirt_checkpoints else Owner.OTHER
                found.append(
                    Listed(
                        dev,
                        layer,
                        depth,
                        layer.bitmaps[name],
                        Owner.VBACKUP if repository_id else owner,
                        repository_id,
                        ours.checkpoint if ours else None,
                    )
                )
    return found


def change(
    request: ChangeRequest,
    *,
    attached: AttachedQemu,
    history: Callable[[str], History | None],
    reporter: Reporter,
    stop: Stop,
) -> list[Changed]:
    """Make the change on all disks concerned, or on none.

    ``history`` gives the domain's backups in the repository of that id, None for one that is not at hand.
    Raises DiskError, UnsafeError (somebody counts on the bitmap), and what vbackup.operations.transaction.run raises.
    """
    places = _places(request, attached.disks())
    if request.change is not Change.ADD:
        for dev, layer in places.items():
            consequence = _guard(request, dev, layer, attached.libvirt_checkpoints, history)
            if consequence is not None:
                reporter.warning(f"Disk {dev}: {consequence}.")
    done = transaction.run(
        TransactionRequest([_action(request, layer.node_name).document() for layer in places.values()], unsafe=True),
        attached=attached,
        reporter=reporter,
        stop=stop,
    )
    assert not done.jobs  # no bitmap action starts one
    return [Changed(dev, layer.node_name, request.name) for dev, layer in places.items()]


def _select(disks: Mapping[str, DiskNode], wanted: Sequence[str]) -> Mapping[str, DiskNode]:
    for dev in wanted:
        if dev not in disks:
            raise DiskError(dev, f"there is no such disk; there are {', '.join(disks) or 'none'}.")
    return {dev: node for dev, node in disks.items() if not wanted or dev in wanted}


def _places(request: ChangeRequest, disks: Mapping[str, DiskNode]) -> dict[str, Layer]:
    """The layer of each disk that the change is made on."""
    places = {}
    for dev, node in _select(disks, request.disks).items():
        for layer in node.layers:
            if layer.node_name == (request.node_name or node.top.node_name):
                places[dev] = layer
    if not places:
        raise UnsuitableError(f"No disk has the node {request.node_name}; 'vbackup bitmap list' shows the layers.")
    if request.change is Change.ADD or request.disks:
        return places
    having = {dev: layer for dev, layer in places.items() if request.name in layer.bitmaps}
    if not having:
        raise UnsuitableError(
            f"No disk has a bitmap {request.name} on its active layer; 'vbackup bitmap list' shows those there are."
        )
    return having


def _action(request: ChangeRequest, node_name: str) -> Action:
    if request.change is Change.ADD:
        return BlockDirtyBitmapAdd(
            node=node_name,
            name=request.name,
            granularity=request.granularity_bytes,
            persistent=request.persistent or None,
            disabled=request.disabled or None,
        )
    if request.change is Change.MERGE:
        return BlockDirtyBitmapMerge(node=node_name, target=request.name, bitmaps=request.sources)
    simple = {
        Change.REMOVE: BlockDirtyBitmapRemove,
        Change.CLEAR: BlockDirtyBitmapClear,
        Change.ENABLE: BlockDirtyBitmapEnable,
        Change.DISABLE: BlockDirtyBitmapDisable,
    }
    return simple[request.change](node=node_name, name=request.name)


def _guard(
    request: ChangeRequest,
    dev: str,
    layer: Layer,
    libvirt_checkpoints: Collection[str],
    history: Callable[[str], History | None],
) -> str | None:
    """Keep what somebody counts on; where its removal is forced, return what follows."""
    if request.name not in layer.bitmaps:
        return None  # QEMU says so
    ours, mark = names.parse_bitmap(request.name), names.parse_end_mark(request.name)
    if mark is not None:
        consequence = _consequence_of_mark(mark, dev, history(mark.repository_id))
        what = f"it tells repository {mark.repository_id} whether disk {mark.dev} was shrunk"
    elif ours is not None:
        consequence = _consequence(ours, dev, history(ours.repository_id))
        what = f"it is the checkpoint {ours.checkpoint} of repository {ours.repository_id}"
    elif request.name in libvirt_checkpoints:
        consequence = "libvirt's checkpoint of that name is of no use any more"
        what = "it belongs to a checkpoint of libvirt's, which 'virsh checkpoint-delete' removes"
    else:
        return None
    if consequence is None:
        return None
    if request.change is not Change.REMOVE:
        raise UnsafeError(
            f"Disk {dev}, bitmap {request.name}",
            f"{what}; to {request.change.value} it would make the next backup wrong, so that is refused",
            instead="it can only be removed",
        )
    if not request.force:
        raise UnsafeError(
            f"Disk {dev}, bitmap {request.name}",
            f"{what}; without it {consequence}",
            instead="--force removes it all the same",
        )
    return consequence


def _consequence_of_mark(mark: names.EndMark, dev: str, history: History | None) -> str | None:
    """What the removal of an end mark means; None if no base is of its size."""
    if history is not None and mark not in history.end_marks(dev):
        return None
    return (
        f"a shrink of disk {dev} that was made undone before the next backup into repository {mark.repository_id} is"
        " not noticed, and that backup wrong"
    )


def _consequence(ours: names.BitmapName, dev: str, history: History | None) -> str | None:
    """What the removal means for the next backup; None if nothing starts from this bitmap any more."""
    if ours.working:
        return f"a backup into repository {ours.repository_id} that is being made fails"
    into = f"of disk {dev} into repository {ours.repository_id}"
    if history is None:
        return f"the next backup {into} is a full if it would have started from {ours.checkpoint}"
    if ours.checkpoint not in {backup.id for backup in history.backups}:
        return f"the backup {ours.checkpoint}, which is being made or cannot be read, is the base of none"
    if ours not in history.base_bitmaps(dev):
        return None
    newest = history.newest(dev)
    if newest is not None and newest.id == ours.checkpoint:
        return f"the next backup {into} is a full"
    return f"the next differential {into} is not possible until there is a new full"
