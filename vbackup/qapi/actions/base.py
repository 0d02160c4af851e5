"""Base of the actions of a transaction: a type and its data (QAPI TransactionAction)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vbackup.qapi.actions.members import Structure


@dataclass(frozen=True)
class Action(Structure):
    """Base of the actions; the attributes of a subclass are the members of ``data``."""

    TYPE: ClassVar[str]
    #: The version of QEMU that introduced the action.
    SINCE: ClassVar[str]
    #: True if the action supports completion-mode grouped.
    GROUPED: ClassVar[bool] = False

    def document(self) -> dict[str, Any]:
        """Return the action as JSON-ready data: {"type": ..., "data": ...}."""
        return {"type": self.TYPE, "data": super().document()}
