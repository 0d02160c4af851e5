"""``vbackup completion``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common

SHELLS = ("bash", "zsh", "fish")
VALUES = "values"


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "completion",
        description="Print the script with which a shell completes the words of vbackup's command line; or, for such a"
        " script, what a word can be.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "shell", metavar="SHELL", choices=(*SHELLS, VALUES), help="bash, zsh or fish; or values, for such a script"
    )
    parser.add_argument(
        "kinds", metavar="KIND", nargs="*", help="with values: what to list, such as domains, backups or disks"
    )
    add_common(parser, of_hosts=True, reads_config=True)
    parser.add_argument("--domain", metavar="DOMAIN", help="with values: the domain that the command line names")
    parser.add_argument("--backup", metavar="ID", help="with values: the backup that the command line names")
