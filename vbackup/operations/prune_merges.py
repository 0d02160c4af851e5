"""What a prune asks of the consolidation: to give the data of removed backups to those that depend on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from vbackup.repository.catalogue import Catalogue


class Merge(Protocol):
    """What is to be done so that removed backups on which others depend can go."""

    @property
    def heirs(self) -> Mapping[str, Sequence[str]]:
        """The ids of the backups that get data, by the id of the one that it comes from."""

    @property
    def kept(self) -> Mapping[str, str]:
        """Why backups that were to be removed stay, by id."""

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to do."""

    @property
    def extra_bytes(self) -> int:
        """The room that further copies of the same data take, in bytes: if several backups get a copy each."""

    def sentences(self) -> list[str]:
        """Return what is done and how, for people."""

    def document(self) -> dict[str, Any]:
        """Return the same as a JSON object."""


class Consolidator(Protocol):
    """Gives the data of removed backups to those that depend on them."""

    def recover(self, uuid: str) -> None:
        """Finish or undo what a killed run left."""

    def plan(self, catalogue: Catalogue, remove: Collection[str]) -> Merge:
        """Return what has to be done. Raises NoSpaceError, and whatever says that it cannot be done."""

    def carry_out(self, merge: Merge) -> Mapping[str, str]:
        """Do it, and remove the backups; return which of them stay all the same, and why."""
