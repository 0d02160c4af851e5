"""Print the plan of a backup, which QEMU has checked."""

from __future__ import annotations

import json
from typing import Any

from vbackup.cli import output
from vbackup.engine.plan import BackupPlan


def print_plan(made: BackupPlan) -> None:
    """For people."""
    print(output.plain(f"Plan of backup {made.id} of domain {made.domain.name} (checked by QEMU, nothing was kept)"))
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
            for disk in made.disks
        ],
    )
    for left in made.left_out:
        print(output.plain(f"Left out: {left.dev} ({left.reason})"))
    print("Transaction:")
    for action in made.transaction():
        print(f"  {json.dumps(action)}")
    if made.has_fleecing_area:
        print("Then, to copy what was put aside and the rest:")
        for action in made.copies():
            print(f"  {json.dumps(action)}")


def document(made: BackupPlan) -> dict[str, Any]:
    """For programs, without the schema."""
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
        "left_out": [{"dev": left.dev, "reason": left.reason} for left in made.left_out],
        "transaction": made.transaction(),
        "copies": made.copies(),
    }
