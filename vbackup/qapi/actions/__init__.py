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

from vbackup.errors import TransactionError
from vbackup.qapi import wording
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
from vbackup.qapi.actions.members import Choice, unexpected
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
    "Transaction",
    "introduced",
    "modern_name",
    "parse",
]

#: The version that ``properties`` came with, and completion-mode in them.
PROPERTIES_SINCE = "2.5"
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


_COMPLETION_MODE = Choice(CompletionMode)


@dataclass(frozen=True)
class Transaction:
    """The arguments of QMP's ``transaction``."""

    actions: tuple[Action, ...]
    completion_mode: CompletionMode = CompletionMode.INDIVIDUAL

    def document(self) -> dict[str, Any]:
        """As JSON-ready data, without ``properties`` where they are the default."""
        arguments: dict[str, Any] = {"actions": [action.document() for action in self.actions]}
        if self.completion_mode is not CompletionMode.INDIVIDUAL:
            arguments["properties"] = {"completion-mode": self.completion_mode.value}
        return arguments


def parse(value: Any) -> Transaction:
    """Read the arguments of ``transaction``, or just its list of actions, from JSON-ready data.

    Raises TransactionError for all that is not in QAPI: an unknown action, member or enum value, a member
    that is missing or of another type.
    """
    arguments = {"actions": value} if isinstance(value, list) else value
    if not isinstance(arguments, dict):
        raise TransactionError(
            "arguments", f"this is {wording.kind(value)}, but must be an object with 'actions', or their list."
        )
    known = ("actions", "properties")
    for name in arguments:
        if name not in known:
            raise unexpected("", name, dict.fromkeys(known))
    given = arguments.get("actions")
    if not isinstance(given, list):
        what = f"this is {wording.kind(given)}" if "actions" in arguments else "this is missing"
        raise TransactionError("actions", f"{what}; it must be a list of actions.")
    return Transaction(
        tuple(_action(one, f"actions[{index}]") for index, one in enumerate(given)), _completion_mode(arguments)
    )


def introduced(arguments: Any, path: str, value: str | None = None) -> str | None:
    """The version of QEMU that a member of the arguments of ``transaction`` came with, or an enum value in it.

    ``path`` is that of the member, ``value`` the enum's. None if QAPI knows no such thing, or it is as old as
    what it stands in.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        return PROPERTIES_SINCE if path in ("properties", "properties.completion-mode") else None
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


def _action(value: Any, path: str) -> Action:
    if not isinstance(value, dict):
        raise TransactionError(path, f"this is {wording.kind(value)}, but must be an object with 'type' and 'data'.")
    for name in value:
        if name not in ("type", "data"):
            raise unexpected(path, name, {"type": None, "data": None})
    for name in ("type", "data"):
        if name not in value:
            raise TransactionError(f"{path}.{name}", "this is missing; an action has a 'type' and its 'data'.")
    action = _type(value["type"], f"{path}.type")
    if not isinstance(value["data"], dict):
        raise TransactionError(f"{path}.data", f"this is {wording.kind(value['data'])}, but must be an object.")
    return action.parse(value["data"], f"{path}.data")


def _type(kind: Any, path: str) -> type[Action]:
    if not isinstance(kind, str):
        raise TransactionError(path, f"this is {wording.kind(kind)}, but must be a string.")
    if kind in TYPES:
        return TYPES[kind]
    modern = modern_name(kind)
    if modern is not None:
        raise TransactionError(path, f"'{kind}' was its experimental name; say '{modern}'.")
    hint = wording.similar(kind, TYPES) or f" There is {wording.listed(TYPES)}."
    raise TransactionError(path, f"QEMU has no action {wording.shown(kind)}.{hint}")


def _completion_mode(arguments: Mapping[str, Any]) -> CompletionMode:
    if "properties" not in arguments:
        return CompletionMode.INDIVIDUAL
    properties = arguments["properties"]
    if not isinstance(properties, dict):
        raise TransactionError("properties", f"this is {wording.kind(properties)}, but must be an object.")
    for name in properties:
        if name != "completion-mode":
            raise unexpected("properties", name, {"completion-mode": None})
    mode: Any = CompletionMode.INDIVIDUAL
    if "completion-mode" in properties:
        mode = _COMPLETION_MODE.read(properties["completion-mode"], "properties.completion-mode")
    return CompletionMode(mode)
