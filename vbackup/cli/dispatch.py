"""Parse the command line and run the handler of its command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from vbackup.cli import parser
from vbackup.cli.context import Context
from vbackup.stop import Stop, on_signals


def run(arguments: Sequence[str]) -> int:
    """Return the exit status of the command. Raises what its handler raises."""
    options = parser.parse(arguments)
    _set_up_logging(verbose=options.verbose)
    with on_signals(Stop()) as stop:
        # The only import of a handler: each brings what its command works with, and a command waits for no other's.
        handler = import_module(f"vbackup.cli.handlers.{options.command}")
        status: int = handler.run(options, Context(options, stop))
    return status


def _set_up_logging(*, verbose: bool) -> None:
    level = logging.DEBUG if verbose else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True)
    # vbackup raises what qemu.qmp reports; with -v, qemu.qmp would also log every command a second time.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
