"""A second thawer, on the hypervisor: the watchdog is on this host, and cannot thaw a guest that it does not reach."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vbackup.domain.freeze import Thawer
from vbackup.errors import LinkLostError, RemoteError

if TYPE_CHECKING:
    from vbackup.remote.link import Link

#: How long after the watchdog the helper thaws while the link is there: the watchdog knows what became of it.
AFTER_S = 2.0


class ThawThere:
    """A thawer (vbackup.domain.freeze.Thawer): another one, and the helper on the hypervisor.

    The helper thaws within seconds if the link is silent or has ended, whoever lives on this side.
    """

    def __init__(self, near: Thawer, link: Link, uuid: str) -> None:
        """``near``: the thawer on this host. ``uuid``: of the domain."""
        self._near, self._link, self._uuid = near, link, uuid
        self._has_thawed = False

    @property
    def limit_s(self) -> int:
        """That of the thawer on this host."""
        return self._near.limit_s

    @property
    def is_blind(self) -> bool:
        """As the thawer on this host is."""
        return self._near.is_blind

    def reason_not_to_freeze(self) -> str | None:
        """Ask the thawer on this host, and look at the link."""
        if self._link.is_lost:
            return f"the SSH connection to {self._link.host}, where the guest would be thawed, is lost"
        return self._near.reason_not_to_freeze()

    def may_be_left_frozen(self) -> bool:
        """Ask the thawer on this host."""
        return self._near.may_be_left_frozen()

    def freezing(self) -> None:
        """Tell the helper first. Raises LinkLostError: nothing is frozen then."""
        self._link.watch_thaw(self._uuid, self.limit_s + AFTER_S)
        self._near.freezing()

    def thawed(self) -> None:
        """Tell both."""
        self._near.thawed()
        with suppress(LinkLostError, RemoteError):  # it thaws, which does no harm
            self._has_thawed = self._link.unwatch(self._uuid)

    def has_thawed(self) -> bool:
        """Return True if either has thawed the guest."""
        return self._near.has_thawed() or self._has_thawed or self._link.has_thawed(self._uuid)
