"""The ``vbackup`` command: parse the command line, call one operation, print the result, return the exit status.

    parser          the grammar; imports of ``commands`` only the module of the command that was given
    commands/NAME   the arguments of ``vbackup NAME``
    dispatch        imports and runs the handler of that command
    handlers/NAME   what ``vbackup NAME`` does: calls one operation and prints its result
    context         what every handler needs: libvirt's URI, the repository's path, reporters, JSON output

``commands`` import nothing heavy, so that ``--help`` is quick; handlers import what they work with, at their top.
Nothing in vbackup outside this package prints or exits.
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
        # Imported here so that Ctrl-C during the import is handled too.
        from vbackup.cli import dispatch

        return dispatch.run(arguments)
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


def _fail(err: VbackupError, *, as_json: bool) -> int:
    hint = " See 'vbackup --help'." if isinstance(err, UsageError) else ""
    if as_json:
        print(json.dumps(error_document(err), default=str))
    print(f"vbackup: {plain(str(err))}{hint}", file=sys.stderr)
    return int(err.status)
