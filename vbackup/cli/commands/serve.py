"""``vbackup serve``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_point
from vbackup.cli.copies import add_from
from vbackup.cli.values import directory


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "serve",
        description="Serve the disks of a backup by NBD, each under its name, until a signal ends it.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    add_from(parser)
    add_point(parser, "serve", has_id=True)
    parser.add_argument(
        "--nbd", metavar="SOCKET", required=True, type=directory, help="path of the unix socket, which is created"
    )
    parser.add_argument(
        "--writable",
        action="store_true",
        help="clients can write; what they write is gone at the end, and the backup stays as it is",
    )
    parser.add_argument(
        "--overlay",
        metavar="DIR",
        type=directory,
        help="with --writable: the directory that takes what is written (default: TMPDIR, or /var/tmp)",
    )
