"""What the plan of a backup is made from: the disks' layers, bitmaps and files now, and the base of each.

vbackup.engine.plan makes the plan. The disks' files are looked at again when the transaction was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone

from vbackup import amounts, names
from vbackup.domain import definition, standby_xml
from vbackup.domain.host import DomainHandle
from vbackup.engine import base, foreign_jobs, leftovers, plan, proof, underlay
from vbackup.engine.base import Choice
from vbackup.engine.plan import BackupPlan, Identity, Selection, Wishes
from vbackup.engine.unfinished import LockedDomain, Unfinished
from vbackup.errors import (
    BusyError,
    ChainError,
    CorruptImageError,
    DiskError,
    StorageError,
    UnsuitableError,
    command,
    domain_argument,
)
from vbackup.files import replace_text, storage_errors
from vbackup.hooks.events import Operation, events
from vbackup.model import DiskNode, Level
from vbackup.qemu import jobs
from vbackup.repository import audited, hosts, in_place_journal, standbys
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.history import History, Start


def select(domain: LockedDomain, wanted: Sequence[str], excluded: Sequence[str]) -> Selection:
    """Return the disks to back up and those left out.

    Raises what vbackup.engine.plan.select raises, and BusyError for a disk on which another job works.
    """
    selection = plan.select(domain.source.domain, wanted, excluded)
    # Before anything else is asked: a job may just be changing the disk's nodes.
    foreign_jobs.refuse_busy(domain.monitor, selection.disks)
    return selection


def plan_of(selection: Selection, domain: LockedDomain, wishes: Wishes, *, is_dry_run: bool) -> BackupPlan:
    """Return the plan of a backup of the disks as they and the repository are now.

    Bitmaps of backups that were never committed are removed. The user reads what each disk starts from and why. A dry
    run reads no file only to record its digest.
    Raises BaseError if the level needs a base and a disk has none, QmpError, StorageError.
    """
    taken_ids = domain.repository.taken_ids(domain.uuid)
    catalogue = domain.repository.catalogue(domain.uuid)
    _renew_audits(catalogue, domain, is_dry_run=is_dry_run)
    nodes = _nodes(selection, domain, taken_ids | catalogue.history.checkpoints)
    for broken in catalogue.broken:
        domain.reporter.warning(broken.sentence)
    now = datetime.now(timezone.utc)
    due = _due_full(wishes, nodes, catalogue.history, now)
    if due is not None:
        wishes = replace(wishes, level=Level.FULL)
    starts = _starts(wishes.level, nodes, catalogue.history, domain)
    nodes = proof.compared(wishes.level, nodes, catalogue.history, domain, starts=starts)
    choices = _choices(wishes.level, nodes, catalogue.history, domain, starts=starts, due=due)
    if not is_dry_run:
        choices = proof.recorded(choices, catalogue.history, domain)
    backup_plan = plan.make(
        selection,
        choices,
        history=catalogue.history,
        identity=Identity(domain.naming, now, names.new_token(domain.naming.place), taken_ids),
        wishes=wishes,
    )
    _warn_of_another_host(backup_plan, catalogue.history, domain)
    return backup_plan


def refuse_changed(backup_plan: BackupPlan, domain: LockedDomain) -> None:
    """Raise BusyError if a disk has other layers, or another size, than when the plan was made some time ago.

    After an external snapshot QEMU would copy what is below the disk by then, without an error.
    """
    for disk in backup_plan.disks:
        changed = BusyError(
            f"Disk {disk.dev} has other images than when the backup was planned, or another size: a script, or somebody"
            " else, has changed them. No backup was made; run the same command again."
        )
        try:
            [node] = domain.source.disk_nodes([disk.node.disk])
        except CorruptImageError:
            raise
        except DiskError as err:  # it is not where it was
            raise changed from err
        if _shape(node) != _shape(disk.node):
            raise changed


def _shape(node: DiskNode) -> list[tuple[str, str | None, int]]:
    return [(layer.node_name, layer.filename, layer.virtual_size_bytes) for layer in node.layers]


def _renew_audits(catalogue: Catalogue, domain: LockedDomain, *, is_dry_run: bool) -> None:
    """If the results of audits cannot be read, warn; what is not to be trusted now is written down, and so ends."""
    directory = domain.repository.path / domain.uuid
    flaw = audited.flaw(directory)
    if flaw is None:
        return
    domain.reporter.warning(f"{flaw} No bitmap is trusted until a full, because an audit may have found it wrong.")
    if not is_dry_run:
        history = catalogue.history
        text = audited.renewed([*history.backups, *history.merging], now=datetime.now(timezone.utc))
        with storage_errors(f"write {directory / audited.NAME}"):
            replace_text(directory / audited.NAME, text)


def with_chains(backup_plan: BackupPlan, started: Unfinished) -> Unfinished:
    """Return the backup with the state of the disks' files at the moment.

    They are looked at before and after it. Raises BusyError if a file that no bitmap covers was changed in between.
    """
    domain = started.domain
    nodes = jobs.over_losses(
        domain.monitor,
        lambda: domain.source.look_at([disk.node for disk in backup_plan.disks]),
        stop=domain.stop,
    )
    images = []
    for image, disk, node in zip(started.draft.disks, backup_plan.disks, nodes):
        path = underlay.changed(disk.node.chain, node.chain)
        if path is not None:
            raise BusyError(
                f"Disk {disk.dev}: {path} was changed while the backup began. Nothing was kept of this backup; run the"
                " same command again."
            )
        chain = None if image.chain is None else underlay.agreed(disk.node.chain, node.chain)
        images.append(replace(image, chain=chain))
    return replace(started, draft=replace(started.draft, disks=tuple(images)))


def _warn_of_another_host(backup_plan: BackupPlan, history: History, domain: LockedDomain) -> None:
    """Warn if the newest backup is of another host and this one does not start from it: it may be another machine."""
    newest = next((backup for backup in reversed(history.backups) if backup.host is not None), None)
    bases = [disk.choice.base for disk in backup_plan.disks if disk.choice.base is not None]
    if newest is None or newest.host is None or not newest.host.is_other_than(definition.host_of(domain.source.handle)):
        return
    if not all(base.host is None or base.host.is_other_than(newest.host) for base in bases):
        return
    if _has_standby(domain):  # one of the two is that, and needs the UUID
        return
    if bases:
        domain.reporter.warning(
            f"Two machines have the UUID {domain.uuid}: the newest backup, {newest.id}, is of one on host"
            f" {newest.host}, and this one goes on from {bases[0].id}, which is earlier. Each has a separate chain;"
            " 'vbackup restore' needs --host to tell them apart. It is better to give the copy a new UUID, or to use a"
            " separate repository for it."
        )
    else:
        domain.reporter.warning(
            f"The newest backup of this domain, {newest.id}, was made on host {newest.host}, and this one does not"
            " start from it. If another machine there has the same UUID, use a separate repository for it, or give it a"
            " new UUID; 'vbackup restore' then needs --host."
        )


def _has_standby(domain: LockedDomain) -> bool:
    """Return True if 'vbackup replicate' has made a standby of the domain, or this is one."""
    with suppress(ChainError, StorageError):
        if standbys.read(domain.repository.path / domain.uuid):
            return True
    return standby_xml.read(domain.source.handle.live_xml()) is not None


def _nodes(selection: Selection, domain: LockedDomain, taken_ids: Collection[str]) -> list[DiskNode]:
    """Return the disks' layers and bitmaps, without the bitmaps of backups that were never committed."""
    _refuse_exchanging(domain)
    nodes = domain.source.disk_nodes(selection.disks)
    refuse_rolling_back(
        nodes,
        domain.source.domain.name,
        repository_id=domain.repository.id,
        uri=domain.source.handle.host.uri,
    )
    removed = leftovers.remove_uncommitted(domain.monitor, nodes, taken_ids, domain.naming)
    # Of what was committed, a stage forgets what no backup starts from any more.
    why = "which no later backup starts from" if domain.repository.is_stage else leftovers.UNCOMMITTED
    for name in removed:
        domain.reporter.step(f"Removed bitmap {name}, {why}.")
    nodes = domain.source.disk_nodes(selection.disks) if removed else nodes
    return domain.source.look_at(nodes)


def _refuse_exchanging(domain: LockedDomain) -> None:
    """Raise UnsuitableError if a restore in place was interrupted when some disks were restored and others not."""
    directory = domain.repository.path / domain.uuid
    entry = None
    with suppress(ChainError, StorageError):
        entry = in_place_journal.read(directory)
    if entry is not None and entry.is_begun:
        name, host = domain_argument(domain.source.domain.name), domain.source.handle.host
        restore = f"vbackup restore {name} {entry.backup} --in-place"
        restore = f"{restore}{entry.option}" if entry.option else host.command(restore)
        raise UnsuitableError(
            f"A restore in place to backup {entry.backup} was interrupted, so some disks may be as in that backup and"
            f" others as before. Shut the domain off and run '{restore}' with this repository. Or, if the disks are to"
            f" stay as they are, remove {directory / in_place_journal.NAME}."
        )


def refuse_rolling_back(
    nodes: Sequence[DiskNode], name: str, *, repository_id: str | None, uri: str | None = None
) -> None:
    """Raise DiskError for a disk that a rollback has left in the middle.

    ``name`` is the domain's; ``repository_id``: of the repository that is worked with, if there is one; ``uri``: of
    libvirt, if it is not the default one.
    """
    for node in nodes:
        for layer, bitmap in [(each, bitmap) for each in node.layers for bitmap in each.bitmaps]:
            mark = names.parse_rollback_mark(bitmap)
            if mark is not None and layer is not node.top:
                raise DiskError(
                    node.disk.dev,
                    f"a rollback to backup {mark.backup_id} was interrupted, and the disk has got a layer above since"
                    f" ({layer.filename} has the mark {bitmap}). Restore it with 'vbackup restore --output'.",
                )
            if mark is not None:
                domain_name = domain_argument(name)
                is_other = mark.repository_id != repository_id
                of = f" of repository {mark.repository_id}" if is_other else ""
                where = f" with {'that' if is_other else 'this'} repository"
                restore = command(f"vbackup restore {domain_name} {mark.backup_id} --in-place", uri)
                remove = command(f"vbackup bitmap remove {domain_name} {bitmap}", uri)
                raise DiskError(
                    node.disk.dev,
                    f"a rollback to backup {mark.backup_id}{of} was interrupted, so it is partly as in that backup and"
                    f" partly as it was before. Shut the domain off and run '{restore}'{where}. Or, if the disk is to"
                    f" stay as it is, '{remove}' removes the mark.",
                )


def _starts(
    level: Level, nodes: Sequence[DiskNode], history: History, domain: LockedDomain
) -> Callable[[str], Sequence[Start]] | None:
    """Return what says, by dev, which checkpoints a disk may start from; None: those of the history, as usual."""
    host = definition.host_of(domain.source.handle)
    if level in (Level.FULL, Level.COPY) or hosts.alone(history, host) is None:
        return None
    on_disk = {node.disk.dev: {name for layer in node.layers for name in layer.bitmaps} for node in nodes}
    of_full = level is Level.DIFFERENTIAL
    return lambda dev: hosts.starts(history, host, dev, of_full=of_full, on_disk=on_disk[dev])


def _due_full(wishes: Wishes, nodes: Sequence[DiskNode], history: History, now: datetime) -> str | None:
    """Return why the backup has to be a full, because that of a disk is too old; None if it need not be."""
    if wishes.full_every_s is None:
        return None
    for node in nodes:
        newest = history.copied_whole(node.disk.dev)
        if newest is not None and (now - newest[1]).total_seconds() > wishes.full_every_s:
            return f"the newest full, {newest[0]}, is older than {amounts.age(timedelta(seconds=wishes.full_every_s))}"
    return None


def _choices(
    level: Level,
    nodes: Sequence[DiskNode],
    history: History,
    domain: LockedDomain,
    *,
    starts: Callable[[str], Sequence[Start]] | None,
    due: str | None,
) -> list[tuple[DiskNode, Choice]]:
    """Return each disk with its base; ``due``: the reason why all of them are fulls."""
    started = last_start(domain.source.handle)
    choices = []
    for node in nodes:
        allowed = None if starts is None else starts(node.disk.dev)
        choice = base.choose(level, node, history, naming=domain.naming, started=started, starts=allowed)
        choice = choice if due is None else replace(choice, reason=due)
        choices.append((node, choice))
        domain.reporter.step(f"Disk {node.disk.dev}: {choice.level.value}, {choice.reason}.")
        if node.disk.encrypted:
            domain.reporter.warning(
                f"Disk {node.disk.dev} is encrypted on this host; its image in the repository is not."
            )
    return choices


def last_start(handle: DomainHandle) -> datetime | None:
    """Return when the domain was started last, if the hook script is installed and recorded it."""
    if not handle.host.is_local:
        return None
    starts = [event.time for event in events(handle.uuid) if event.operation is Operation.STARTED]
    return starts[-1] if starts else None
