"""The command line's grammar: global options, one subcommand a module, the types of arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

import vbackup
from vbackup.cli.arguments import add_common
from vbackup.cli.commands import backup, bitmap, forget, hooks, init, recover, restore, show, speed, transaction
from vbackup.cli.commands import list as list_
from vbackup.errors import UsageError

COMMANDS = (init, backup, list_, show, restore, recover, speed, transaction, bitmap, forget, hooks)


class Parser(argparse.ArgumentParser):
    """Raises UsageError with one sentence instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for every wrong argument."""
        raise UsageError(f"{message[:1].upper()}{message[1:]}.")


def build() -> Parser:
    """The whole grammar; the man page is tested against it."""
    parser = Parser(
        prog="vbackup",
        description="Back up QEMU virtual machines that libvirt manages.",
        epilog="Manual pages: vbackup(1), vbackup-repository(5), vbackup-transaction(7), vbackup-recovery(7).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vbackup {vbackup.__version__}")
    add_common(parser, at_top=True)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command", parser_class=Parser
    )
    for module in COMMANDS:
        module.add(commands)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse. Raises UsageError; ``--help`` and ``--version`` print and raise SystemExit(0)."""
    return build().parse_args(arguments)
