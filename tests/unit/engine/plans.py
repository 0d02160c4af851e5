"""Make plans of backups, for tests."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from tests.unit import builders
from tests.unit.builders import NOON, REPOSITORY, TOKEN, backup, domain, end_mark, incremental, layer
from vbackup.engine import plan
from vbackup.engine.base import Choice
from vbackup.model import Compression, DiskNode, LeftOut, Level, NodeBitmap
from vbackup.names import Naming
from vbackup.repository.history import History

FULL = backup(1)
SECOND = incremental(2, FULL)


def whole(level: Level = Level.FULL) -> Choice:
    return Choice(level, None, (), "asked for")


def vda(**changes: Any) -> DiskNode:
    return builders.node(layer(end_mark("vda"), node_name="libvirt-2-format", **changes))


def vdb(**changes: Any) -> DiskNode:
    return builders.node(layer(end_mark("vdb"), node_name="libvirt-1-format", **changes), dev="vdb")


def since(base: Any, *nodes: str, dev: str = "vda") -> Choice:
    sources = tuple(NodeBitmap(node, Naming(REPOSITORY).bitmap(base.id, dev, TOKEN)) for node in nodes)
    return Choice(Level.INCREMENTAL, base, sources, f"changes since {base.id}")


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
