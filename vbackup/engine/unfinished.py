"""A backup that is being made: what QEMU and the repository have of it, and how each part is undone.

vbackup.operations.backup makes one, vbackup.operations.recovery finds one that a dead run has left,
vbackup.engine.finish brings both to their end. All that is needed to go on is in the draft, which the journal has
too: names follow from ids (vbackup.names).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup import names
from vbackup.domain.source import Source
from vbackup.engine import leftovers
from vbackup.images import targets
from vbackup.images.digests import EarlyDigest
from vbackup.model import Backup, NodeBitmap
from vbackup.names import Naming
from vbackup.qemu import jobs
from vbackup.qemu.monitor import Monitor
from vbackup.report import Reporter
from vbackup.repository.journal import Journal
from vbackup.repository.repository import Repository, Stage
from vbackup.stop import Stop
from vbackup.undo import Undo

if TYPE_CHECKING:
    from vbackup.engine.latency_throttle import Backoff


@dataclass(frozen=True)
class Unfinished:
    """A backup that is being made."""

    draft: Backup
    stage: Stage
    journal: Journal
    source: Source
    repository: Repository
    reporter: Reporter
    stop: Stop
    stall_s: float = jobs.STALL_S
    throttle: jobs.Throttle | None = None  #: this backup's part of a rate for several
    backoff: Backoff | None = None  #: slows the jobs down for the guest's sake
    watch: Callable[[], None] | None = None  #: called while the jobs run; may raise to end the backup
    new_marks: Sequence[NodeBitmap] = ()  #: end marks that the transaction adds; those of a dead run stay
    digests: Mapping[Path, EarlyDigest] = field(default_factory=dict)  #: of large images (vbackup.images.digests)
    relied_on_marks: Sequence[NodeBitmap] = ()  #: end marks that the choice of the bases relies on

    @property
    def monitor(self) -> Monitor:
        """The QEMU that copies."""
        return self.source.monitor

    @property
    def naming(self) -> Naming:
        """The names of what it has in QEMU."""
        return self.repository.naming

    @property
    def devs(self) -> Mapping[str, str]:
        """The disk of each job."""
        return {self.naming.job(self.draft.id, one.dev): one.dev for one in self.draft.disks}

    @property
    def images(self) -> Mapping[str, Path]:
        """The image that each job writes."""
        return {job_id: self.stage.path / one.file for job_id, one in zip(self.devs, self.draft.disks)}

    @property
    def jobs(self) -> Collection[str]:
        """All jobs of the backup that there can be: also those of a fleecing area, which end when they are told to."""
        fleecing = [self.naming.fleecing_job(self.draft.id, one.dev) for one in self.draft.disks]
        return [*self.devs, *fleecing]

    @property
    def targets(self) -> Sequence[targets.Target]:
        """The images that QEMU writes."""
        return [
            targets.Target(self.stage.path / one.file, self.naming.target_node(one.dev)) for one in self.draft.disks
        ]

    @property
    def bitmaps(self) -> Sequence[NodeBitmap]:
        """The new checkpoint's bitmaps. A draft can come from a damaged disk: only names that are its own count."""
        named = ((one, names.parse_bitmap(one.bitmap or "")) for one in self.draft.disks)
        return [
            NodeBitmap(one.node_name, one.bitmap)
            for one, ours in named
            if one.bitmap and ours and (ours.repository_id, ours.checkpoint) == (self.repository.id, self.draft.id)
        ]

    @property
    def working_bitmaps(self) -> Sequence[NodeBitmap]:
        """Those that drive the copies."""
        return [
            NodeBitmap(one.node_name, self.naming.working_bitmap(self.draft.id, one.dev))
            for one in self.draft.disks
            if one.base is not None
        ]


def push_undo_of_bitmaps(unfinished: Unfinished, undo: Undo) -> None:
    """Register the removal of the bitmaps that the transaction makes."""
    bitmaps = [*unfinished.working_bitmaps, *unfinished.bitmaps]
    undo.push("remove the new bitmaps", lambda: leftovers.remove_bitmaps(unfinished.monitor, bitmaps))
    if unfinished.new_marks:
        undo.push(
            "remove the new end marks", lambda: leftovers.remove_end_marks(unfinished.monitor, unfinished.new_marks)
        )


def push_undo_of_targets(unfinished: Unfinished, undo: Undo) -> None:
    """Register that QEMU lets go of the images."""
    undo.push(
        "close the target images in QEMU", lambda: targets.close_all_in_qemu(unfinished.monitor, unfinished.naming)
    )


def push_undo_of_jobs(unfinished: Unfinished, undo: Undo, *, guest_was_stopped: bool) -> None:
    """Register the end of the jobs, and that the guest goes on if they have stopped it."""
    # Before the targets are closed: a QEMU 7.2 that is stopped keeps the descriptors.
    undo.push(
        "let the guest go on",
        lambda: unfinished.source.resume(unfinished.reporter, guest_was_stopped=guest_was_stopped),
    )
    undo.push("end the backup jobs", lambda: jobs.cancel(unfinished.monitor, unfinished.jobs))
