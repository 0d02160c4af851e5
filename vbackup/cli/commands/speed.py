"""``vbackup speed``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_disks, add_domain, add_positional


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "speed",
        description="Change the copy speed of a backup of a running domain while it is in progress.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_positional(
        parser,
        "rate",
        "RATE",
        "bytes per second for each disk (50M, 50MiB/s, 1GB), or unlimited",
        shown_as_required=True,
    )
    add_common(parser)
    add_disks(parser, "change only these disks")
