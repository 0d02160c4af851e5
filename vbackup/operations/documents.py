"""The JSON documents of a backup: what --json prints, and what the user's scripts get as their input."""

from __future__ import annotations

from typing import Any

from vbackup.engine.plan import BackupPlan
from vbackup.model import Backup
from vbackup.repository import manifest


def plan(made: BackupPlan) -> dict[str, Any]:
    """Return the document of a backup's plan."""
    return {
        "schema": "vbackup.plan/1",
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
        "left_out": [manifest.left_out_document(left) for left in made.left_out],
        "transaction": made.transaction(),
        "copies": made.copies(),
    }


def backup(made: Backup) -> dict[str, Any]:
    """Return the document of a backup that is complete."""
    return {"schema": "vbackup.backup/1", **manifest.document(made)}
