"""Print the plan of a backup that QEMU has checked."""

from __future__ import annotations

import json
from typing import Any

from vbackup.cli import output
from vbackup.engine.plan import BackupPlan


def print_plan(plan: BackupPlan) -> None:
    """Print the plan as text."""
    print(output.plain(f"Plan of backup {plan.id} of domain {plan.domain.name} (checked by QEMU; nothing was kept)"))
    output.table(
        ("DISK", "LEVEL", "BASE", "FILE", "NODE", "WHY"),
        [
            (
                disk.dev,
                disk.choice.level.value,
                disk.choice.base.id if disk.choice.base else "-",
                disk.file,
                disk.node.top.node_name,
                disk.choice.reason,
            )
            for disk in plan.disks
        ],
    )
    for skipped in plan.left_out:
        print(output.plain(f"Left out: {skipped.dev} ({skipped.reason})"))
    print("Transaction:")
    for action in plan.transaction():
        print(f"  {json.dumps(action)}")
    if plan.has_fleecing_area:
        print("Then, to copy the disks through the fleecing area:")
        for action in plan.copies():
            print(f"  {json.dumps(action)}")


def document(plan: BackupPlan) -> dict[str, Any]:
    """Return the members of the plan's JSON document, without ``schema``."""
    return {
        "id": plan.id,
        "level": plan.level.value,
        "parent": plan.parent,
        "domain": {"name": plan.domain.name, "uuid": plan.domain.uuid},
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
            for disk in plan.disks
        ],
        "left_out": [{"dev": skipped.dev, "reason": skipped.reason} for skipped in plan.left_out],
        "transaction": plan.transaction(),
        "copies": plan.copies(),
    }
