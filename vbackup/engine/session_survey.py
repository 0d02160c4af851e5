"""What the plan of a pull session is made from: the disks' layers and bitmaps now, and what each can start from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vbackup import names
from vbackup.domain.source import Source
from vbackup.engine import base, foreign_jobs, leftovers, plan, proof, session_history, session_plan, survey, underlay
from vbackup.engine.base import Choice
from vbackup.engine.session_plan import DiskChoice, SessionPlan
from vbackup.errors import BusyError, UnknownCheckpointError
from vbackup.model import DiskNode, Level
from vbackup.names import Naming
from vbackup.qemu import jobs
from vbackup.qemu.monitor import Monitor
from vbackup.report import Reporter
from vbackup.repository.history import History, Start
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

OTHER_BASE = "Begin a session with --level full or without --base."


@dataclass(frozen=True)
class SessionDomain:
    """A domain whose sessions are locked and whose disks are open."""

    source: Source
    naming: Naming  #: of the tracker
    reporter: Reporter
    stop: Stop

    @property
    def monitor(self) -> Monitor:
        """The QEMU that serves: the domain's own, or a storage daemon."""
        return self.source.monitor


@dataclass(frozen=True)
class Wanted:
    """What the client asks for."""

    session_id: str
    level: Level
    base: str | None  #: the checkpoint that it names
    disks: tuple[str, ...]  #: only these, if any
    excluded_disks: tuple[str, ...]
    now: datetime
    taken_ids: frozenset[str] = frozenset()  #: checkpoints of sessions that were not committed: clients know their ids


def plan_of(wanted: Wanted, tracker: Tracker, domain: SessionDomain) -> SessionPlan:
    """Return the plan of a session of the disks as they and the tracker are now.

    Bitmaps of sessions that were never committed are removed. Raises DiskError and UnsuitableError if nothing can be
    served, UnknownCheckpointError, BaseError if the level needs a base and a disk has none, BusyError, QmpError.
    """
    if wanted.base is not None and wanted.base not in tracker.ids:
        known = [one.id for one in tracker.checkpoints]
        raise UnknownCheckpointError(wanted.base, tracker.name, known, advice=OTHER_BASE)
    history = session_history.of(tracker)
    starts = _starts(wanted, history)
    nodes = _nodes(wanted, tracker.ids, domain)
    nodes = proof.compared(wanted.level, nodes, history, domain, starts=starts)
    started = survey.last_start(domain.source.handle)
    choices = []
    for node in nodes:
        choice = base.choose(
            wanted.level,
            node,
            history,
            naming=domain.naming,
            started=started,
            starts=None if starts is None else starts(node.disk.dev),
        )
        choices.append((node, choice))
        domain.reporter.step(f"Disk {node.disk.dev}: {choice.level.value}, {choice.reason}.")
    choices = proof.recorded(choices, history, domain)
    return session_plan.make(
        [DiskChoice(node, choice, _since(node, choice, history, domain.naming)) for node, choice in choices],
        session_id=wanted.session_id,
        level=wanted.level,
        last_sequence=tracker.last_sequence,
        taken_ids=tracker.ids | wanted.taken_ids,
        history=history,
        naming=domain.naming,
        token=names.new_token(domain.naming.place),
        now=wanted.now,
        is_running=domain.source.is_running,
    )


def after(made: SessionPlan, domain: SessionDomain) -> list[DiskNode]:
    """Return the disks with the state of their files at the moment, looked at before and after it.

    Raises BusyError if a file that no bitmap covers was changed in between.
    """
    looked_at = jobs.over_losses(
        domain.monitor, lambda: domain.source.look_at([disk.node for disk in made.disks]), stop=domain.stop
    )
    nodes = []
    for disk, node in zip(made.disks, looked_at):
        path = underlay.changed(disk.node.chain, node.chain)
        if path is not None:
            raise BusyError(
                f"Disk {disk.dev}: {path} was changed while the session began. Nothing was kept of it; run the same"
                " command again."
            )
        nodes.append(replace(node, looked_at=underlay.agreed(disk.node.chain, node.chain)))
    return nodes


def _starts(wanted: Wanted, history: History) -> Callable[[str], Sequence[Start]] | None:
    """Return what gives the only checkpoint that a disk may start from, None if the client named none."""
    named = wanted.base
    if named is None:
        return None

    def starts(dev: str) -> Sequence[Start]:
        start = history.start_at(named, dev)
        return [] if start is None else [start]

    return starts


def _nodes(wanted: Wanted, committed: Collection[str], domain: SessionDomain) -> list[DiskNode]:
    """Return the disks' layers and bitmaps, without the bitmaps of sessions that were never committed."""
    selection = plan.select(domain.source.domain, wanted.disks, wanted.excluded_disks)
    # Before anything else is asked: a job may just be changing the disk's nodes.
    foreign_jobs.refuse_busy(domain.monitor, selection.disks)
    nodes = domain.source.disk_nodes(selection.disks)
    survey.refuse_rolling_back(nodes, domain.source.domain.name, repository_id=None, uri=domain.source.handle.host.uri)
    if domain.source.is_running:
        removed = leftovers.remove_uncommitted(domain.monitor, nodes, committed, domain.naming)
        for name in removed:
            domain.reporter.step(f"Removed bitmap {name}, left by a session that was never committed.")
        nodes = domain.source.disk_nodes(selection.disks) if removed else nodes
    return domain.source.look_at(nodes)


def _since(node: DiskNode, chosen: Choice, history: History, naming: Naming) -> dict[str, Choice]:
    """Return what shows the changes of a disk since each checkpoint that can be trusted, the newest last."""
    since = {}
    for backup in history.backups:
        start = history.start_at(backup.id, node.disk.dev)
        if start is None:
            continue
        choice = base.choose(Level.AUTO, node, history, naming=naming, starts=[start])
        if choice.base is not None:
            since[backup.id] = choice
    if chosen.base is not None:
        since[chosen.base.id] = chosen
    return since
