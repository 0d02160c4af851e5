"""``vbackup hooks``: its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vbackup.cli.arguments import add_common


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "hooks",
        description="Install or remove the script that libvirt calls when a domain starts or ends, or show its state.",
        allow_abbrev=False,
    )
    # One parser for all three actions: they have the same options, which may then come before or after the action.
    parser.add_argument(
        "action", metavar="ACTION", choices=("install", "remove", "status"), help="install, remove or status"
    )
    add_common(parser, asks_libvirt=False)
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=Path,
        default=Path("/"),
        help="root directory of another system, such as an image that is being built (default: /)",
    )
