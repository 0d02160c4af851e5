"""QMP's ``transaction`` as types: all actions of QAPI's TransactionAction, with every member.

``document()`` of an action is what the monitor sends. vbackup.qapi.schema and vbackup.qapi.rules, both called by
vbackup.qapi.checker, decide whether a particular QEMU accepts it; vbackup.qapi.actions.blame finds the action that an
error of QEMU is about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from vbackup.qapi.actions.backups import (
    BackupPerf,
    BitmapSyncMode,
    BlockdevBackup,
    BlockdevOnError,
    DriveBackup,
    MirrorSyncMode,
    OnCbwError,
)
from vbackup.qapi.actions.base import Action
from vbackup.qapi.actions.bitmaps import (
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapClear,
    BlockDirtyBitmapDisable,
    BlockDirtyBitmapEnable,
    BlockDirtyBitmapMerge,
    BlockDirtyBitmapRemove,
)
from vbackup.qapi.actions.snapshots import (
    BlockdevSnapshot,
    BlockdevSnapshotInternalSync,
    BlockdevSnapshotSync,
    NewImageMode,
)

__all__ = [
    "TYPES",
    "Abort",
    "Action",
    "BackupPerf",
    "BitmapSyncMode",
    "BlockDirtyBitmap",
    "BlockDirtyBitmapAdd",
    "BlockDirtyBitmapClear",
    "BlockDirtyBitmapDisable",
    "BlockDirtyBitmapEnable",
    "BlockDirtyBitmapMerge",
    "BlockDirtyBitmapRemove",
    "BlockdevBackup",
    "BlockdevOnError",
    "BlockdevSnapshot",
    "BlockdevSnapshotInternalSync",
    "BlockdevSnapshotSync",
    "CompletionMode",
    "DriveBackup",
    "MirrorSyncMode",
    "NewImageMode",
    "OnCbwError",
    "introduced",
    "modern_name",
]

#: The version of QEMU that introduced ``properties``, and completion-mode in them.
PROPERTIES_SINCE = "2.5"
_PROPERTIES = ("properties", "properties.completion-mode")
_PATH = re.compile(r"actions\[(?P<index>[0-9]{1,9})\]\.(type|data\.(?P<data>.+))")


@dataclass(frozen=True)
class Abort(Action):
    """abort: fail when its turn comes, so that QEMU prepares all actions before it and undoes them.

    Error: always "Transaction aborted using Abort action".
    """

    TYPE: ClassVar[str] = "abort"
    SINCE: ClassVar[str] = "1.6"


#: All actions by type.
TYPES: Mapping[str, type[Action]] = {
    action.TYPE: action
    for action in (
        Abort,
        BlockDirtyBitmapAdd,
        BlockDirtyBitmapClear,
        BlockDirtyBitmapDisable,
        BlockDirtyBitmapEnable,
        BlockDirtyBitmapMerge,
        BlockDirtyBitmapRemove,
        BlockdevBackup,
        BlockdevSnapshot,
        BlockdevSnapshotInternalSync,
        BlockdevSnapshotSync,
        DriveBackup,
    )
}


class CompletionMode(Enum):
    """What happens to the jobs of a transaction when one of them fails (QAPI ActionCompletionMode)."""

    INDIVIDUAL = "individual"  #: nothing, the other jobs continue; the default
    GROUPED = "grouped"  #: all are cancelled; refused if an action is not Action.GROUPED


def introduced(arguments: Any, path: str, *, value: str | None) -> str | None:
    """Return the version of QEMU that introduced a member of the arguments of ``transaction``, or an enum value of it.

    ``path`` is the member's, ``value`` the enum value. None if QAPI does not have it, or it is as old as what
    contains it.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        is_known = path in _PROPERTIES and (value is None or value in [mode.value for mode in CompletionMode])
        return PROPERTIES_SINCE if is_known else None
    if match["data"] is None:
        return TYPES[value].SINCE if value is not None and value in TYPES else None
    action = _type_at(arguments, int(match["index"]))
    if action is None:
        return None
    names = re.sub(r"\[[0-9]+\]", "", match["data"]).split(".")
    return action.since(names if value is None else [*names, value])


def _type_at(arguments: Any, index: int) -> type[Action] | None:
    given = arguments.get("actions") if isinstance(arguments, dict) else None
    action = given[index] if isinstance(given, list) and index < len(given) else None
    kind = action.get("type") if isinstance(action, dict) else None
    return TYPES.get(kind) if isinstance(kind, str) else None


def modern_name(kind: str) -> str | None:
    """Return the stable name of an action whose experimental name began with ``x-``, or None."""
    name = kind[2:]
    return name if kind.startswith("x-") and name in TYPES else None
