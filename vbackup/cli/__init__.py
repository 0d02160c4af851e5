"""The command: parse, open, call one operation, print, and give the true exit status.

Each command is a module of vbackup.cli.commands.
Nothing below this floor prints or exits.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from vbackup.cli.output import error_document, plain
from vbackup.errors import Status, UsageError, VbackupError
from vbackup.stop import Stop, on_signals

log = logging.getLogger(__name__)


def command() -> NoReturn:
    """What the ``vbackup`` command runs: ``main``, and the end of the process.

    All that has to be closed is by then. Python's own way to end takes the modules apart one by one, for a tenth of
    the time of a small backup, while libvirt's event loop still runs in a thread of it.
    """
    status = main()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (vbackup(1), EXIT STATUS)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # JSON can hold half a character; that is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _status(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone; let the interpreter's last flush find nothing to complain of.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.SIGNAL + signal.SIGPIPE
    except OSError as err:
        # What was to be done is done, or was told; but whoever reads the output would not know.
        with contextlib.suppress(OSError):
            print(f"vbackup: The output cannot be written: {err.strerror or err}.", file=sys.stderr)
        return Status.FAILED
    return status


def _status(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    try:
        return _run(arguments)
    except VbackupError as err:
        return _fail(err, as_json=as_json)
    except SystemExit as end:  # argparse has printed the help, or the version
        return int(end.code or 0)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return Status.SIGNAL + signal.SIGINT
    except Exception as err:
        if isinstance(err, OSError):
            sys.stdout.flush()  # raises again where it was about the output
        log.debug("unexpected", exc_info=True)
        wrapped = VbackupError(f"Unexpected {type(err).__name__}: {err}. This is a fault in vbackup; -v shows where.")
        return _fail(wrapped, as_json=as_json)


def _run(arguments: Sequence[str]) -> int:
    # Imported here, so that a Ctrl-C in the meantime is caught too.
    from vbackup.cli import parser
    from vbackup.cli.context import Context

    options = parser.parse(arguments)
    level = logging.DEBUG if options.verbose else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True)
    # What qemu.qmp has to say is raised; and at -v it would repeat every command.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    with on_signals(Stop()) as stop:
        status: int = options.run(options, Context(options, stop))
    return status


def _fail(err: VbackupError, *, as_json: bool) -> int:
    hint = " See 'vbackup --help'." if isinstance(err, UsageError) else ""
    if as_json:
        print(json.dumps(error_document(err), default=str))
    print(f"vbackup: {plain(str(err))}{hint}", file=sys.stderr)
    return int(err.status)
