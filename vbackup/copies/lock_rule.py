"""Whether a place that locks objects for days protects a backup with all that it depends on, for as long as it is kept.

An object is locked from when it was stored. A backup that is the last of a chain needs the chain's full, which was
locked as many days earlier as the chain is long. So the lock has to last as long as backups are kept and the longest
chain besides: else a thief can delete the full of a backup that is still locked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from datetime import timedelta

from vbackup.model import Backup
from vbackup.repository.history import History


def span(history: History, backups: Iterable[Backup]) -> timedelta:
    """Return the longest time between a backup and the first one that it depends on."""
    spans = (
        backup.time - link.backup.time
        for backup in backups
        for image in backup.disks
        for link in history.links(backup.id, image.dev)[-1:]
    )
    return max(spans, default=timedelta(0))


def broken(days: int, history: History, kept: Collection[Backup], *, name: str) -> str | None:
    """Return what is wrong with a lock of so many days, if these backups are kept; None if it lasts.

    ``name``: of the place. Raises ChainError if the history lacks what a backup depends on.
    """
    if not kept:
        return None
    times = [backup.time for backup in kept]
    retention, chain = max(times) - min(times), span(history, kept)
    needed_days = math.ceil((retention + chain) / timedelta(days=1))
    if needed_days <= days:
        return None
    return (
        f"{name} locks objects for {days} days. Backups are kept there for {_days(retention)}, and chains of images"
        f" last {_days(chain)}, so what a backup depends on can be deleted while the backup is kept: let the place lock"
        f" new objects for at least {needed_days} days, or copy a full more often (--full-every)."
    )


def _days(time: timedelta) -> str:
    return f"{time / timedelta(days=1):.3g} days"
