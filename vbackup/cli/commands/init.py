"""``vbackup init``: make a repository."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("init", description="Make a new, empty repository in DIR.", allow_abbrev=False)
    add_common(parser)
