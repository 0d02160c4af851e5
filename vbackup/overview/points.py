"""The backups of a domain as a report draws them. Does no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Point:
    """A backup."""

    id: str
    time: datetime
    level: str  #: "full", "incremental", "differential", "copy"
    base: str | None  #: id of the newest backup that it depends on
    size_bytes: int  #: of its image files
    changed_bytes: int | None  #: what had changed since its base; None: a full, or not recorded
    verdict: str  #: "good", "partial", "damaged", "unverified", "broken"
    is_protected: bool = False
    note: str | None = None

    @property
    def is_whole(self) -> bool:
        """True if it depends on no other backup."""
        return self.base is None

    @property
    def is_bad(self) -> bool:
        """True if it cannot be restored whole."""
        return self.verdict in ("damaged", "broken")


@dataclass(frozen=True)
class DomainPoints:
    """The backups of a domain, the oldest first."""

    uuid: str
    points: tuple[Point, ...]
