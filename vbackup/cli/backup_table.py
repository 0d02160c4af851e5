"""The columns in which backups are listed: a few that fit a terminal, and more if they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vbackup.api import Condition, host_labels
from vbackup.cli import output
from vbackup.model import Backup, HostIdentity

#: Disks are named up to this many columns, and counted beyond where another column follows.
_MAX_NAMED = 12


@dataclass(frozen=True)
class _Row:
    """A backup to be shown, and what is known of it."""

    backup: Backup
    condition: Condition
    labels: Mapping[HostIdentity, str]


@dataclass(frozen=True)
class _Column:
    heading: str
    cell: Callable[[_Row], str]


def _verified(row: _Row) -> str:
    found = row.condition.verification
    if found is None:
        return "-"
    how_much = "" if found.percent >= 100 else f" {found.percent:g} %"  # noqa: PLR2004
    return f"{found.verdict.value}{how_much} {output.local_minute(found.time)}"


def _protected(row: _Row) -> str:
    found = row.condition.protection
    return "-" if found is None else found.reason or "yes"


def _remark(row: _Row) -> str:
    """Return protection and note in one cell."""
    protected = [] if row.condition.protection is None else ["protected"]
    return "; ".join([*protected, *([row.condition.note] if row.condition.note else [])])


def _host(row: _Row) -> str:
    return row.labels[row.backup.host] if row.backup.host is not None else "-"


def _disks(row: _Row) -> str:
    without = f" (without {' '.join(row.backup.excluded)})" if row.backup.excluded else ""
    return " ".join(image.dev for image in row.backup.disks) + without


def _few_disks(row: _Row) -> str:
    text = _disks(row)
    return text if len(text) <= _MAX_NAMED else f"{len(row.backup.disks)} disks"


#: By the name that --columns has for it.
COLUMNS: Mapping[str, _Column] = {
    "id": _Column("ID", lambda row: row.backup.id),
    "time": _Column("TIME", lambda row: output.local_minute(row.backup.time)),
    "level": _Column("LEVEL", lambda row: row.backup.level.value),
    "size": _Column("SIZE", lambda row: output.size(row.backup.size_bytes)),
    "chain": _Column("CHAIN", lambda row: str(row.condition.chain_images or "-")),
    "chain-size": _Column("CHAIN SIZE", lambda row: output.size(row.condition.chain_size_bytes)),
    "state": _Column("STATE", lambda row: row.condition.state.value),
    "verified": _Column("VERIFIED", _verified),
    "consistency": _Column("CONSISTENCY", lambda row: row.backup.consistency.value),
    "host": _Column("HOST", _host),
    "protected": _Column("PROTECTED", _protected),
    "disks": _Column("DISKS", _disks),
    "note": _Column("NOTE", lambda row: row.condition.note or "-"),
}


def print_table(backups: Sequence[Backup], conditions: Mapping[str, Condition], names: Sequence[str]) -> None:
    """Print the backups of a domain in these columns; by default in those that fit, and that tell them apart."""
    labels = host_labels(backups)
    rows = [_Row(backup, conditions[backup.id], labels) for backup in backups]
    columns = [COLUMNS[name] for name in names] if names else _default(rows)
    output.table([column.heading for column in columns], [[column.cell(row) for column in columns] for row in rows])


def _default(rows: Sequence[_Row]) -> list[_Column]:
    names = ["id", "time", "size", "state", *(["host"] if len(rows[0].labels) > 1 else [])]
    columns = [COLUMNS[name] for name in names]
    if any(_remark(row) for row in rows):
        return [*columns, _Column("DISKS", _few_disks), _Column("NOTE", _remark)]
    return [*columns, COLUMNS["disks"]]
