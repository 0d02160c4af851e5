"""From running jobs to a committed backup, and back to nothing: what backup and recovery have in common.

vbackup.backup starts the jobs, vbackup.recovery finds those of a run that has died. All that is needed to go on
is in the draft, which the journal has too: names follow from ids (vbackup.names).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup import checkpoint, endmark, job, journal, names, target
from vbackup.blockgraph import BlockNodes
from vbackup.errors import BusyError, StorageError
from vbackup.files import digest, storage_errors
from vbackup.journal import Journal, Step
from vbackup.model import Backup, DiskImage, NodeBitmap
from vbackup.monitor import Monitor
from vbackup.report import Reporter
from vbackup.repository import Repository, Stage
from vbackup.source import Source
from vbackup.stop import Stop
from vbackup.undo import Undo
from vbackup.writeback import Writeback

if TYPE_CHECKING:
    from vbackup.backoff import Backoff

#: How many images are read at a time.
MAX_DIGESTS = 4
#: The size from which an image is digested before QEMU has closed it. A smaller one is digested so quickly that its
#: modification time might not tell of a write in between.
EARLY_DIGEST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Work:
    """A backup that is being made."""

    draft: Backup
    stage: Stage
    journal: Journal
    source: Source
    repository: Repository
    reporter: Reporter
    stop: Stop
    stall_s: float = job.STALL_S
    throttle: job.Throttle | None = None  #: this backup's part of a rate for several
    backoff: Backoff | None = None  #: slows the jobs down for the guest's sake
    watch: Callable[[], None] | None = None  #: called while the jobs run; may raise to end the backup
    new_marks: Sequence[NodeBitmap] = ()  #: end marks that the transaction adds; those of a dead run stay
    digests: Mapping[Path, tuple[tuple[int, int], str]] = field(default_factory=dict)  #: of images (see _digested)
    relied_on_marks: Sequence[NodeBitmap] = ()  #: end marks that the choice of the bases relies on

    @property
    def monitor(self) -> Monitor:
        """The QEMU that copies."""
        return self.source.monitor

    @property
    def devs(self) -> Mapping[str, str]:
        """The disk of each job."""
        return {names.job(self.repository.id, self.draft.id, one.dev): one.dev for one in self.draft.disks}

    @property
    def images(self) -> Mapping[str, Path]:
        """The image that each job writes."""
        return {job_id: self.stage.path / one.file for job_id, one in zip(self.devs, self.draft.disks)}

    @property
    def jobs(self) -> Collection[str]:
        """All jobs of the backup that there can be: also those of a fleecing area, which end when they are told to."""
        fleecing = [names.fleecing_job(self.repository.id, self.draft.id, one.dev) for one in self.draft.disks]
        return [*self.devs, *fleecing]

    @property
    def targets(self) -> Sequence[target.Target]:
        """The images that QEMU writes."""
        return [
            target.Target(self.stage.path / one.file, names.target_node(self.repository.id, one.dev))
            for one in self.draft.disks
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
            NodeBitmap(one.node_name, names.working_bitmap(self.repository.id, self.draft.id, one.dev))
            for one in self.draft.disks
            if one.base is not None
        ]


def push_undo_of_bitmaps(work: Work, undo: Undo) -> None:
    """Register the removal of the bitmaps that the transaction makes."""
    bitmaps = [*work.working_bitmaps, *work.bitmaps]
    undo.push("remove the new bitmaps", lambda: checkpoint.remove_bitmaps(work.monitor, bitmaps))
    if work.new_marks:
        undo.push("remove the new end marks", lambda: checkpoint.remove_end_marks(work.monitor, work.new_marks))


def push_undo_of_targets(work: Work, undo: Undo) -> None:
    """Register that QEMU lets go of the images."""
    undo.push("close the target images in QEMU", lambda: target.close_in_qemu(work.monitor, work.repository.id))


def push_undo_of_jobs(work: Work, undo: Undo, *, guest_was_stopped: bool) -> None:
    """Register the end of the jobs, and that the guest goes on if they have stopped it."""
    # Before the targets are closed: a QEMU 7.2 that is stopped keeps the descriptors.
    undo.push("let the guest go on", lambda: work.source.resume(work.reporter, guest_was_stopped=guest_was_stopped))
    undo.push("end the backup jobs", lambda: job.cancel(work.monitor, work.jobs))


def copy(work: Work) -> Work:
    """Follow the jobs to their common end; when this returns QEMU has let go of complete images."""
    with Writeback(work.images) as writeback:

        def on_tick(jobs: Mapping[str, job.Job]) -> None:
            if work.watch is not None:
                work.watch()
            writeback.on_tick(jobs)
            if work.throttle is not None:
                work.throttle.adjust(work.monitor, jobs.values())
            if work.backoff is not None:
                work.backoff.on_tick(jobs)

        copied_bytes = job.run(
            work.monitor,
            work.devs,
            reporter=work.reporter,
            stop=work.stop,
            stall_s=work.stall_s,
            on_tick=on_tick,
        )
        work.journal.write(Step.COPIED, copied_bytes=copied_bytes)
        return _close(replace(work, draft=journal.with_copied(work.draft, copied_bytes)), writeback)


def close(work: Work) -> Work:
    """Put the images on the disk, and have QEMU let go of them; all jobs have ended well."""
    with Writeback(work.images) as writeback:
        return _close(work, writeback)


def _close(work: Work, writeback: Writeback) -> Work:
    job.cancel(work.monitor, work.jobs)  # the copies have concluded: this dismisses them
    nodes = target.flush_in_qemu(work.monitor, [one.node_name for one in work.targets])
    _refuse_shrunk(work, nodes)
    digests = _put_on_disk(work, writeback)
    # From here on whoever finds the stage takes the images for complete, even after a power cut.
    work.journal.write(Step.FLUSHED)
    target.close_in_qemu(work.monitor, work.repository.id)
    return replace(work, digests=digests)


def _put_on_disk(work: Work, writeback: Writeback) -> dict[Path, tuple[tuple[int, int], str]]:
    """Finish writing the images, and digest large ones meanwhile; returns their digests (see _digested)."""
    failed = threading.Event()

    def check() -> None:
        work.stop.check()
        if failed.is_set():
            raise StorageError("The images could not be put on the disk.")  # told by whoever has set it

    with ThreadPoolExecutor(max_workers=MAX_DIGESTS) as pool:
        digesting = {path: pool.submit(_digested, path, check) for path in _worth_an_early_digest(work)}
        try:
            writeback.finish()
        except BaseException:
            failed.set()  # else the error would wait until all has been read
            raise
        return {path: future.result() for path, future in digesting.items()}


def _worth_an_early_digest(work: Work) -> list[Path]:
    """Large images are read while they are put on the disk: both take long, one the processor, the other the disk.

    Not where QEMU is on another host: what this one then sees of the image before QEMU closes it may be old.
    """
    if not work.source.handle.host.is_local:
        return []
    with storage_errors(f"read {work.stage.path}"):
        return [path for path in work.images.values() if path.stat().st_size >= EARLY_DIGEST_BYTES]


def _digested(path: Path, check: Callable[[], None]) -> tuple[tuple[int, int], str]:
    """The digest of an image, and what tells whether it was written to since."""
    with storage_errors(f"read {path}"):
        stamp = _stamp(path)
    return stamp, digest(path, check=check)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _refuse_shrunk(work: Work, nodes: BlockNodes) -> None:
    """Raise BusyError where a disk was shrunk and grown between the choice of its base and its job.

    A job keeps the size of its disk, so that an end mark that is whole after the job was whole when it began.
    """
    for one in work.relied_on_marks:
        mark = nodes.bitmaps(one.node_name).get(one.bitmap)
        if mark is not None and not endmark.vouches(mark):
            ours = names.parse_end_mark(one.bitmap)
            raise BusyError(
                f"Disk {ours.dev if ours else one.node_name} was made smaller while its backup began or ended. Nothing"
                " was kept of this backup; run the same command again."
            )


def commit(work: Work, *, begun: float | None, ready: Callable[[], None] = lambda: None) -> Backup:
    """Digest the images and give the backup its name.

    ``begun`` is the monotonic time at which it was begun; None if that is not known. ``ready`` as for Stage.commit.
    """
    disks = _describe_images(work)
    backup = replace(
        work.draft, disks=disks, duration_s=round(time.monotonic() - begun, 3) if begun is not None else 0.0
    )
    work.repository.remember_name(backup.domain_uuid, backup.domain_name)
    work.stop.check()
    work.stage.commit(backup, ready=ready)
    return backup


def _describe_images(work: Work) -> tuple[DiskImage, ...]:
    """Digest the images, several at a time."""

    def describe(image: DiskImage) -> DiskImage:
        path = work.stage.path / image.file
        stamp, early = work.digests.get(path, (None, ""))
        with storage_errors(f"read {path}"):
            now = _stamp(path)
        # QEMU writes nothing when it closes what it has flushed. If one ever does, the digest is of no use.
        known = early if now == stamp else digest(path, check=work.stop.check)
        return replace(image, file_size_bytes=now[1], digest=known)

    with ThreadPoolExecutor(max_workers=MAX_DIGESTS) as pool:
        return tuple(pool.map(describe, work.draft.disks))
