"""``vbackup completion``: print the script for a shell, or what a word can be."""

from __future__ import annotations

import argparse
import os

from vbackup.api import ValueKind, ValuesRequest, completion_values
from vbackup.cli.commands.completion import VALUES
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the script, or the values, one a line. Raises UsageError for kinds without ``values``, or unknown ones."""
    if options.shell != VALUES:
        _refuse_values(options)
        _print_script(options.shell, context)
        return Status.DONE
    request = ValuesRequest(
        [_kind(word) for word in options.kinds],
        repository=options.repository,
        uris=options.uris,
        domain=options.domain,
        backup=options.backup,
        config=options.config,
    )
    found = completion_values(request)
    if context.as_json:
        context.print_document("vbackup.completion/1", {"values": found})
    else:
        print("\n".join(found), end="\n" if found else "")
    return Status.DONE


def _refuse_values(options: argparse.Namespace) -> None:
    # What only the environment names was not given: it is there for other commands.
    config = None if options.config == os.environ.get("VBACKUP_CONFIG") else options.config
    for given in (*options.kinds, *filter(None, (options.domain, options.backup, config))):
        raise UsageError(f"{given!r} is for 'vbackup completion values': leave it out to get the script.")


def _print_script(shell: str, context: Context) -> None:
    from vbackup.cli import completion_script  # builds all parsers, for which a TAB has no time

    script = completion_script.make(shell)
    if context.as_json:
        context.print_document("vbackup.completion/1", {"shell": shell, "script": script})
    else:
        print(script, end="")


def _kind(word: str) -> ValueKind:
    try:
        return ValueKind(word)
    except ValueError:
        known = ", ".join(kind.value for kind in ValueKind)
        raise UsageError(f"No kind {word!r}; the kinds are: {known}.") from None
