"""``vbackup init``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("init", description="Create a new, empty repository.", allow_abbrev=False)
    add_common(parser, asks_libvirt=False)
