"""Print a plan of merges and removals, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping

from vbackup.api import Merge, MergePlan
from vbackup.cli import output


def print_plan(plan: MergePlan) -> None:
    """Print what would be done, in its order."""
    for merge in plan.merges:
        print(output.plain(f"Backup {merge.heir} takes over {', '.join(_below(merge))}:"))
        for disk in merge.disks:
            result = "a full" if disk.base is None else f"depends on {disk.base}"
            needs = output.size(disk.needs_bytes)
            print(output.plain(f"  {disk.dev}: {disk.way.value}, needs up to {needs}, then {result}"))
    for backup_id in plan.removed:
        print(output.plain(f"Backup {backup_id} is removed."))
    print_kept(plan.kept)
    if plan.merges:
        print(f"Room: up to {output.size(plan.needs_bytes)} needed, {output.size(plan.free_bytes)} free.")


def print_kept(kept: Mapping[str, str]) -> None:
    """Print which backups stay although they were to be removed, and why."""
    for backup_id, reason in kept.items():
        print(output.plain(f"Backup {backup_id} stays: {reason}."))


def _below(merge: Merge) -> list[str]:
    return sorted({backup_id for disk in merge.disks for backup_id in disk.layers[1:]})
