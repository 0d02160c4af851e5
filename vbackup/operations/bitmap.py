"""List the dirty bitmaps of disks, or change one on several disks in a single transaction: ``vbackup bitmap``.

The owner of a bitmap decides what is allowed. If a repository or libvirt starts its next backup from a bitmap, changing
it would make that backup wrong, so this is refused; removing it makes that backup a full, so this has to be forced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from vbackup import names
from vbackup.domain.attached import AttachedQemu
from vbackup.errors import (
    DiskError,
    TransactionError,
    TransactionRefusedError,
    UnsafeError,
    UnsuitableError,
    command,
    domain_argument,
)
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
    """The program that made a bitmap and relies on it."""

    VBACKUP = "vbackup"  #: a checkpoint, working bitmap or end mark of a repository
    TRACKER = "tracker"  #: a checkpoint or end mark of a tracker of pull sessions
    LIBVIRT = "libvirt"  #: has the name of a libvirt checkpoint
    OTHER = "other"


class Change(Enum):
    """The possible changes to a bitmap."""

    ADD = "add"
    REMOVE = "remove"
    CLEAR = "clear"
    ENABLE = "enable"
    DISABLE = "disable"
    MERGE = "merge"


@dataclass(frozen=True)
class Listed:
    """A bitmap, its place and its owner."""

    dev: str
    layer: Layer
    depth: int  #: 0 is the active layer
    bitmap: Bitmap
    owner: Owner
    repository_id: str | None = None  #: if the owner is vbackup
    checkpoint: str | None = None  #: if the owner is vbackup or a tracker; None for an end mark
    tracker: str | None = None  #: if the owner is a tracker: its name, or its id if it is not known here


@dataclass(frozen=True)
class ChangeRequest:
    """The options of ``vbackup bitmap``."""

    change: Change
    name: str
    disks: tuple[str, ...] = ()  #: empty: all disks (add), or all disks that have the bitmap
    node_name: str | None = None  #: None: the active layer
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


def listing(attached: AttachedQemu, *, disks: Sequence[str] = (), trackers: Collection[str] = ()) -> list[Listed]:
    """Return the bitmaps of all layers, from the active one down. Raises DiskError for a disk that does not exist.

    ``trackers`` has the names of the domain's trackers.
    """
    by_id = {names.tracker_id(name): name for name in trackers}
    bitmaps = []
    for dev, node in _select(attached.disks(), disks).items():
        for depth, layer in enumerate(node.layers):
            for name in sorted(layer.bitmaps):
                parsed, owner_id = names.parse_bitmap(name), names.repository_of(name)
                owner = Owner.LIBVIRT if name in attached.libvirt_checkpoints else Owner.OTHER
                tracker = None
                if owner_id is not None:
                    owner = Owner.TRACKER if names.is_tracker(owner_id) else Owner.VBACKUP
                    tracker = by_id.get(owner_id, owner_id) if owner is Owner.TRACKER else None
                bitmaps.append(
                    Listed(
                        dev,
                        layer,
                        depth=depth,
                        bitmap=layer.bitmaps[name],
                        owner=owner,
                        repository_id=owner_id if owner is Owner.VBACKUP else None,
                        checkpoint=parsed.checkpoint if parsed else None,
                        tracker=tracker,
                    )
                )
    return bitmaps


def change(
    request: ChangeRequest,
    *,
    attached: AttachedQemu,
    history: Callable[[str], History | None],
    reporter: Reporter,
    stop: Stop,
) -> list[Changed]:
    """Make the change on all selected disks, or on none.

    ``history`` returns the domain's backups in the repository with that id, None if it cannot be opened. Raises
    DiskError, UnsuitableError, UnsafeError (a repository or libvirt relies on the bitmap), and what
    vbackup.operations.transaction.run raises.
    """
    disks = attached.disks()
    places = _places(request, disks, _command("vbackup bitmap list", attached))
    for dev in places:
        reason = disks[dev].read_only_reason
        if reason is not None:
            raise DiskError(dev, f"its bitmaps cannot be changed now: {reason}.")
    if request.change is not Change.ADD:
        for dev, layer in places.items():
            consequence = _consequence_if_allowed(
                request,
                dev,
                layer=layer,
                libvirt_checkpoints=attached.libvirt_checkpoints,
                checkpoint_delete=_command("virsh checkpoint-delete", attached),
                history=history,
            )
            if consequence is not None:
                reporter.warning(f"Disk {dev}: {consequence}.")
    with _refusals(list(places)):
        result = transaction.run(
            TransactionRequest(
                [_action(request, layer.node_name).document() for layer in places.values()], unsafe=True
            ),
            attached=attached,
            reporter=reporter,
            stop=stop,
        )
    assert not result.jobs  # no bitmap action starts one
    return [Changed(dev, layer.node_name, request.name) for dev, layer in places.items()]


@contextmanager
def _refusals(devs: Sequence[str]) -> Iterator[None]:
    """Say which disk a refusal is about: the user knows nothing of the actions, of which each disk has one."""
    try:
        yield
    except TransactionError as err:
        if err.action is None:
            raise
        raise TransactionError(f"Disk {devs[err.action]}", f"{err.reason} Nothing was changed.") from err
    except TransactionRefusedError as err:
        if err.index is None:
            raise
        raise TransactionRefusedError(
            err.description, err.index, None, at=f"the change of disk {devs[err.index]}"
        ) from err


def _select(disks: Mapping[str, DiskNode], wanted: Sequence[str]) -> Mapping[str, DiskNode]:
    for dev in wanted:
        if dev not in disks:
            raise DiskError(dev, f"no such disk; the disks are: {', '.join(disks) or 'none'}.")
    return {dev: node for dev, node in disks.items() if not wanted or dev in wanted}


def _command(words: str, attached: AttachedQemu) -> str:
    """Return a command about the domain for people; without a domain, just its words."""
    if attached.uuid is None:
        return words
    return command(f"{words} {domain_argument(attached.name)}", attached.uri)


def _places(request: ChangeRequest, disks: Mapping[str, DiskNode], listing: str) -> dict[str, Layer]:
    """Return the layer of each disk on which the change is made, by dev; ``listing``: the command that lists all."""
    places = {}
    for dev, node in _select(disks, request.disks).items():
        for layer in node.layers:
            if layer.node_name == (request.node_name or node.top.node_name):
                places[dev] = layer
    if not places:
        raise UnsuitableError(f"No disk has the node {request.node_name}; '{listing}' shows the layers.")
    if request.change is Change.ADD or request.disks:
        return places
    matching = {dev: layer for dev, layer in places.items() if request.name in layer.bitmaps}
    if not matching:
        raise UnsuitableError(
            f"No disk has a bitmap {request.name} on its active layer; '{listing}' lists all bitmaps."
        )
    return matching


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


def _consequence_if_allowed(
    request: ChangeRequest,
    dev: str,
    *,
    layer: Layer,
    libvirt_checkpoints: Collection[str],
    checkpoint_delete: str,
    history: Callable[[str], History | None],
) -> str | None:
    """Return what a forced removal leads to, None if nobody relies on the bitmap. Raises UnsafeError if not allowed."""
    if request.name not in layer.bitmaps:
        return None  # QEMU refuses the change
    checkpoint, mark = names.parse_bitmap(request.name), names.parse_end_mark(request.name)
    if mark is not None:
        consequence = _consequence_of_mark(mark, dev, history(mark.repository_id))
        what = f"it shows {_owner(mark.repository_id)} whether disk {mark.dev} was shrunk"
    elif checkpoint is not None:
        consequence = (
            _consequence_for_tracker(checkpoint)
            if names.is_tracker(checkpoint.repository_id)
            else _consequence(checkpoint, dev, history(checkpoint.repository_id))
        )
        what = f"it is checkpoint {checkpoint.checkpoint} of {_owner(checkpoint.repository_id)}"
    elif request.name in libvirt_checkpoints:
        consequence = "libvirt can no longer use its checkpoint of that name"
        what = f"it belongs to a libvirt checkpoint, which '{checkpoint_delete}' removes"
    else:
        return None
    if consequence is None:
        return None
    if request.change is not Change.REMOVE:
        raise UnsafeError(
            f"Disk {dev}, bitmap {request.name}",
            f"{what}; to {request.change.value} it would make the next backup wrong, so this is refused",
            instead="it can only be removed",
        )
    if not request.force:
        raise UnsafeError(
            f"Disk {dev}, bitmap {request.name}",
            f"{what}; without it, {consequence}",
            instead="--force removes it anyway",
        )
    return consequence


def _consequence_of_mark(mark: names.EndMark, dev: str, history: History | None) -> str | None:
    """Return the consequence of removing an end mark, None if no base has its size."""
    if history is not None and mark not in history.end_marks(dev):
        return None
    return (
        f"{_next(mark.repository_id)} does not notice if disk {dev} was shrunk and has grown again, and is then wrong"
    )


def _owner(owner_id: str) -> str:
    return f"{'tracker' if names.is_tracker(owner_id) else 'repository'} {owner_id}"


def _next(owner_id: str) -> str:
    if names.is_tracker(owner_id):
        return f"the next session of tracker {owner_id}"
    return f"the next backup to repository {owner_id}"


def _consequence_for_tracker(bitmap: names.BitmapName) -> str:
    """Return the consequence of removing a bitmap for the next session of its tracker."""
    return (
        f"{_next(bitmap.repository_id)} is full if it would have started from {bitmap.checkpoint}; 'vbackup checkpoint"
        " delete' removes it with its record"
    )


def _consequence(bitmap: names.BitmapName, dev: str, history: History | None) -> str | None:
    """Return the consequence of removing the bitmap for the next backup, None if none can start from it."""
    if bitmap.working:
        return f"the running backup to repository {bitmap.repository_id} fails"
    backups = f"of disk {dev} to repository {bitmap.repository_id}"
    if history is None:
        return f"the next backup {backups} is a full if it would have started from {bitmap.checkpoint}"
    if bitmap.checkpoint not in {backup.id for backup in history.backups} | history.checkpoints:
        return f"backup {bitmap.checkpoint}, which is still running or cannot be read, cannot be a base"
    if bitmap not in history.base_bitmaps(dev):
        return None
    newest = history.newest(dev)
    restored = {names.parse_bitmap(one.bitmap) for one in history.restored_since(dev)}
    if bitmap in restored or (newest is not None and newest.id == bitmap.checkpoint):
        return f"the next backup {backups} is a full"
    return f"a differential {backups} is not possible until the next full"
