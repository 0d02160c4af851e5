"""``vbackup transaction``: send a QMP transaction of one's own."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_qemu
from vbackup.qapi.actions import CompletionMode


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "transaction",
        description="Check a QMP transaction against the schema of the QEMU it is for, and send it.",
        allow_abbrev=False,
    )
    add_qemu(parser)
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="JSON: the arguments of 'transaction', or the list of actions (-: stdin)",
    )
    add_common(parser)
    parser.add_argument(
        "--completion-mode",
        choices=[mode.value for mode in CompletionMode],
        help="how the jobs end: each by itself, or all or none (default: as FILE says, else individual)",
    )
    parser.add_argument("--test", action="store_true", help="QEMU prepares everything for real, and undoes it")
    parser.add_argument("--wait", action="store_true", help="follow the jobs to their end, and report each")
    parser.add_argument(
        "--unsafe", action="store_true", help="send also what changes what libvirt or a repository relies on"
    )
