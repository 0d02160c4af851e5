"""The grammar of the command line: options before the command, and one module of vbackup.cli.commands per command."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, NoReturn

import vbackup
from vbackup.cli.arguments import add_common
from vbackup.errors import UsageError

#: The commands, with their help in ``vbackup --help``.
COMMANDS = {
    "init": "create a repository",
    "backup": "back up domains",
    "list": "list the backups in a repository",
    "show": "show the record of a backup",
    "restore": "restore disks from a backup",
    "recover": "finish or undo interrupted backups",
    "speed": "change the speed of a running backup",
    "transaction": "check and send a QMP transaction",
    "bitmap": "list and change dirty bitmaps",
    "forget": "remove a repository's bitmaps from a domain",
    "hooks": "install or remove libvirt's hook script",
}


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's message as a sentence."""
        raise UsageError(f"{message[:1].upper()}{message[1:]}.")


class _Commands:
    """argparse's subcommands, with the help from COMMANDS."""

    def __init__(self, parsers: Any) -> None:
        self._parsers = parsers

    def add_parser(self, name: str, **settings: Any) -> Any:
        return self._parsers.add_parser(name, help=COMMANDS[name], **settings)


def build(words: Collection[str] = COMMANDS.keys()) -> Parser:
    """Return the parser, complete by default, as the tests of the man page need it.

    Otherwise only the commands among ``words`` get their arguments. argparse accepts as a command only a whole word of
    the command line, so the modules of the others need not be imported.
    """
    parser = Parser(
        prog="vbackup",
        description="Make incremental image backups of libvirt/QEMU virtual machines, running or shut off.",
        epilog="Manual pages: vbackup(1), vbackup-repository(5), vbackup-transaction(7), vbackup-recovery(7).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vbackup {vbackup.__version__}")
    add_common(parser, at_top=True)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command", parser_class=Parser
    )
    for name, purpose in COMMANDS.items():
        if name in words:
            import_module(f"vbackup.cli.commands.{name}").add(_Commands(commands))
        else:
            commands.add_parser(name, help=purpose)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options. Raises UsageError; ``--help`` and ``--version`` print and raise SystemExit(0)."""
    return build(arguments).parse_args(arguments)
