"""The ``vbackup`` command: parse the command line, call one operation, print the result, return the exit status.

    parser          the grammar; imports of ``commands`` only the module of the command that was given
    commands/NAME   the arguments of ``vbackup NAME``
    dispatch        imports and runs the handler of that command
    streams         standard output and error that cannot be written
    handlers/NAME   what ``vbackup NAME`` does: calls one operation and prints its result
    context         what every handler needs: libvirt's URI, the repository's path, reporters, JSON output

``commands`` are quick to import, so that ``--help`` is quick; handlers import whatever they work with.
Nothing in vbackup outside this package prints or exits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from vbackup.cli import journal, streams
from vbackup.cli.output import plain
from vbackup.errors import InstallationError, Status, UsageError, VbackupError, error_document

log = logging.getLogger(__name__)


def command() -> NoReturn:
    """Run ``main`` and end the process: the entry point of the ``vbackup`` command.

    Everything is closed by then. Python's own shutdown would tear down the modules one by one, which takes a tenth of
    the time of a small backup, while libvirt's event loop still runs in a thread.
    """
    streams.protect()
    # exec(2) keeps what a parent ignores. With this one, the kernel forgets how children end, and Python takes a
    # qemu-img that has failed for one that succeeded.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = main()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status (vbackup(1), EXIT STATUS)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    result = streams.Result()
    status = _status(arguments, result)
    err = streams.output_error()
    if err is None:
        return status
    if isinstance(err, BrokenPipeError):
        # The reader of the output has gone, as "head" does when it has seen enough: that needs no words.
        return Status.SIGNAL + signal.SIGPIPE if result.is_the_work else status
    why = f"Cannot write the output: {err.strerror or err}."
    if result.is_the_work:
        print(f"vbackup: {why}", file=sys.stderr)
        return Status.FAILED
    print(f"vbackup: warning: {why} The exit status is that of the command.", file=sys.stderr)
    return status


def _status(arguments: Sequence[str], result: streams.Result) -> int:
    as_json, is_plugin = "--json" in arguments, "--nagios" in arguments
    try:
        # Imported here so that Ctrl-C during the import is handled too.
        from vbackup.cli import dispatch

        return dispatch.run(arguments, result)
    except VbackupError as err:
        return _fail(err, as_json=as_json, is_plugin=is_plugin, command=result.command)
    except SystemExit as end:  # argparse printed the help or the version
        return int(end.code or 0)
    except KeyboardInterrupt:
        return Status.SIGNAL + signal.SIGINT
    except ImportError as err:
        log.debug("unexpected", exc_info=True)
        python = ".".join(map(str, sys.version_info[:3]))
        return _fail(InstallationError(err.name or "a module", python, str(err)), as_json=as_json, is_plugin=is_plugin)
    except Exception as err:
        from vbackup.files import reported

        log.debug("unexpected", exc_info=True)
        return _fail(reported(err), as_json=as_json, is_plugin=is_plugin)


def _fail(err: VbackupError, *, as_json: bool, is_plugin: bool, command: str = "vbackup") -> int:
    if is_plugin:  # of Nagios, which takes 2 for critical, and reads standard output
        from vbackup import api

        print(api.nagios_unknown(str(err)))
        return int(api.Health.UNKNOWN)
    hint = f" See '{err.help_of or command} --help'." if isinstance(err, UsageError) else ""
    if as_json:
        print(json.dumps(error_document(err), default=str))
    journal.failed(f"{plain(str(err))}{hint}", code=err.code, status=str(int(err.status)))
    return int(err.status)
