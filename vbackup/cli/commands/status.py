"""``vbackup status``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_asked, add_common


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "status",
        description="Tell whether everything is backed up as the jobs of the configuration promise, or all domains to"
        " the repository that is given with -r.",
        allow_abbrev=False,
    )
    add_asked(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--all", action="store_true", help="show all domains, and all that is known of each")
    how.add_argument(
        "--nagios",
        action="store_true",
        help="print one line with performance data, as a plugin of Nagios, with the exit status 0, 1, 2 or 3",
    )
    add_common(parser, reads_config=True)
