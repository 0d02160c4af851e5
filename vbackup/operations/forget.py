"""Give up a repository's claim on a domain: remove its bitmaps from all layers of all disks.

What a backup of the domain into that repository starts from is gone then, so the next one is a full; the
backups that are there stay. Other repositories', libvirt's and foreign bitmaps are not touched (vbackup.names
tells whose one is).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from vbackup import names
from vbackup.domain import source
from vbackup.domain.host import Host
from vbackup.domain.source import Source
from vbackup.engine import leftovers
from vbackup.errors import BusyError, DiskError, QmpError
from vbackup.model import Layer
from vbackup.names import Naming
from vbackup.qemu import jobs
from vbackup.qemu.monitor import block_nodes
from vbackup.report import Reporter
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class ForgetRequest:
    """What is asked for; the fields are the options of ``vbackup forget``."""

    domain: str  #: name or UUID
    repository_id: str
    dry_run: bool = False
    force: bool = False  #: without the repository's lock: end a backup into it that is still in QEMU
    wait_lock_s: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A bitmap of the repository's, and where it is."""

    dev: str | None  #: None on a node that belongs to no disk that is backed up
    layer: Layer
    name: str

    @property
    def place(self) -> tuple[str, str]:
        """Node and name."""
        return self.layer.node_name, self.name

    @property
    def checkpoint(self) -> str | None:
        """The backup that made it; None for an end mark, which is of no single one."""
        ours = names.parse_bitmap(self.name)
        return ours.checkpoint if ours is not None else None


@dataclass(frozen=True)
class Kept:
    """A bitmap that is still there, and why."""

    claim: Claim
    reason: str


@dataclass(frozen=True)
class Forgotten:
    """What was removed, or would be, and what was not."""

    domain_name: str
    domain_uuid: str
    removed: tuple[Claim, ...]
    kept: tuple[Kept, ...]
    unopened: Mapping[str, str]  #: disks of a domain that is off which could not be looked at, with the reason


def run(
    request: ForgetRequest, *, host: Host, repository: Repository | None, reporter: Reporter, stop: Stop
) -> Forgotten:
    """Remove the bitmaps, or only look for them in a dry run.

    ``repository`` is the one of that id where it is at hand: then its lock on the domain is held. Raises BusyError
    where a backup into it is being made, DomainNotFoundError, and what vbackup.domain.source.open_source raises. A
    bitmap that QEMU will not remove keeps none of the others.
    """
    handle = host.domain(request.domain)
    stop.check()
    wait = LockWait(request.wait_lock_s, reporter, stop)
    lock = nullcontext() if repository is None else repository.lock(handle.uuid, wait=wait)
    with lock, source.open_source(handle, reporter=reporter) as opened:
        _end_backups(request, opened, reporter, locked=repository is not None)
        claims, unopened = _claims(request.repository_id, opened, reporter)
        stop.check()
        kept = _foresee(claims, opened) if request.dry_run else _remove(claims, opened)
    held = {one.claim.place for one in kept}
    removed = tuple(claim for claim in claims if claim.place not in held)
    _warn(kept, reporter, is_running=opened.is_running)
    return Forgotten(handle.name, handle.uuid, removed, tuple(kept), unopened)


def _end_backups(request: ForgetRequest, opened: Source, reporter: Reporter, *, locked: bool) -> None:
    """Clear away what a dead run left in QEMU. Raises BusyError where it may not be dead."""
    prefix = Naming(request.repository_id).prefix
    job_ids = [job_id for job_id in jobs.query(opened.monitor) if job_id.startswith(prefix)]
    if job_ids and not (locked or request.force):
        raise BusyError(
            f"A backup of domain {opened.handle.name} into repository {request.repository_id} is being made, or was"
            f" cut off: its job {job_ids[0]} is in QEMU. Wait for it to end; if no vbackup runs any more, --force"
            " ends it."
        )
    if request.dry_run:
        return
    for name in leftovers.remove_leftovers(opened.monitor, Naming(request.repository_id)):
        reporter.step(f"Removed {name} from QEMU, left by a backup that never ended.")


def _claims(repository_id: str, opened: Source, reporter: Reporter) -> tuple[list[Claim], Mapping[str, str]]:
    """The repository's bitmaps, disk by disk and the active layer's first; and disks that could not be opened."""
    devs: dict[str, str] = {}
    order: dict[str, Layer] = {}
    unopened: dict[str, str] = {}
    for disk in opened.domain.disks:
        try:
            (node,) = opened.disk_nodes([disk])
        except DiskError as err:
            unopened[disk.dev] = str(err)
            continue
        devs.update((layer.node_name, disk.dev) for layer in node.layers)
        order.update((layer.node_name, layer) for layer in node.layers)
    # In a running QEMU also what belongs to no disk that is backed up, such as one that has been made shareable.
    order.update(block_nodes(opened.monitor).nodes())
    claims = [
        Claim(devs.get(node_name), layer, name)
        for node_name, layer in order.items()
        for name in sorted(layer.bitmaps)
        if names.repository_of(name) == repository_id
    ]
    if opened.is_running:
        return claims, {}  # all nodes have been seen
    for reason in unopened.values():
        reporter.warning(reason)
    return claims, unopened


def _foresee(claims: list[Claim], opened: Source) -> list[Kept]:
    """What QEMU would not remove, as far as can be told without trying."""
    kept = []
    for claim in claims:
        bitmap = claim.layer.bitmaps[claim.name]
        if bitmap.busy:
            kept.append(Kept(claim, "it is in use by another operation"))
        elif claim.layer.read_only and bitmap.persistent and opened.is_running:
            kept.append(Kept(claim, _READ_ONLY))
    return kept


def _remove(claims: list[Claim], opened: Source) -> list[Kept]:
    kept: list[Kept] = []
    for layer in {claim.layer.node_name: claim.layer for claim in claims}.values():
        on_it = [claim for claim in claims if claim.layer.node_name == layer.node_name]
        try:
            with opened.writable(layer):
                kept += _remove_from_layer(on_it, opened)
        except QmpError as err:
            told = {one.claim.place for one in kept}
            kept += [Kept(claim, err.description.rstrip(".")) for claim in on_it if claim.place not in told]
    return kept


def _remove_from_layer(claims: list[Claim], opened: Source) -> Iterator[Kept]:
    for claim in claims:
        node = claim.layer.node_name
        try:
            opened.monitor.execute("block-dirty-bitmap-remove", {"node": node, "name": claim.name})
        except QmpError as err:
            yield Kept(claim, _READ_ONLY if claim.layer.read_only else err.description.rstrip("."))


_READ_ONLY = "its layer is read-only"


def _warn(kept: list[Kept], reporter: Reporter, *, is_running: bool) -> None:
    """One warning for each layer and reason, with the way out."""
    groups: dict[tuple[str, str], list[Claim]] = {}
    for one in kept:
        groups.setdefault((one.claim.layer.node_name, one.reason), []).append(one.claim)
    for (node_name, reason), claims in groups.items():
        many = len(claims) > 1
        where = f"Disk {claims[0].dev}" if claims[0].dev else f"Node {node_name}"
        out = "when nothing else uses it"
        if reason == _READ_ONLY and is_running:
            out = "when the domain is off, or when the layers above are committed (virsh blockcommit)"
        reporter.warning(
            f"{where}: {'bitmaps' if many else 'bitmap'} {', '.join(claim.name for claim in claims)} on"
            f" {claims[0].layer.filename} {'stay' if many else 'stays'}: {reason}. That is in nobody's way; to be rid"
            f" of {'them' if many else 'it'}, run the same command again {out}."
        )
