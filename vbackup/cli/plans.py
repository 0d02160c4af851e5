"""Print the plan of a backup that QEMU has checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vbackup.cli import output
from vbackup.engine.plan import BackupPlan
from vbackup.repository import manifest


def print_plan(plan: BackupPlan) -> None:
    """Print the plan as text."""
    print(output.plain(f"Plan of backup {plan.id} of domain {plan.domain.name} (checked by QEMU; nothing was kept)"))
    output.table(
        ("DISK", "LEVEL", "NODE", "WHY"),
        [
            (
                disk.dev,
                disk.choice.level.value,
                disk.node.top.node_name,
                disk.choice.reason,
            )
            for disk in plan.disks
        ],
    )
    for skipped in plan.left_out:
        output.labelled("Left out: ", f"{skipped.dev} ({skipped.reason})")
    print("Transaction:")
    _print_actions(plan.transaction())
    if plan.has_fleecing_area:
        print("Then, to copy the disks through the fleecing area:")
        _print_actions(plan.copies())


def _print_actions(actions: Sequence[Mapping[str, Any]]) -> None:
    """Print one JSON object per line for programs; on a terminal a long one is continued below, indented."""
    columns = output.columns()
    for action in actions:
        text = json.dumps(action)
        for number, line in enumerate(output.wrapped(text, columns and columns - 6)):
            print(("      " if number else "  ") + line)


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
        "left_out": [manifest.left_out_document(left) for left in plan.left_out],
        "transaction": plan.transaction(),
        "copies": plan.copies(),
    }
