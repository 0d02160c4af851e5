"""Roll the disks of a domain that is off back to a backup, by writing only what differs.

What differs is what the disks' bitmaps have recorded since the newest backup, with the same trust as a backup has in
them (vbackup.engine.base), and what is different in the two backups by their block lists alone. So it takes as long as
that takes to write, however large the disk is. Where the bitmaps cannot be trusted, nothing is written, and the
reason says why the disk needs a full restore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from vbackup.domain import source
from vbackup.domain.access import Access
from vbackup.domain.host import DomainHandle
from vbackup.domain.offline import OffSource
from vbackup.domain.source import Source
from vbackup.engine import base, leftovers, proof, rollback
from vbackup.engine.base import Choice
from vbackup.engine.rollback import DiskRollback
from vbackup.engine.rollback_reach import There
from vbackup.engine.unfinished import LockedDomain
from vbackup.errors import (
    BusyError,
    ChainError,
    DiskError,
    InterruptedBySignalError,
    StorageDaemonGoneError,
    UnsuitableError,
)
from vbackup.model import Disk, DiskNode, Layer, Level, NodeBitmap
from vbackup.report import Phase, Reporter
from vbackup.repository import changed_blocks, verify
from vbackup.repository.block_list import BLOCK_BYTES, SEGMENT_BYTES, BlockList
from vbackup.repository.changed_blocks import Point
from vbackup.repository.chosen import Chosen
from vbackup.repository.comparison import Comparison
from vbackup.repository.composition import Composition
from vbackup.repository.history import History, Link, Start
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class RollbackRequest:
    """How a domain is rolled back."""

    exclusive: bool = False  #: no other host uses the images of the domain while it is off
    checkpoint: bool = True  #: the next backup starts from the point, not from the newest backup
    of_standby: bool = False  #: the disks are not the domain's own; they keep the bitmap of the newest point only
    speed_bytes_s: int | None = None  #: of each disk


@dataclass(frozen=True)
class RolledBack:
    """A disk that was rolled back."""

    dev: str
    backup: str  #: id of the backup that it is like now
    written_bytes: int  #: the rest was as in the backup already


class Rollback:
    """What is rolled back, and what needs a full restore instead; nothing is written before ``run``."""

    def __init__(
        self,
        disks: Sequence[DiskRollback],
        reasons: Mapping[str, str],
        request: RollbackRequest,
        domain: LockedDomain,
        *,
        point: Chosen,
        lists: _Lists,
        store: Callable[[Layer], None],
        untouched: Sequence[str],
        reach: There | None,
    ) -> None:
        self._disks, self._request, self._domain, self._store = [*disks], request, domain, store
        self._point, self._lists, self._reach = point, lists, reach
        self.untouched = untouched  #: disks (dev) of the domain that the point does not have
        self.reasons = reasons  #: by dev: why the disk needs a full restore

    @property
    def devs(self) -> list[str]:
        """The disks (dev) that will be written."""
        return [disk.dev for disk in self._disks]

    def check_whole(self, devs: Sequence[str]) -> None:
        """Compare all that ``write_whole`` would read of these disks with what is recorded, while nothing is written.

        Raises DamagedError, ChainError, UnsuitableError if an image of the backup has no block list.
        """
        domain, chains = self._domain, {dev: self._point.chains[dev] for dev in devs}
        verify.check_chains(chains, domain.repository, reporter=domain.reporter, stop=domain.stop)
        for dev in devs:
            aim = self._aim(dev)
            changed_blocks.check_images(aim, _data(aim), check=domain.stop.check, progress=lambda _done_bytes: None)

    def write_whole(self, disk: Disk) -> None:
        """Let ``run`` write all of a disk, whose image is new and empty, and of the size that it has in the backup."""
        aim = self._aim(disk.dev)
        (node,) = self._domain.source.look_at(self._domain.source.disk_nodes([disk]))
        bitmaps = (NodeBitmap(node.top.node_name, ""),)  # the new one is on this layer
        made = DiskRollback(node, Choice(Level.FULL, None, bitmaps, self.reasons[disk.dev]), aim, _data(aim))
        self._disks.append(made)

    def _aim(self, dev: str) -> Point:
        links = self._point.chains[dev]
        try:
            lists = self._lists.of(links)
        except _FullError as err:
            raise UnsuitableError(f"Disk {dev}: {err}.") from err
        return Point([(link, verify.image_path(self._domain.repository, link)) for link in links], lists)

    def run(self, *, about_to_write: Callable[[Sequence[str]], None] = lambda _devs: None) -> list[RolledBack]:
        """Write the disks, and return what was done. If it fails, run it again before the domain is started.

        ``about_to_write`` is called with the disks (dev) while they are as they were.
        Raises what begin and carry_out of vbackup.engine.rollback raise, with a warning about disks in the middle.
        """
        if not self._disks:
            return []
        reporter = self._domain.reporter
        recorded = rollback.begin(
            self._disks,
            self._domain,
            store=self._store,
            checkpoint=self._request.checkpoint,
            is_own=not self._request.of_standby,
        )
        about_to_write(self.devs)
        try:
            rollback.carry_out(
                self._disks,
                self._domain,
                recorded,
                store=self._store,
                speed_bytes_s=self._request.speed_bytes_s,
                reach=self._reach,
            )
        except InterruptedBySignalError as err:
            self._warn("run the same command again")
            raise InterruptedBySignalError(err.signum, state="the disks are in the middle of a rollback") from err
        except StorageDaemonGoneError as err:
            self._warn("run the same command again, which restores them in full")  # nobody has stored the bitmaps
            raise StorageDaemonGoneError(err.how, err.last_words, remedy="The rollback did not end.") from err
        except BaseException:
            self._warn("run the same command again")
            raise
        done = [RolledBack(one.dev, one.backup.id, changed_blocks.count_bytes(one.blocks)) for one in self._disks]
        if self._request.of_standby:
            self._drop_superseded()
        for each in done:
            reporter.step(
                f"Disk {each.dev}: rolled back to {each.backup}; {each.written_bytes} bytes were written and checked,"
                " all else was the same."
            )
        return done

    def _drop_superseded(self) -> None:
        """Remove what the disks have of earlier points. The content is right whatever becomes of it."""
        domain = self._domain
        nodes = domain.source.disk_nodes([one.node.disk for one in self._disks])
        history = domain.repository.catalogue(domain.uuid).history
        leftovers.remove_superseded(domain.monitor, nodes, [history], domain.naming)
        for one in self._disks:
            self._store(one.node.top)

    def _warn(self, remedy: str) -> None:
        disks = ", ".join(f"{one.dev} (to {one.backup.id})" for one in self._disks)
        self._domain.reporter.warning(
            f"The rollback of {disks} was interrupted: the content is partly as in the backup and partly as it was."
            f" Do not start domain {self._domain.source.domain.name}; {remedy}."
        )


@contextmanager
def prepared(
    request: RollbackRequest,
    handle: DomainHandle,
    point: Chosen,
    *,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> Iterator[Rollback]:
    """Find out which disks of the point can be rolled back, check all that will be read, and yield what is to be done.

    The caller has the domain's lock in the repository. During the block the images of the disks that can be rolled back
    are open, so that the domain cannot be started. Raises UnsuitableError if the domain runs, BusyError if another
    program has an image open, DamagedError or ChainError if the backup is damaged where it would be read.
    """
    refuse_running(handle)
    access = Access(request.exclusive, writes_data=True, check=stop.check)
    with source.open_source(handle, reporter=reporter, access=access) as opened, ExitStack() as stack:
        if not isinstance(opened, OffSource):
            raise BusyError(f"Domain {handle.name} has been started; run the same command again when it is off.")
        yield planned(request, opened, point, stack, repository=repository, reporter=reporter, stop=stop)


class Images(Source, Protocol):
    """An opened domain that is off."""

    def store(self, layer: Layer) -> None:
        """Store what QEMU has in memory of an active layer. Raises QmpError."""

    def close_disk(self, disk: Disk) -> None:
        """Close the images of a disk if they are open; others may then replace them."""


def planned(
    request: RollbackRequest,
    opened: Images,
    point: Chosen,
    stack: ExitStack,
    *,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    reach: There | None = None,
) -> Rollback:
    """Return what is to be done with the disks of an opened domain, as ``prepared``.

    ``stack`` keeps the block lists open until the end. ``reach``: how the images are reached if they are on another
    host.
    """
    domain = LockedDomain(opened, repository, reporter, stop)
    history = repository.catalogue(domain.uuid).history
    lists = _Lists(repository, stack)
    disks, reasons = list[DiskRollback](), dict[str, str]()
    known = {disk.dev: disk for disk in opened.domain.disks}
    for dev in point.chains:
        if dev not in known:
            reasons[dev] = "the domain has no such disk that can be opened"
            continue
        try:
            disks.append(_disk(known[dev], point, history, lists, domain, reach=reach))
        except _FullError as err:
            reasons[dev] = str(err)
            opened.close_disk(known[dev])
    _check(disks, point, domain)
    untouched = [dev for dev in known if dev not in point.chains]
    return Rollback(
        disks,
        reasons,
        request,
        domain,
        point=point,
        lists=lists,
        store=opened.store,
        untouched=untouched,
        reach=reach,
    )


def refuse_running(handle: DomainHandle) -> None:
    """Raise UnsuitableError if the disks of the domain may not be written: it runs, or has saved memory."""
    if handle.is_active():
        raise UnsuitableError(
            f"Domain {handle.name} is running; its disks can only be written while it is off. Shut it down first, or"
            " restore beside it, with --output."
        )
    if handle.has_managed_save():
        raise UnsuitableError(
            f"Domain {handle.name} has saved memory (managed save), which would not fit the disks any more: its next"
            " start would damage them. Start it and shut it down, or remove it with"
            f" '{handle.virsh('managedsave-remove')}'."
        )


class _FullError(Exception):
    """The reason why a disk needs a full restore."""


class _Lists:
    """The block lists of images, each opened once: a comparison has to see which images two chains share."""

    def __init__(self, repository: Repository, stack: ExitStack) -> None:
        self._repository, self._stack = repository, stack
        self._opened: dict[tuple[str, str], BlockList] = {}

    def of(self, links: Sequence[Link]) -> list[BlockList]:
        """Return the lists of a chain. Raises _FullError if an image has none, ChainError if one is damaged."""
        found = []
        for link in links:
            key = (link.backup.id, link.image.dev)
            if key not in self._opened:
                if link.image.blocks is None:
                    raise _FullError(f"backup {link.backup.id} has no block list; 'vbackup verify' makes one")
                path = verify.image_path(self._repository, link)
                self._opened[key] = self._stack.enter_context(verify.opened_list(path, link))
            found.append(self._opened[key])
        return found


def _disk(
    disk: Disk, point: Chosen, history: History, lists: _Lists, domain: LockedDomain, *, reach: There | None
) -> DiskRollback:
    """Return what is written of a disk. Raises _FullError, and ChainError if a list of the point is damaged."""
    try:
        nodes = domain.source.look_at(domain.source.disk_nodes([disk]))
    except DiskError as err:
        raise _FullError(err.cause) from err
    starts = _starts(nodes[0], history)
    (node,) = proof.compared(Level.AUTO, nodes, history, domain, starts=lambda _dev: starts)
    below = [mark for layer in node.layers[1:] for mark in rollback.marks_of(layer)]
    if below:
        raise _FullError(f"a layer below has the mark of an interrupted rollback, {below[0]}")
    choice = base.choose(Level.AUTO, node, history, naming=domain.naming, starts=starts)
    if choice.base is None:
        marks = rollback.marks_of(node.top)
        raise _FullError(choice.reason + "; an interrupted rollback has left it half done" * bool(marks))
    links = point.chains[disk.dev]
    after = lists.of(links)
    try:
        before = lists.of(history.links(choice.base.id, disk.dev))
    except ChainError as err:
        raise _FullError(str(err).rstrip(".")) from err
    chain = [(link, verify.image_path(domain.repository, link)) for link in links]
    aim = Point(chain, after)
    made = DiskRollback(node, choice, aim, _blocks(node, choice, aim, before, domain, reach=reach))
    flawed = [one.name for one in node.top.bitmaps.values() if one.inconsistent]
    if made.is_resized and flawed:  # qcow2_truncate_bitmaps_check in QEMU's block/qcow2-bitmap.c
        raise _FullError(
            f"the disk was resized, and QEMU resizes no image with an inconsistent bitmap, as {flawed[0]} is one"
        )
    if made.is_resized and len(node.layers) > 1:
        raise _FullError(
            f"the disk was resized from {made.point.size_bytes} to {node.top.virtual_size_bytes} bytes, and has layers"
            " below, which have one of these sizes"
        )
    return made


def _starts(node: DiskNode, history: History) -> list[Start]:
    """Return the checkpoints that a disk may have, the likeliest first: those of a backup, and then all older ones.

    A backup starts from the newest, or goes without: a rollback only needs to know what has changed since some point.
    So the original of a domain that went on elsewhere for a while, with backups, still has its bitmap of the last one
    before that (vbackup.operations.failback).
    """
    dev = node.disk.dev
    on_disk = {name for layer in node.layers for name in layer.bitmaps}
    usual = history.starts(dev, of_full=False, on_disk=on_disk)
    known = {one.bitmap for one in usual}
    older = (history.start_at(backup.id, dev) for backup in reversed(history.backups))
    return [*usual, *(one for one in older if one is not None and one.bitmap in on_disk - known)]


def _blocks(
    node: DiskNode,
    choice: Choice,
    aim: Point,
    before: Sequence[BlockList],
    domain: LockedDomain,
    *,
    reach: There | None,
) -> dict[int, int]:
    """Return the blocks that differ from the point, and those that QEMU writes with them."""
    blocks = rollback.dirty(domain.monitor, node, choice) if reach is None else reach.dirty(node, choice)
    for changes in Comparison(before, aim.lists).changes():
        for mask in changes.masks.values():
            blocks[changes.number] = blocks.get(changes.number, 0) | mask
    if aim.size_bytes > node.top.virtual_size_bytes:
        # What lies behind the end in the last cluster, of an image that was larger once, comes back when it grows.
        number, rest_bytes = divmod(node.top.virtual_size_bytes, SEGMENT_BYTES)
        blocks[number] = blocks.get(number, 0) | 1 << rest_bytes // BLOCK_BYTES
    widened = changed_blocks.whole_clusters(blocks, node.top.cluster_bytes or BLOCK_BYTES)
    return changed_blocks.of_disk(widened, aim.size_bytes)


def _data(aim: Point) -> dict[int, int]:
    """Return the blocks of a point that are not zeros."""
    composed = Composition(aim.lists)
    blocks = {}
    for number in composed.numbers:
        mask = 0
        for part in composed.parts(number):
            mask |= part.segment.data
        blocks[number] = mask
    return changed_blocks.of_disk(blocks, aim.size_bytes)


def _check(disks: Sequence[DiskRollback], point: Chosen, domain: LockedDomain) -> None:
    """Compare what will be read of the repository with what is recorded, before the first disk is written."""
    chains = {disk.dev: point.chains[disk.dev] for disk in disks}
    verify.check_chains(chains, domain.repository, reporter=domain.reporter, stop=domain.stop)
    for disk in disks:
        total_bytes = changed_blocks.count_bytes(disk.blocks)

        def progress(done_bytes: int, dev: str = disk.dev, total_bytes: int = total_bytes) -> None:
            domain.reporter.progress(dev, Phase.CHECK, min(done_bytes, total_bytes), total_bytes)

        changed_blocks.check_images(disk.point, disk.blocks, check=domain.stop.check, progress=progress)
