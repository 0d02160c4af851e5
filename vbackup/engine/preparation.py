"""Prepare QEMU for the moment of a backup: target images, a fleecing area, scratch nodes.

vbackup.engine.plan decides what is needed; vbackup.operations.backup then sends the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vbackup.engine import allocation_jobs, fleecing, scratch
from vbackup.engine.fleecing_area import Area
from vbackup.engine.plan import BackupPlan
from vbackup.engine.unfinished import LockedDomain
from vbackup.images import creation, targets
from vbackup.images.creation import NewImage
from vbackup.images.targets import Target
from vbackup.repository.repository import Stage
from vbackup.undo import Undo


def new_images(plan: BackupPlan, stage: Stage) -> Sequence[NewImage]:
    """Return the target images to make in the stage; what a server compresses gets the disk's size at the end."""
    rounded: Callable[[int], int] = int
    if plan.is_served and plan.is_compressed:
        from vbackup.images import target_server  # other backups need none

        rounded = target_server.rounded_up
    return [
        NewImage(
            Target(stage.path / disk.file, disk.target_node),
            rounded(disk.node.top.virtual_size_bytes),
            disk.backing_rpath,
        )
        for disk in plan.disks
    ]


def prepare(
    plan: BackupPlan, stage: Stage, domain: LockedDomain, *, fleecing_area: Area | None, undo: Undo
) -> BackupPlan:
    """Make images of the reserved files, pass each to QEMU as soon as it is ready, and open what else is planned.

    Returns the plan as QEMU can carry it out. ``undo`` gets the end of all nodes. Raises JobError,
    StorageError, NoSpaceError, UnsuitableError, QmpError.
    """
    monitor, labels = domain.monitor, plan.domain.security_labels
    with creation.made(new_images(plan, stage), options=plan.image_options, stop=domain.stop) as images:
        if domain.served is not None:
            sizes = [disk.node.top.virtual_size_bytes for disk in plan.disks]
            domain.served.open_in_qemu(monitor, images, sizes, compress=plan.is_compressed, undo=undo)
        else:
            targets.open_in_qemu(monitor, images, undo=undo, options=plan.node_options, security_labels=labels)
    if plan.has_fleecing_area:
        assert fleecing_area is not None
        fleecing.open_images(monitor, plan.disks, fleecing_area, undo=undo, security_labels=labels)
    scratch.prepare(monitor, plan.scratch_sizes, naming=domain.naming, undo=undo, stop=domain.stop)
    return allocation_jobs.ask(plan, stage, domain, undo=undo)
