"""Remove the bitmaps of one repository from all layers of a domain's disks.

Without them, the domain's next backup to that repository is a full; existing backups stay. The bitmaps of other
repositories, of libvirt and of other programs are not touched: the name of a bitmap says who made it (vbackup.names).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from vbackup import names
from vbackup.domain import source
from vbackup.domain.access import Access
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.source import Source
from vbackup.engine import leftovers
from vbackup.errors import BusyError, DiskError, QmpError, UnsuitableError, domain_argument
from vbackup.images import targets
from vbackup.model import Layer
from vbackup.names import Naming
from vbackup.qemu import jobs
from vbackup.qemu.block_graph import LAYERS_NOT_LISTED
from vbackup.qemu.monitor import block_nodes
from vbackup.report import Reporter
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class ForgetRequest:
    """The options of ``vbackup forget``."""

    domain: str  #: name or UUID
    repository_id: str
    is_by_id: bool = False  #: also what a copy of the repository made, not only what the one that is given did
    dry_run: bool = False
    force: bool = False  #: without the repository's lock: cancel a backup to it that is still in QEMU
    wait_lock_s: float = 0.0  #: how long to wait for that lock
    exclusive: bool = False  #: no other host uses the images of the domain while it is off


@dataclass(frozen=True)
class Claim:
    """A bitmap of the repository, and where it is."""

    dev: str | None  #: None on a node of no disk that can be backed up
    layer: Layer
    name: str

    @property
    def place(self) -> tuple[str, str]:
        """The names of the node and of the bitmap."""
        return self.layer.node_name, self.name

    @property
    def checkpoint(self) -> str | None:
        """The id of the backup that made it; None for an end mark, which several backups can share."""
        parsed = names.parse_bitmap(self.name)
        return parsed.checkpoint if parsed is not None else None


@dataclass(frozen=True)
class Kept:
    """A bitmap that was not removed, and why."""

    claim: Claim
    reason: str


@dataclass(frozen=True)
class Forgotten:
    """The bitmaps that were removed (or would be, in a dry run), and those that were not."""

    domain_name: str
    domain_uuid: str
    removed: tuple[Claim, ...]
    kept: tuple[Kept, ...]
    unopened: Mapping[str, str]  #: reason by dev: disks that could not be examined, or not completely


def run(
    request: ForgetRequest, *, host: Host, repository: Repository | None, reporter: Reporter, stop: Stop
) -> Forgotten:
    """Remove the bitmaps, or only list them in a dry run.

    ``repository`` is the one with that id, or None if it cannot be opened; its lock on the domain is held. If QEMU
    refuses to remove a bitmap, the others are removed anyway. Raises BusyError if a backup to the repository may be
    running, DomainNotFoundError, and what vbackup.domain.source.open_source raises.
    """
    handle = host.domain(request.domain)
    stop.check()
    wait = LockWait(request.wait_lock_s, reporter, stop, name=handle.name)
    lock = nullcontext() if repository is None else repository.lock(handle.uuid, wait=wait)
    access = Access(request.exclusive)
    with lock, source.open_source(handle, reporter=reporter, access=access) as domain_source:
        if repository is not None and domain_source.is_running and not request.force:
            _refuse_original_in_qemu(repository, domain_source)
        _end_backups(request, domain_source, reporter, locked=repository is not None)
        claims, unopened = _claims(request.repository_id, domain_source, reporter)
        kept = [Kept(claim, _HALF_DONE) for claim in claims if names.parse_rollback_mark(claim.name) is not None]
        kept += [] if repository is None or request.is_by_id else _of_a_copy(_without(claims, kept), repository.naming)
        removable = _without(claims, kept)
        stop.check()
        kept += _foresee(removable, domain_source) if request.dry_run else _remove(removable, domain_source)
    removed = tuple(_without(claims, kept))
    _warn(kept, reporter, is_running=domain_source.is_running, handle=handle)
    return Forgotten(handle.name, handle.uuid, removed=removed, kept=tuple(kept), unopened=unopened)


def _refuse_original_in_qemu(repository: Repository, domain_source: Source) -> None:
    """Raise BusyError if a copy of this repository has images open: what has its names in QEMU is not this one's."""
    node = targets.open_elsewhere(domain_source.monitor, repository.naming, repository.path)
    if node is not None:
        raise BusyError(
            f"Another copy of repository {repository.id} is backing up domain {domain_source.handle.name}, or was"
            f" interrupted: QEMU has its image open (node {node}). Nothing was changed; use the repository that the"
            " backup is in, or wait for it to end."
        )


def _of_a_copy(claims: list[Claim], naming: Naming) -> list[Kept]:
    """Return what another copy of the repository relies on: its checkpoints, and the end marks on the same disk."""
    parsed = {claim.place: names.parse_bitmap(claim.name) for claim in claims}
    theirs = {place for place, bitmap in parsed.items() if bitmap and bitmap.is_of_other_place(naming)}
    devs = {claim.dev for claim in claims if claim.place in theirs}
    return [
        Kept(claim, _OF_A_COPY)
        for claim in claims
        if claim.place in theirs or (parsed[claim.place] is None and claim.dev in devs)
    ]


def _without(claims: list[Claim], kept: list[Kept]) -> list[Claim]:
    places = {bitmap.claim.place for bitmap in kept}
    return [claim for claim in claims if claim.place not in places]


def _end_backups(request: ForgetRequest, domain_source: Source, reporter: Reporter, *, locked: bool) -> None:
    """Remove what an interrupted backup left in QEMU. Raises BusyError if that backup may still be running."""
    prefix = Naming(request.repository_id).prefix
    job_ids = [job_id for job_id in jobs.query(domain_source.monitor) if job_id.startswith(prefix)]
    if job_ids and not (locked or request.force):
        raise BusyError(
            f"A backup of domain {domain_source.handle.name} to repository {request.repository_id} is running or was"
            f" interrupted: its job {job_ids[0]} is in QEMU. Wait for it to end; if no vbackup is running any longer,"
            " --force cancels it."
        )
    if request.dry_run:
        return
    for name in leftovers.remove_leftovers(domain_source.monitor, Naming(request.repository_id)):
        reporter.step(f"Removed {name} from QEMU, left by a backup that never ended.")


def _claims(repository_id: str, domain_source: Source, reporter: Reporter) -> tuple[list[Claim], Mapping[str, str]]:
    """Return the repository's bitmaps in the order of their removal, and the disks that cannot be opened.

    The order is by disk, from the active layer down, since a base that is left on the lower layers alone is never
    trusted. On a layer, end marks come last: a base without its end mark is trusted even if the disk was shrunk.
    """
    devs: dict[str, str] = {}
    layers: dict[str, Layer] = {}
    unopened: dict[str, str] = {}
    for disk in domain_source.domain.disks:
        try:
            (node,) = domain_source.disk_nodes([disk])
        except DiskError as err:
            unopened[disk.dev] = str(err)
            continue
        if not node.lists_bitmaps:
            unopened[disk.dev] = f"Disk {disk.dev}: {LAYERS_NOT_LISTED}."
        devs.update((layer.node_name, disk.dev) for layer in node.layers)
        layers.update((layer.node_name, layer) for layer in node.layers)
    # A running QEMU also has nodes of disks that cannot be backed up, such as one that has been made shareable.
    nodes = block_nodes(domain_source.monitor)
    layers.update(nodes.nodes())
    claims = [
        Claim(devs.get(node_name), layer, name)
        for node_name, layer in layers.items()
        for name in sorted(layer.bitmaps, key=lambda name: (names.parse_end_mark(name) is not None, name))
        if names.repository_of(name) == repository_id
    ]
    if domain_source.is_running and nodes.refusal is None:
        return claims, {}  # QEMU listed all nodes
    for reason in unopened.values():
        reporter.warning(reason)
    return claims, unopened


def _foresee(claims: list[Claim], domain_source: Source) -> list[Kept]:
    """Return the bitmaps that QEMU would not remove, as far as its replies show."""
    kept = []
    for claim in claims:
        bitmap = claim.layer.bitmaps[claim.name]
        reason = domain_source.reason_not_to_write(claim.layer)
        if reason is not None:
            kept.append(Kept(claim, reason))
        elif bitmap.busy:
            kept.append(Kept(claim, "it is in use by another operation"))
        elif claim.layer.read_only and bitmap.persistent and domain_source.is_running:
            kept.append(Kept(claim, _READ_ONLY))
    return kept


def _remove(claims: list[Claim], domain_source: Source) -> list[Kept]:
    kept: list[Kept] = []
    for layer in {claim.layer.node_name: claim.layer for claim in claims}.values():
        on_layer = [claim for claim in claims if claim.layer.node_name == layer.node_name]
        try:
            with domain_source.writable(layer):
                kept += _remove_from_layer(on_layer, domain_source)
        except (QmpError, UnsuitableError) as err:
            reason = err.description if isinstance(err, QmpError) else str(err)
            known = {bitmap.claim.place for bitmap in kept}
            kept += [Kept(claim, reason.rstrip(".")) for claim in on_layer if claim.place not in known]
    return kept


def _remove_from_layer(claims: list[Claim], domain_source: Source) -> Iterator[Kept]:
    for claim in claims:
        node = claim.layer.node_name
        try:
            domain_source.monitor.execute("block-dirty-bitmap-remove", {"node": node, "name": claim.name})
        except QmpError as err:
            yield Kept(claim, _READ_ONLY if claim.layer.read_only else err.description.rstrip("."))


_READ_ONLY = "its layer is read-only"
_HALF_DONE = "a rollback was interrupted, and the disk is partly as in a backup and partly as it was before"
_OF_A_COPY = "another copy of this repository made it, or this one before it was moved"


def _warn(kept: list[Kept], reporter: Reporter, *, is_running: bool, handle: DomainHandle) -> None:
    """Warn once for each layer and reason, and say how to remove the bitmaps."""
    groups: dict[tuple[str, str], list[Claim]] = {}
    for bitmap in kept:
        groups.setdefault((bitmap.claim.layer.node_name, bitmap.reason), []).append(bitmap.claim)
    for (node_name, reason), claims in groups.items():
        many = len(claims) > 1
        where = f"Disk {claims[0].dev}" if claims[0].dev else f"Node {node_name}"
        if reason == _HALF_DONE:
            remove = handle.host.command(f"vbackup bitmap remove {domain_argument(handle.name)} {claims[0].name}")
            reporter.warning(
                f"{where}: {claims[0].name} stays: {reason}. No backup is made of it until it is restored, or the mark"
                f" is removed with '{remove}'."
            )
            continue
        when = "when nothing else uses the image"
        if reason == _OF_A_COPY:
            when = "with --repository-id instead of -r, if that copy is given up too"
        elif "--exclusive" in reason:
            when = "with it"
        elif reason == _READ_ONLY and is_running:
            when = f"when the domain is off, or when the layers above are committed ({handle.virsh('blockcommit')})"
        reporter.warning(
            f"{where}: {'bitmaps' if many else 'bitmap'} {', '.join(claim.name for claim in claims)} on"
            f" {claims[0].layer.filename} {'stay' if many else 'stays'}: {reason}."
            f" {'They do' if many else 'It does'} no harm; to remove {'them' if many else 'it'}, run the same command"
            f" again {when}."
        )
