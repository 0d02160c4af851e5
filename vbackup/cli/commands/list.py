"""``vbackup list``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_host
from vbackup.cli.copies import add_from
from vbackup.cli.values import timestamp
from vbackup.model import Level

#: The states of vbackup.repository.condition, and the columns of vbackup.cli.backup_table.
STATES = ("good", "partial", "damaged", "unverified", "broken", "protected", "unfinished", "running")
COLUMNS = (
    *("id", "time", "level", "size", "chain", "chain-size", "state", "verified", "consistency", "host", "protected"),
    *("disks", "note"),
)


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "list",
        description="Summarize the domains in a repository, or list the backups of a domain, oldest first.",
        allow_abbrev=False,
    )
    add_domain(parser, otherwise=" (default: a summary of all)")
    add_common(parser, asks_libvirt=False)
    add_from(parser)
    parser.add_argument("--all", action="store_true", help="list the backups of all domains")
    add_host(parser)
    parser.add_argument("--since", metavar="TIME", type=timestamp, help="only backups made at TIME or later")
    parser.add_argument("--until", metavar="TIME", type=timestamp, help="only backups made at TIME or before")
    parser.add_argument(
        "--level",
        metavar="LEVEL",
        choices=[level.value for level in Level if level is not Level.AUTO],
        nargs="+",
        action="extend",
        default=[],
        help="only backups of this level: full, incremental, differential or copy",
    )
    parser.add_argument(
        "--state",
        metavar="STATE",
        choices=STATES,
        nargs="+",
        action="extend",
        default=[],
        help=f"only backups that are {', '.join(STATES[:-1])} or {STATES[-1]}",
    )
    parser.add_argument(
        "--columns",
        metavar="COLUMN",
        choices=(*COLUMNS, "all"),
        nargs="+",
        action="extend",
        default=[],
        help=f"show these columns: {', '.join(COLUMNS)}, or all",
    )
    parser.add_argument("--tree", action="store_true", help="show which backup depends on which")
