"""QMP's ``transaction`` as types: all actions of QAPI's TransactionAction, with every member.

A transaction can be put together in Python or parsed from JSON; either way ``document()`` is what the
monitor sends. What a certain QEMU takes is checked by vbackup.qapi.schema and vbackup.qapi.rules, both through
vbackup.qapi.checker; which action an error of QEMU is about is found by vbackup.qapi.actions.blame.
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

#: The version that ``properties`` came with, and completion-mode in them.
PROPERTIES_SINCE = "2.5"
_PROPERTIES = ("properties", "properties.completion-mode")
_PATH = re.compile(r"actions\[(?P<index>[0-9]{1,9})\]\.(type|data\.(?P<data>.+))")


@dataclass(frozen=True)
class Abort(Action):
    """abort: fails when its turn comes, so QEMU prepares all actions before it and undoes them.

    Error: always "Transaction aborted using Abort action".
    """

    TYPE: ClassVar[str] = "abort"
    SINCE: ClassVar[str] = "1.6"


#: All actions there are, by type.
TYPES: Mapping[str, type[Action]] = {
    one.TYPE: one
    for one in (
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
    """What happens to the jobs of a transaction when one fails later (QAPI ActionCompletionMode)."""

    INDIVIDUAL = "individual"  #: each ends by itself; the default
    GROUPED = "grouped"  #: all are cancelled; refused beside an action that is not Action.GROUPED


def introduced(arguments: Any, path: str, value: str | None = None) -> str | None:
    """The version of QEMU that a member of the arguments of ``transaction`` came with, or an enum value in it.

    ``path`` is that of the member, ``value`` the enum's. None if QAPI knows no such thing, or it is as old as
    what it stands in.
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
    """The name of an action that once began with ``x-``."""
    name = kind[2:]
    return name if kind.startswith("x-") and name in TYPES else None
