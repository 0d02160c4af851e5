"""The ``vbackup`` command: parse the command line, call one operation, print the result, return the exit status.

    parser          the grammar; imports of ``commands`` only the module of the command that was given
    commands/NAME   the arguments of ``vbackup NAME``
    dispatch        imports and runs the handler of that command
    handlers/NAME   what ``vbackup NAME`` does: calls one operation and prints its result
    context         what every handler needs: libvirt's URI, the repository's path, reporters, JSON output

``commands`` are quick to import, so that ``--help`` is quick; handlers import whatever they work with.
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
    """Run ``main`` and end the process: the entry point of the ``vbackup`` command.

    Everything is closed by then. Python's own shutdown would tear down the modules one by one, which takes a tenth of
    the time of a small backup, while libvirt's event loop still runs in a thread.
    """
    status = main()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status (vbackup(1), EXIT STATUS)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # JSON can hold half of a surrogate pair, which cannot be encoded; print it escaped instead of failing.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _status(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output is gone; let the interpreter's last flush succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.SIGNAL + signal.SIGPIPE
    except OSError as err:
        # The command is done, or its error was printed; but the reader of the output would not know.
        with contextlib.suppress(OSError):
            print(f"vbackup: Cannot write the output: {err.strerror or err}.", file=sys.stderr)
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
    except SystemExit as end:  # argparse printed the help or the version
        return int(end.code or 0)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return Status.SIGNAL + signal.SIGINT
    except Exception as err:
        if isinstance(err, OSError):
            sys.stdout.flush()  # raises again if the error was about the output
        log.debug("unexpected", exc_info=True)
        wrapped = VbackupError(f"Unexpected {type(err).__name__}: {err}. This is a bug in vbackup; -v shows where.")
        return _fail(wrapped, as_json=as_json)


def _fail(err: VbackupError, *, as_json: bool) -> int:
    hint = " See 'vbackup --help'." if isinstance(err, UsageError) else ""
    if as_json:
        print(json.dumps(error_document(err), default=str))
    print(f"vbackup: {plain(str(err))}{hint}", file=sys.stderr)
    return int(err.status)
