"""The points at which a backup waits for others that are to be of the same moment; alone it waits for nobody.

vbackup.operations.backup calls them in this order, vbackup.engine.group has those of several domains.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from vbackup.model import Group, GroupMember


class Moment(Protocol):
    """What one backup asks. Whatever waits raises instead where the backup is not to go on."""

    def planned(self, member: GroupMember) -> Group | None:
        """Nothing has been begun. Returns the group that it is to be recorded with, once all are planned."""

    def ready(self) -> None:
        """All is ready: return when the guests are to be frozen."""

    def taken(self) -> AbstractContextManager[None]:
        """The filesystems are frozen: run the block, which sends the transaction, when those of all are."""

    def sent(self) -> None:
        """The filesystems are thawed: return when the transactions of all were carried out."""

    @property
    def group(self) -> Group | None:
        """What ``planned`` returned, with the spread once all have ``sent``."""

    def copied(self) -> None:
        """The backup is complete but for its name: return when it may have that."""


class Alone:
    """One domain for itself."""

    group: Group | None = None

    def planned(self, member: GroupMember) -> Group | None:
        """See Moment."""
        return None

    def ready(self) -> None:
        """See Moment."""

    def taken(self) -> AbstractContextManager[None]:
        """See Moment."""
        return nullcontext()

    def sent(self) -> None:
        """See Moment."""

    def copied(self) -> None:
        """See Moment."""
