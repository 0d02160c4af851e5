"""``vbackup list``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_host


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "list",
        description="Summarize the domains in a repository, or list the backups of a domain, oldest first.",
        allow_abbrev=False,
    )
    add_domain(parser, otherwise=" (default: a summary of all)")
    add_common(parser, asks_libvirt=False)
    parser.add_argument("--all", action="store_true", help="list the backups of all domains")
    add_host(parser)
    parser.add_argument("--tree", action="store_true", help="show which backup depends on which")
