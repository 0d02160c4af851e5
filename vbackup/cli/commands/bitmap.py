"""``vbackup bitmap``: list the dirty bitmaps of disks, and change them."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import add_common, add_qemu
from vbackup.cli.values import granularity_bytes

_CHANGES = {
    "add": "make an empty bitmap that records from now on",
    "remove": "remove a bitmap",
    "clear": "make a bitmap empty",
    "enable": "have a bitmap record",
    "disable": "have a bitmap record no more",
    "merge": "add what is dirty in other bitmaps to a bitmap",
}


def add(commands: Any) -> None:
    """The command's arguments; each kind of work is a command of its own."""
    parser = commands.add_parser(
        "bitmap",
        description="List the dirty bitmaps of disks, whose they are, and change them.",
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="bitmap_command", parser_class=type(parser)
    )
    listing = kinds.add_parser(
        "list", help="list bitmaps", description="List the bitmaps of all layers.", allow_abbrev=False
    )
    _add_place(listing)
    for name, what in _CHANGES.items():
        one = kinds.add_parser(
            name, help=what, description=f"{what.capitalize()}, on all disks at once.", allow_abbrev=False
        )
        _add_change(one, name)


def _add_place(parser: argparse.ArgumentParser) -> None:
    add_qemu(parser)
    add_common(parser)
    parser.add_argument("--disk", metavar="DEV", nargs="+", action="extend", default=[], help="only these disks")


def _add_change(parser: argparse.ArgumentParser, name: str) -> None:
    _add_place(parser)
    parser.add_argument("name", metavar="NAME", help="the bitmap")
    parser.add_argument("--node", metavar="NODE", help="on this layer, not the active one")
    if name == "add":
        parser.add_argument(
            "--granularity", metavar="SIZE", type=granularity_bytes, help="what one bit stands for (default: QEMU's)"
        )
        parser.add_argument("--persistent", action="store_true", help="store it in the image when QEMU closes that")
        parser.add_argument("--disabled", action="store_true", help="do not record yet")
    if name == "remove":
        parser.add_argument("--force", action="store_true", help="even if a repository or libvirt relies on it")
    if name == "merge":
        parser.add_argument(
            "--source", metavar="[NODE:]NAME", nargs="+", action="extend", required=True, help="the bitmaps to add"
        )
