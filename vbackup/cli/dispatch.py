"""Parse the command line and run the handler of its command."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from vbackup.cli import parser
from vbackup.cli.context import Context
from vbackup.cli.streams import Result
from vbackup.stop import Stop, on_signals

#: The commands that only print.
_ONLY_PRINT = frozenset(
    (
        *(
            "status",
            "list",
            "show",
            "verify",
            "diff",
            "usage",
            "ls",
            "cat",
            "search",
            "bitmap list",
            "hooks status",
            "schema",
            "completion",
        ),
        *("session list", "session status", "session changes", "tracker list", "checkpoint list"),
        *("list", "show", "verify", "diff", "usage", "ls", "cat", "search", "bitmap list", "hooks status", "schema"),
        *("completion", "session list", "session status", "session changes", "tracker list", "checkpoint list"),
        *("stream backup", "engine read", "engine config"),
        *("schedule list", "notify list"),
        *("config check", "config show", "config schema", "config init", "config recover"),
    )
)


#: Where the options of a command with commands have the inner one.
_INNER = (
    *("config_command", "schedule_command", "notify_command", "bitmap_command", "stream_command", "engine_command"),
    "action",
)


def run(arguments: Sequence[str], result: Result | None = None) -> int:
    """Return the exit status of the command, and note in ``result`` what its output means.

    Raises what the command's handler raises.
    """
    options = parser.parse(arguments)
    if result is not None:
        command = _command(options)
        result.command = f"vbackup {command}"
        result.is_the_work = command in _ONLY_PRINT or _is_trial(options)
    _set_up_logging(verbose=options.verbose)
    with on_signals(Stop()) as stop:
        # The only import of a handler: each brings what its command works with, and a command waits for no other's.
        handler = import_module(f"vbackup.cli.handlers.{options.command.replace('-', '_')}")
        status: int = handler.run(options, Context(options, stop))
    return status


def _command(options: argparse.Namespace) -> str:
    inner = next((inner for name in _INNER if (inner := getattr(options, name, None))), None)
    return f"{options.command} {inner}" if inner else str(options.command)


def _is_trial(options: argparse.Namespace) -> bool:
    if options.command == "check" and not options.repair:
        return True
    if options.command == "cp" and options.words[-1:] == ["-"]:  # an archive on standard output, as with --tar
        return True
    return bool(getattr(options, "dry_run", False) or getattr(options, "test", False) or getattr(options, "tar", False))


def _set_up_logging(*, verbose: bool) -> None:
    level = logging.DEBUG if verbose else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True)
    # vbackup raises what qemu.qmp reports; with -v, qemu.qmp would also log every command a second time.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
