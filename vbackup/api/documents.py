"""Answers as JSON-ready dicts, as the commands print them with --json (vbackup-json(7)), without ``schema``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vbackup.repository import manifest

if TYPE_CHECKING:
    from vbackup.engine.plan import BackupPlan
    from vbackup.model import Backup, Group, HostIdentity, LeftOut
    from vbackup.operations.restored_machine import Placed
    from vbackup.repository.boot_result import BootResult
    from vbackup.repository.fsck_result import FsckResult
    from vbackup.repository.verification import Verification


def time(moment: datetime) -> str:
    """Return the time in UTC, as 2026-11-23T10:15:00.000000Z."""
    return manifest.iso(moment)


def backup(made: Backup) -> dict[str, Any]:
    """Return a backup, as vbackup.backup/1 and the manifest have it."""
    return manifest.document(made)


def host(identity: HostIdentity) -> dict[str, str | None]:
    """Return the host on which a backup was made."""
    return manifest.host_document(identity)


def group(made: Group) -> dict[str, Any]:
    """Return the group to which a backup belongs."""
    return manifest.group_document(made)


def left_out(left: LeftOut) -> dict[str, str]:
    """Return a disk or device that a backup or a restored domain does not have, with the reason."""
    return manifest.left_out_document(left)


def plan(made: BackupPlan) -> dict[str, Any]:
    """Return the plan of a backup, as vbackup.plan/1 has it."""
    return {
        "id": made.id,
        "level": made.level.value,
        "parent": made.parent,
        "domain": {"name": made.domain.name, "uuid": made.domain.uuid},
        "disks": [
            {
                "dev": disk.dev,
                "level": disk.choice.level.value,
                "base": disk.choice.base.id if disk.choice.base else None,
                "reason": disk.choice.reason,
                "file": disk.file,
                "backing_file": disk.backing_rpath,
                "virtual_size_bytes": disk.node.top.virtual_size_bytes,
                "node_name": disk.node.top.node_name,
                "bitmap": disk.bitmap,
                "working_bitmap": disk.working_bitmap,
            }
            for disk in made.disks
        ],
        "left_out": [left_out(left) for left in made.left_out],
        "transaction": made.transaction(),
        "copies": made.copies(),
    }


def verification(found: Verification) -> dict[str, Any]:
    """Return the result of the last verify of a backup."""
    from vbackup.repository import verification as verifications

    return verifications.document(found)


def boot(result: BootResult) -> dict[str, Any]:
    """Return the result of a boot test."""
    from vbackup.repository import boot_result

    return boot_result.document(result)


def fsck(result: FsckResult) -> Mapping[str, Any]:
    """Return the result of a check of file systems."""
    from vbackup.repository import fsck_result

    return fsck_result.document(result)


def machine(places: Sequence[Placed]) -> list[dict[str, str | None]]:
    """Return the files that a restored domain needs beside disks and XML."""
    from vbackup.operations import restored_machine

    return restored_machine.document(places)
