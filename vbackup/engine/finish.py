"""Bring an unfinished backup to its end: from running jobs to the commit.

vbackup.operations.backup starts the jobs, vbackup.operations.recovery finds those of a dead run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup import names
from vbackup.engine import endmark
from vbackup.engine.unfinished import Unfinished
from vbackup.errors import BusyError, DiskError
from vbackup.images import block_lists, targets, tuning
from vbackup.images.writeback import Writeback
from vbackup.model import Backup, DiskImage
from vbackup.qemu import jobs
from vbackup.qemu.block_graph import BlockNodes
from vbackup.qemu.jobs import Job
from vbackup.repository import change_watch, journal
from vbackup.repository.journal import Journal

if TYPE_CHECKING:
    from vbackup.engine.latency_throttle import LatencyThrottle


@dataclass(frozen=True)
class Following:
    """What is done while the jobs copy."""

    stall_s: float = jobs.STALL_S  #: without progress for this long the jobs are given up
    throttle: jobs.Throttle | None = None  #: this backup's share of a rate for several
    latency_throttle: LatencyThrottle | None = None  #: slows the jobs down for the guest's sake
    watch: Callable[[], None] | None = None  #: may raise to end the backup


def copy(unfinished: Unfinished, written: Journal, following: Following) -> Unfinished:
    """Follow the jobs until all have ended well; QEMU has then closed complete images.

    Returns the backup with what was copied, and the lists that are known. Raises what vbackup.qemu.jobs.run raises,
    StorageError and NoSpaceError where an image cannot be written, BusyError where a disk was shrunk.
    """
    monitor = unfinished.domain.monitor
    with Writeback(unfinished.images) as writeback:

        def on_tick(known: Mapping[str, Job]) -> None:
            if following.watch is not None:
                following.watch()
            writeback.on_tick(known)
            if following.throttle is not None:
                following.throttle.adjust(monitor, known.values())
            if following.latency_throttle is not None:
                following.latency_throttle.on_tick(known)

        copied_bytes = jobs.run(
            monitor,
            unfinished.devs,
            reporter=unfinished.domain.reporter,
            stop=unfinished.domain.stop,
            stall_s=following.stall_s,
            on_tick=on_tick,
        )
        written.copied(copied_bytes)
        copied = replace(unfinished, draft=journal.with_copied(unfinished.draft, copied_bytes))
        return _close(copied, written, writeback)


def close(unfinished: Unfinished, written: Journal) -> Unfinished:
    """Store the images and let QEMU close them; all jobs have ended well before. Raises what ``copy`` raises."""
    with Writeback(unfinished.images) as writeback:
        return _close(unfinished, written, writeback)


def _close(unfinished: Unfinished, written: Journal, writeback: Writeback) -> Unfinished:
    domain = unfinished.domain
    jobs.cancel(domain.monitor, unfinished.job_ids)  # dismisses the copies, which have concluded
    _refuse_shrunk(unfinished, _flushed(unfinished))
    early = block_lists.list_while(writeback.finish, _read_early(unfinished), _watch(unfinished))
    # From here on whoever finds the stage takes the images to be complete, even after a power cut.
    written.flushed()
    targets.close_all_in_qemu(domain.monitor, domain.naming)
    if domain.served is not None:
        domain.served.server.close()
    return replace(unfinished, lists=early)


def _flushed(unfinished: Unfinished) -> BlockNodes:
    """Bring all that QEMU has of the images to the page cache; returns the domain's nodes."""
    domain = unfinished.domain
    if domain.served is not None:
        return domain.served.flush(domain.monitor, unfinished.target_nodes)
    options = tuning.node_options(is_local=domain.source.handle.host.is_local)
    return targets.flush_in_qemu(domain.monitor, unfinished.target_nodes, options=options)


def _read_early(unfinished: Unfinished) -> Mapping[str, Path]:
    """Return the images, by dev, to list before QEMU closes them.

    None if a QEMU on another host has them open: what this host sees of them may be old.
    """
    if not unfinished.domain.source.handle.host.is_local and unfinished.domain.served is None:
        return {}
    return block_lists.worth_an_early_list(_images(unfinished))


def _images(unfinished: Unfinished) -> Mapping[str, Path]:
    return {image.dev: unfinished.stage.path / image.file for image in unfinished.draft.disks}


def _watch(unfinished: Unfinished) -> block_lists.Watch:
    return block_lists.Watch(unfinished.domain.reporter, unfinished.domain.stop.check)


def _refuse_shrunk(unfinished: Unfinished, nodes: BlockNodes) -> None:
    """Raise BusyError if a disk was shrunk and grown between the choice of its base and its job.

    A job keeps the size of its disk, so an end mark that is intact after the job was intact when it began.
    """
    for relied_on in unfinished.relied_on_marks:
        parsed = names.parse_end_mark(relied_on.bitmap)
        dev = parsed.dev if parsed else relied_on.node_name
        if nodes.refusal is not None and not nodes.is_described(relied_on.node_name):
            raise DiskError(
                dev,
                f"whether it was made smaller during its backup is not known: {nodes.refusal.description.rstrip('.')}."
                " Nothing was kept of this backup; leave out the disk whose image is corrupt.",
            )
        mark = nodes.bitmaps(relied_on.node_name).get(relied_on.bitmap)
        if mark is not None and not endmark.vouches(mark):
            raise BusyError(
                f"Disk {dev} was made smaller while its backup began or ended. Nothing was kept of this backup; run the"
                " same command again."
            )


def commit(
    unfinished: Unfinished, written: Journal, *, begun: float | None, ready: Callable[[], None] = lambda: None
) -> Backup:
    """Write the manifest and give the backup its name; return it as committed.

    ``begun`` is the monotonic time in seconds at which the backup began, None if that is not known. ``ready`` is called
    when only the name is missing, and may raise (see Stage.commit). The journal is closed then: the stage is renamed
    when nothing in it is open. Raises StorageError, NoSpaceError.
    """

    def close_journal() -> None:
        ready()
        written.close()

    backup = described(unfinished, begun=begun)
    unfinished.stage.commit(backup, ready=close_journal)
    warn(backup, unfinished)
    return backup


def described(unfinished: Unfinished, *, begun: float | None) -> Backup:
    """Return the backup as its manifest has it: its images are listed now. ``begun`` as for ``commit``."""
    domain = unfinished.domain
    backup = replace(
        unfinished.draft,
        disks=_described(unfinished),
        duration_s=round(time.monotonic() - begun, 3) if begun is not None else 0.0,
    )
    backup = change_watch.watched(backup, domain.repository.catalogue(backup.domain_uuid).history.backups)
    domain.repository.remember_name(backup.domain_uuid, backup.domain_name, backup.host)
    domain.stop.check()
    return backup


def warn(backup: Backup, unfinished: Unfinished) -> None:
    """Warn of what is unusual about the backup."""
    for sentence in change_watch.warnings(backup):
        unfinished.domain.reporter.warning(sentence)


def _described(unfinished: Unfinished) -> tuple[DiskImage, ...]:
    """Return the images with the sizes of their files and what is recorded of their content."""
    images = unfinished.draft.disks
    files = block_lists.list_all(_images(unfinished), early=unfinished.lists, watch=_watch(unfinished))
    return tuple(
        replace(image, file_size_bytes=file.size_bytes, blocks=file.blocks, change=file.change)
        for image, file in zip(images, files)
    )
