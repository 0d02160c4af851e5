"""``vbackup bitmap``: its arguments, and those of its commands."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import add_common, add_disks, add_qemu, add_subcommands
from vbackup.cli.values import granularity_bytes

_CHANGES = {
    "add": "create an empty bitmap and start recording in it",
    "remove": "remove a bitmap",
    "clear": "clear a bitmap",
    "enable": "start recording in a bitmap",
    "disable": "stop recording in a bitmap",
    "merge": "merge other bitmaps into a bitmap",
}


def add(commands: Any) -> None:
    """Add the command's parser, with a subcommand for each kind of change."""
    parser = commands.add_parser(
        "bitmap",
        description="List the dirty bitmaps of disks with their owners, or change a bitmap.",
        allow_abbrev=False,
    )
    subcommands = add_subcommands(parser, "bitmap_command")
    listing = subcommands.add_parser(
        "list",
        help="list bitmaps",
        description="List the bitmaps of all layers of the disks, with their owners.",
        allow_abbrev=False,
    )
    _add_place(listing, "list only the bitmaps of these disks")
    for name, purpose in _CHANGES.items():
        change = subcommands.add_parser(
            name, help=purpose, description=f"{purpose.capitalize()}, on all disks at once.", allow_abbrev=False
        )
        _add_change(change, name)


def _add_place(parser: argparse.ArgumentParser, disks: str) -> None:
    add_qemu(parser)
    add_common(parser)
    add_disks(parser, disks)


def _add_change(parser: argparse.ArgumentParser, name: str) -> None:
    _add_place(parser, "change only the bitmaps of these disks")
    parser.add_argument("name", metavar="NAME", help="name of the bitmap")
    parser.add_argument("--node", metavar="NODE", help="node name of the layer to change (default: the active layer)")
    if name == "add":
        parser.add_argument(
            "--granularity",
            metavar="SIZE",
            type=granularity_bytes,
            help="bytes per bit, a power of two (default: chosen by QEMU)",
        )
        parser.add_argument(
            "--persistent", action="store_true", help="store the bitmap in the image when QEMU closes the image"
        )
        parser.add_argument("--disabled", action="store_true", help="do not let the new bitmap record yet")
    if name == "remove":
        parser.add_argument(
            "--force", action="store_true", help="remove it even if a repository or libvirt relies on it"
        )
    if name == "merge":
        parser.add_argument(
            "--source",
            metavar="[NODE:]NAME",
            nargs="+",
            action="extend",
            required=True,
            help="bitmaps to merge into NAME",
        )
