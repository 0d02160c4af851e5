"""``vbackup hooks``: install the script that libvirt calls at each start and end of a domain, or remove it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vbackup.cli.arguments import add_common


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "hooks",
        description="Install the script that libvirt calls when domains start and end; remove it; tell if it is there.",
        allow_abbrev=False,
    )
    # One parser for all three: their options are the same, and so may stand on either side of the word.
    parser.add_argument(
        "action", metavar="ACTION", choices=("install", "remove", "status"), help="install, remove or status"
    )
    add_common(parser)
    parser.add_argument(
        "--root", metavar="DIR", type=Path, default=Path("/"), help="of another system, whose libvirt does not run here"
    )
