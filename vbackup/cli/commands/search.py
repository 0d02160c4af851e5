"""``vbackup search``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_host, add_key_file, add_words
from vbackup.cli.values import count


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "search",
        description="Find files by name in the backups of domains, the newest first.",
        allow_abbrev=False,
    )
    add_words(
        parser,
        "[WHERE:]PATTERN DOMAIN...",
        "a pattern such as '*.conf', of the whole path if it has a slash: '/etc/*.conf'; names or UUIDs of domains, or"
        " patterns such as 'web*'",
    )
    add_common(parser)
    add_host(parser)
    add_key_file(parser)
    parser.add_argument("--last", metavar="N", type=count, help="search only the newest N backups of each domain")
    parser.add_argument("--bytes", action="store_true", help="sizes in bytes")
