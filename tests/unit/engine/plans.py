"""Make plans of backups, for tests."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from tests.unit.builders import NOON, REPOSITORY, TOKEN, backup, domain, incremental
from vbackup.engine import plan
from vbackup.engine.base import Choice
from vbackup.model import Compression, DiskNode, LeftOut, Level
from vbackup.names import Naming
from vbackup.repository.history import History

FULL = backup(1)
SECOND = incremental(2, FULL)


def whole(level: Level = Level.FULL) -> Choice:
    return Choice(level, None, (), "asked for")


def make(
    choices: Sequence[tuple[DiskNode, Choice]],
    asked: Level = Level.AUTO,
    *,
    now: datetime = NOON,
    taken: Collection[str] = (),
    history: History = History([FULL, SECOND]),  # noqa: B008  (frozen)
    compression: Compression = Compression.NONE,
    speed_bytes_s: int | None = None,
    fleecing: plan.FleecingAbilities | None = None,
    allow_reflink: bool = False,
) -> plan.BackupPlan:
    selection = plan.select(domain("vda", "vdb", left_out=[LeftOut("hda", "cdrom")]), (), ())
    wishes = plan.Wishes(
        asked, compression=compression, speed_bytes_s=speed_bytes_s, fleecing=fleecing, allow_reflink=allow_reflink
    )
    identity = plan.Identity(Naming(REPOSITORY), now, TOKEN, taken)
    return plan.make(selection, choices, history=history, identity=identity, wishes=wishes)
