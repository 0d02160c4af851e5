"""Print the plan of a backup that QEMU has checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vbackup.api import BackupPlan
from vbackup.cli import output


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
