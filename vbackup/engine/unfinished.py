"""A backup that is not committed yet: what QEMU and the repository have of it, and how each part is undone.

vbackup.operations.backup makes one, vbackup.operations.recovery finds one that a dead run left, and
vbackup.engine.finish completes both. The draft, which is also in the journal, has all that is needed to go on: names
follow from ids (vbackup.names).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup import names
from vbackup.domain.source import Source
from vbackup.engine import leftovers
from vbackup.images import targets
from vbackup.images.block_lists import EarlyList
from vbackup.model import Backup, NodeBitmap
from vbackup.names import Naming
from vbackup.qemu import jobs
from vbackup.qemu.monitor import Monitor
from vbackup.report import Reporter
from vbackup.repository.repository import Repository, Stage
from vbackup.stop import Stop
from vbackup.undo import Undo

if TYPE_CHECKING:
    from vbackup.images.target_server import ServedTargets
    from vbackup.remote.link import Link


@dataclass(frozen=True)
class LockedDomain:
    """A domain whose lock in the repository is held and whose disks are open: every step works with it."""

    source: Source
    repository: Repository
    reporter: Reporter
    stop: Stop
    served: ServedTargets | None = None  #: QEMU writes the images through it, as one on another host does
    link: Link | None = None  #: to the host of the domain, where the helper cleans up if the link is lost

    @property
    def uuid(self) -> str:
        """The domain's UUID."""
        return self.source.domain.uuid

    @property
    def monitor(self) -> Monitor:
        """The QEMU that copies: the domain's own, or a storage daemon."""
        return self.source.monitor

    @property
    def naming(self) -> Naming:
        """The names of everything the repository has in QEMU."""
        return self.repository.naming


@dataclass(frozen=True)
class Unfinished:
    """A backup that is not committed yet."""

    domain: LockedDomain
    draft: Backup
    stage: Stage
    new_marks: Sequence[NodeBitmap] = ()  #: end marks that the transaction adds; those of a dead run stay
    relied_on_marks: Sequence[NodeBitmap] = ()  #: end marks that the choice of the bases relies on
    lists: Mapping[Path, EarlyList] = field(default_factory=dict)  #: of large images (vbackup.images.block_lists)

    @property
    def devs(self) -> Mapping[str, str]:
        """The dev of the disk that each copying job reads, by job id."""
        naming = self.domain.naming
        return {naming.job(self.draft.id, image.dev): image.dev for image in self.draft.disks}

    @property
    def images(self) -> Mapping[str, Path]:
        """The image that each copying job writes, by job id."""
        return {job_id: self.stage.path / image.file for job_id, image in zip(self.devs, self.draft.disks)}

    @property
    def job_ids(self) -> Collection[str]:
        """All jobs that the backup can have: also those that prepare it, and those that run until they are ended."""
        naming = self.domain.naming
        more = [
            job(self.draft.id, image.dev)
            for image in self.draft.disks
            for job in (naming.fleecing_job, naming.allocation_job)
        ]
        return [*self.devs, *more, naming.scratch_job]

    @property
    def target_nodes(self) -> Sequence[str]:
        """The nodes of the target images."""
        return [self.domain.naming.target_node(image.dev) for image in self.draft.disks]

    @property
    def bitmaps(self) -> Sequence[NodeBitmap]:
        """The bitmaps of the new checkpoint.

        A draft can come from a damaged journal, so only names that this backup can have given count.
        """
        own = (self.domain.repository.id, self.draft.id)
        named = ((image, names.parse_bitmap(image.bitmap or "")) for image in self.draft.disks)
        return [
            NodeBitmap(image.node_name, image.bitmap)
            for image, parsed in named
            if image.bitmap and parsed and (parsed.repository_id, parsed.checkpoint) == own
        ]

    @property
    def working_bitmaps(self) -> Sequence[NodeBitmap]:
        """The bitmaps that drive the copies, and those that such a one is merged from in a full."""
        naming = self.domain.naming
        return [
            NodeBitmap(image.node_name, name(self.draft.id, image.dev))
            for image in self.draft.disks
            for name in (naming.working_bitmap, *(() if image.base else (naming.allocation_bitmap,)))
        ]

    def push_undo_of_bitmaps(self, undo: Undo) -> None:
        """Register the removal of the bitmaps that the transaction adds."""
        monitor, bitmaps = self.domain.monitor, [*self.working_bitmaps, *self.bitmaps]
        undo.push("remove the new bitmaps", lambda: leftovers.remove_bitmaps(monitor, bitmaps))
        if self.new_marks:
            undo.push("remove the new end marks", lambda: leftovers.remove_end_marks(monitor, self.new_marks))

    def push_undo_of_nodes(self, undo: Undo) -> None:
        """Register that QEMU closes every node of the repository, whichever step of a dead run opened it."""
        monitor, naming = self.domain.monitor, self.domain.naming
        undo.push("close the repository's nodes in QEMU", lambda: targets.close_all_in_qemu(monitor, naming))

    def push_undo_of_jobs(self, undo: Undo, *, guest_was_stopped: bool) -> None:
        """Register the end of the jobs, and that the guest goes on if they stopped it."""
        source, reporter = self.domain.source, self.domain.reporter
        # This has to run before the nodes are closed: a QEMU 7.2 that is stopped keeps the descriptors.
        undo.push("resume the guest", lambda: source.resume(reporter, guest_was_stopped=guest_was_stopped))
        undo.push("end the backup jobs", lambda: jobs.cancel(self.domain.monitor, self.job_ids))
