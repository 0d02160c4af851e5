"""Keep a slow repository from slowing the guest: put aside, on a local disk, what it is about to overwrite.

While a backup job reads a disk, every write of the guest to a place that was not copied yet waits until the old data
is in the target, at the target's speed. With a fleecing area that job (sync none) writes to an image there instead, a
view (QEMU's snapshot-access on the job's filter, since 7.0) shows the disk as it was at that moment, and the copy to
the repository is made from the view by a second job, for which no guest waits. The transaction is the same but for
this: all disks are still at one moment. QEMU's own name for it is fleecing.

The image has no name in any directory: what it holds goes with QEMU's last descriptor of it, whatever happens. It
grows by what the guest overwrites meanwhile, at most the disk's own size. Tried instead and given up: to copy all into
the fleecing area and then to the repository, which takes the size of the whole backup there and reads everything twice;
and an overlay whose backing file is the disk, which QEMU lets no job read while another one writes to it.

Where QEMU's view cannot be asked for zeros, the copy reads all of the disk, or all that has changed; its target finds
the zeros then.

vbackup.plan names it all, vbackup.completion ends it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vbackup import names, qemu_img, target
from vbackup.errors import FdsNotPassedError, JobError, NoSpaceError, QmpError, StorageError, UnsuitableError
from vbackup.model import SecurityLabel
from vbackup.monitor import Monitor, schema
from vbackup.plan import DiskPlan, FleecingAbilities, FleecingPlan
from vbackup.repository import storage_errors
from vbackup.undo import Undo

#: What is kept free there, so that the backup is ended before a write of the guest fails: what a fast guest writes
#: between two looks (vbackup.job.TICK_S), but no more than a part of a small area.
RESERVE_BYTES = 1024 * 1024 * 1024
RESERVE_SHARE = 4


def abilities(monitor: Monitor) -> FleecingAbilities:
    """What this QEMU can do for fleecing. Raises UnsuitableError where it cannot show a disk as it was."""
    known = schema(monitor)
    if "snapshot-access" not in known.block_drivers():
        raise UnsuitableError("This QEMU has no fleecing (it has no snapshot-access, which came with QEMU 7.0).")
    # QEMU 7.2 tells of a view what the disk is now: a place that the guest has made zero since is copied as zeros
    # (measured; right on 10.0 and 11.1). Both cannot be asked for; discard-source came with the work on views in 9.1.
    members = known.members("blockdev-backup")
    return FleecingAbilities(spares_guest="on-cbw-error" in members, tells_zeros="discard-source" in members)


def free_bytes(directory: Path) -> int:
    """What root may still write there. Raises StorageError where it is no directory."""
    with storage_errors(f"use {directory} for fleecing"):
        if not directory.is_dir():
            raise StorageError(f"{directory} is no directory, so it cannot be a fleecing area.")
        found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def open_images(
    monitor: Monitor,
    disks: Sequence[DiskPlan],
    directory: Path,
    *,
    repository_id: str,
    undo: Undo,
    security_labels: Sequence[SecurityLabel] = (),
) -> None:
    """Make the image of each disk and a node of it; ``undo`` gets their end.

    Raises UnsuitableError where no descriptor can be passed, StorageError, NoSpaceError.
    """
    undo.push("close the fleecing area in QEMU", lambda: target.close_in_qemu(monitor, repository_id))
    for disk in disks:
        assert disk.fleecing is not None
        fd = _nameless(directory)
        try:
            qemu_img.create_in(fd, disk.node.top.virtual_size_bytes, what=f"make a fleecing image in {directory}")
            filename = target.pass_fd(monitor, fd, names.prefix(repository_id))
            monitor.execute("blockdev-add", target.node(disk.fleecing.node, filename))
        except FdsNotPassedError as err:
            raise UnsuitableError(
                f"A fleecing area needs a connection that carries file descriptors, and this one does not ({err}) Run"
                " vbackup on the host of the domain."
            ) from err
        except QmpError as err:
            raise StorageError(_refused(directory, err.description, security_labels)) from err
        finally:
            os.close(fd)


def _nameless(directory: Path) -> int:
    """A file there for reading and writing that has no name, or has it no more (NFS cannot do without at first)."""
    with storage_errors(f"make a fleecing image in {directory}"):
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as err:
            if err.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        import tempfile

        fd, path = tempfile.mkstemp(prefix="vbackup-", dir=directory)
        os.unlink(path)  # noqa: PTH108 - the name is mkstemp's own
        return fd


def _refused(directory: Path, description: str, labels: Sequence[SecurityLabel]) -> str:
    if target.is_denied(description):
        return target.denied(directory, labels, by_descriptor=True)
    return f"QEMU cannot open an image in the fleecing area {directory}: {description.rstrip('.')}."


def open_views(monitor: Monitor, disks: Sequence[DiskPlan]) -> None:
    """Make the nodes that show the disks as they were; the jobs whose filters they stand on have begun.

    They are closed with the images (``open_images``).
    """
    for disk in disks:
        assert disk.fleecing is not None
        monitor.execute("blockdev-add", {**_view(disk.fleecing), "node-name": disk.fleecing.view})


def _view(fleecing: FleecingPlan) -> target.BlockdevOptions:
    view = {"driver": "snapshot-access", "file": fleecing.filter_node}
    if fleecing.tells_zeros:
        return view
    # A backup job that gets an error for an answer takes the place for data and reads it (block_copy_block_status).
    silence = {"event": "none", "iotype": "block-status", "errno": errno.EIO}
    return {"driver": "blkdebug", "image": view, "inject-error": [silence]}


@dataclass(frozen=True)
class SpaceWatch:
    """Ends a backup before, or as soon as, its fleecing area takes no more.

    Where QEMU can fail the backup instead of the guest's write it does so anyway; this gives the reason then. Where it
    cannot, a write of the guest that finds no room stops the guest (werror=enospc, QEMU's default), which goes on with
    that write once the backup is undone (vbackup.source).
    """

    directory: Path
    reserve_bytes: int
    is_guest_stopped: Callable[[], bool] | None  #: by an I/O error; None where it was before, or QEMU spares it

    @classmethod
    def over(cls, directory: Path, *, is_guest_stopped: Callable[[], bool] | None) -> SpaceWatch:
        """Guard what is free there now."""
        return cls(directory, min(RESERVE_BYTES, free_bytes(directory) // RESERVE_SHARE), is_guest_stopped)

    def check(self) -> None:
        """Raises NoSpaceError where the backup has to end."""
        if free_bytes(self.directory) < self.reserve_bytes or (self.is_guest_stopped and self.is_guest_stopped()):
            raise self.full()

    def full(self) -> NoSpaceError:
        """What to say of a fleecing area that takes no more."""
        return NoSpaceError(
            f"The fleecing area {self.directory} cannot take more of what the guest overwrites. Nothing was kept of"
            " this backup, and no write of the guest was lost; give it more room, or run the same command again at a"
            " time when the guest writes less."
        )

    def explain(self, error: JobError) -> NoSpaceError | None:
        """The reason for the failure of a copy, where it is that the view has lost something."""
        return self.full() if "Permission denied" in str(error) else None
