"""The command line's grammar: global options, one subcommand a module, the types of arguments."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, NoReturn

import vbackup
from vbackup.cli.arguments import add_common
from vbackup.errors import UsageError

#: What ``vbackup --help`` says of each command. Its module is vbackup.cli.commands.NAME, imported when it is needed.
COMMANDS = {
    "init": "make a repository",
    "backup": "back up domains",
    "list": "list backups",
    "show": "show one backup",
    "restore": "restore disks from a backup",
    "recover": "finish or undo a backup that was cut off",
    "speed": "change the speed of a running backup",
    "transaction": "send a QMP transaction",
    "bitmap": "list and change dirty bitmaps",
    "forget": "remove a repository's bitmaps from a domain",
    "hooks": "install or remove libvirt's hook script",
}


class Parser(argparse.ArgumentParser):
    """Raises UsageError with one sentence instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for every wrong argument."""
        raise UsageError(f"{message[:1].upper()}{message[1:]}.")


class _Commands:
    """Where the module of a command adds its parser; the help is that of the table."""

    def __init__(self, parsers: Any) -> None:
        self._parsers = parsers

    def add_parser(self, name: str, **settings: Any) -> Any:
        return self._parsers.add_parser(name, help=COMMANDS[name], **settings)


def build(words: Collection[str] = COMMANDS.keys()) -> Parser:
    """The grammar: whole by default, as the man page is tested against it; else of the commands among ``words`` only.

    argparse takes for a command only what stands word for word in the arguments, so the rest need not be imported.
    """
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
    for name, what in COMMANDS.items():
        if name in words:
            import_module(f"vbackup.cli.commands.{name}").add(_Commands(commands))
        else:
            commands.add_parser(name, help=what)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse. Raises UsageError; ``--help`` and ``--version`` print and raise SystemExit(0)."""
    return build(arguments).parse_args(arguments)
