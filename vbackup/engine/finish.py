"""From running jobs to a committed backup: what backup and recovery have in common.

vbackup.operations.backup starts the jobs, vbackup.operations.recovery finds those of a run that has died.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from vbackup import names
from vbackup.engine import endmark
from vbackup.engine.unfinished import Unfinished
from vbackup.errors import BusyError
from vbackup.images import digests, targets
from vbackup.images.writeback import Writeback
from vbackup.model import Backup, DiskImage
from vbackup.qemu import jobs
from vbackup.qemu.block_graph import BlockNodes
from vbackup.qemu.jobs import Job
from vbackup.repository import journal
from vbackup.repository.journal import Step


def copy(unfinished: Unfinished) -> Unfinished:
    """Follow the jobs to their common end; when this returns QEMU has let go of complete images."""
    with Writeback(unfinished.images) as writeback:

        def on_tick(known: Mapping[str, Job]) -> None:
            if unfinished.watch is not None:
                unfinished.watch()
            writeback.on_tick(known)
            if unfinished.throttle is not None:
                unfinished.throttle.adjust(unfinished.monitor, known.values())
            if unfinished.backoff is not None:
                unfinished.backoff.on_tick(known)

        copied_bytes = jobs.run(
            unfinished.monitor,
            unfinished.devs,
            reporter=unfinished.reporter,
            stop=unfinished.stop,
            stall_s=unfinished.stall_s,
            on_tick=on_tick,
        )
        unfinished.journal.write(Step.COPIED, copied_bytes=copied_bytes)
        return _close(replace(unfinished, draft=journal.with_copied(unfinished.draft, copied_bytes)), writeback)


def close(unfinished: Unfinished) -> Unfinished:
    """Put the images on the disk, and have QEMU let go of them; all jobs have ended well."""
    with Writeback(unfinished.images) as writeback:
        return _close(unfinished, writeback)


def _close(unfinished: Unfinished, writeback: Writeback) -> Unfinished:
    jobs.cancel(unfinished.monitor, unfinished.jobs)  # the copies have concluded: this dismisses them
    nodes = targets.flush_in_qemu(unfinished.monitor, [one.node_name for one in unfinished.targets])
    _refuse_shrunk(unfinished, nodes)
    early = digests.digest_while(writeback.finish, _read_early(unfinished), check=unfinished.stop.check)
    # From here on whoever finds the stage takes the images for complete, even after a power cut.
    unfinished.journal.write(Step.FLUSHED)
    targets.close_all_in_qemu(unfinished.monitor, unfinished.naming)
    return replace(unfinished, digests=early)


def _read_early(unfinished: Unfinished) -> list[Path]:
    """Not where QEMU is on another host: what this one then sees of an image before QEMU closes it may be old."""
    if not unfinished.source.handle.host.is_local:
        return []
    return digests.worth_an_early_digest(unfinished.images.values())


def _refuse_shrunk(unfinished: Unfinished, nodes: BlockNodes) -> None:
    """Raise BusyError where a disk was shrunk and grown between the choice of its base and its job.

    A job keeps the size of its disk, so that an end mark that is whole after the job was whole when it began.
    """
    for one in unfinished.relied_on_marks:
        mark = nodes.bitmaps(one.node_name).get(one.bitmap)
        if mark is not None and not endmark.vouches(mark):
            ours = names.parse_end_mark(one.bitmap)
            raise BusyError(
                f"Disk {ours.dev if ours else one.node_name} was made smaller while its backup began or ended. Nothing"
                " was kept of this backup; run the same command again."
            )


def commit(unfinished: Unfinished, *, begun: float | None, ready: Callable[[], None] = lambda: None) -> Backup:
    """Digest the images and give the backup its name.

    ``begun`` is the monotonic time at which it was begun; None if that is not known. ``ready`` as for Stage.commit.
    """
    backup = replace(
        unfinished.draft,
        disks=_described(unfinished),
        duration_s=round(time.monotonic() - begun, 3) if begun is not None else 0.0,
    )
    unfinished.repository.remember_name(backup.domain_uuid, backup.domain_name)
    unfinished.stop.check()
    unfinished.stage.commit(backup, ready=ready)
    return backup


def _described(unfinished: Unfinished) -> tuple[DiskImage, ...]:
    """The images with what only their files tell."""
    disks = unfinished.draft.disks
    paths = [unfinished.stage.path / image.file for image in disks]
    found = digests.digest_all(paths, early=unfinished.digests, check=unfinished.stop.check)
    return tuple(
        replace(image, file_size_bytes=file.size_bytes, digest=file.digest) for image, file in zip(disks, found)
    )
