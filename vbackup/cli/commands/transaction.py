"""``vbackup transaction``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.api import CompletionMode
from vbackup.cli.arguments import add_common, add_qemu


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "transaction",
        description="Check a QMP transaction against the schema of the QEMU that it is for, and send it.",
        allow_abbrev=False,
    )
    add_qemu(parser)
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="JSON file with the arguments of 'transaction', or the list of actions (default, or -: stdin)",
    )
    add_common(parser)
    parser.add_argument(
        "--completion-mode",
        choices=[mode.value for mode in CompletionMode],
        help="individual: each job ends by itself; grouped: all succeed or none does (default: as in FILE,"
        " otherwise individual)",
    )
    parser.add_argument("--test", action="store_true", help="let QEMU prepare everything for real, and undo it")
    parser.add_argument("--wait", action="store_true", help="follow the jobs until they end, and report each")
    parser.add_argument(
        "--unsafe", action="store_true", help="also send actions that change what libvirt or a repository relies on"
    )
