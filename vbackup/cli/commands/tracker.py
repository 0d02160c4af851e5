"""``vbackup tracker``: the arguments of its commands."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_exclusive, add_subcommands
from vbackup.cli.values import tracker_name


def add(commands: Any) -> None:
    """Add the command's parser, with its subcommands."""
    parser = commands.add_parser(
        "tracker", description="List the trackers of pull sessions, or forget one.", allow_abbrev=False
    )
    subcommands = add_subcommands(parser, "action")
    listing = subcommands.add_parser(
        "list", help="list trackers", description="List the trackers of a domain, or of all.", allow_abbrev=False
    )
    add_domain(listing, otherwise=" (default: all)")
    add_common(listing)
    forget = subcommands.add_parser(
        "forget",
        help="forget a tracker",
        description="Remove a tracker with its checkpoints and their bitmaps; its next session is full.",
        allow_abbrev=False,
    )
    add_domain(forget)
    add_common(forget)
    forget.add_argument("--tracker", metavar="NAME", type=tracker_name, required=True, help="the tracker")
    add_exclusive(forget)
