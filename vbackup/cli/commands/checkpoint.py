"""``vbackup checkpoint``: the arguments of its commands."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_exclusive, add_subcommands
from vbackup.cli.values import tracker_name


def add(commands: Any) -> None:
    """Add the command's parser, with its subcommands."""
    parser = commands.add_parser(
        "checkpoint", description="List or delete checkpoints of a tracker of pull sessions.", allow_abbrev=False
    )
    subcommands = add_subcommands(parser, "action")
    listing = subcommands.add_parser(
        "list",
        help="list checkpoints",
        description="List the checkpoints from which sessions can start.",
        allow_abbrev=False,
    )
    add_domain(listing)
    add_common(listing)
    listing.add_argument("--tracker", metavar="NAME", type=tracker_name, help="only those of this tracker")
    delete = subcommands.add_parser(
        "delete",
        help="delete checkpoints",
        description="Delete checkpoints of a tracker, and their bitmaps.",
        allow_abbrev=False,
    )
    add_domain(delete)
    add_common(delete)
    delete.add_argument("--tracker", metavar="NAME", type=tracker_name, required=True, help="the tracker")
    delete.add_argument(
        "--checkpoint",
        metavar="ID",
        nargs="+",
        action="extend",
        required=True,
        dest="checkpoints",
        help="ids of the checkpoints",
    )
    add_exclusive(delete)
