"""The points at which a backup waits for the other backups of its group; a backup of one domain does not wait.

vbackup.operations.backup calls them in the order of Moment. vbackup.engine.group implements them for several domains.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from vbackup.errors import VbackupError
from vbackup.model import Group, GroupMember


class Moment(Protocol):
    """What one backup calls. Each method returns when all members may continue, or raises if this one must stop."""

    def planned(self, member: GroupMember) -> Group | None:
        """Wait until all are planned, before anything is started; return the group to record in the manifest."""

    def ready(self) -> None:
        """Wait until all are prepared, so that the guests can be frozen."""

    def taken(self) -> AbstractContextManager[None]:
        """Wait until the filesystems of all are frozen; the block then sends the transaction."""

    def sent(self) -> None:
        """Wait until the transactions of all were carried out; the filesystems of this guest are thawed."""

    @property
    def group(self) -> Group | None:
        """The group that ``planned`` returned; after ``sent`` with the spread of the moments."""

    def copied(self) -> None:
        """Wait until all backups are complete except for their final names."""

    def failed(self, cause: VbackupError) -> None:
        """Tell the others that this backup has failed; at once, as what is left to do for it can take minutes."""


class Alone:
    """The moment of a backup of one domain: nothing waits, and there is no group."""

    group: Group | None = None

    def planned(self, member: GroupMember) -> Group | None:
        """Return None: there is no group to record."""
        return None

    def ready(self) -> None:
        """Return at once."""

    def taken(self) -> AbstractContextManager[None]:
        """Return a context that runs its block at once."""
        return nullcontext()

    def sent(self) -> None:
        """Return at once."""

    def copied(self) -> None:
        """Return at once."""

    def failed(self, cause: VbackupError) -> None:
        """Tell nobody."""
