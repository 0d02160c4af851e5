"""``vbackup cat``: print a file of a guest in a backup."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress

from vbackup.api import CatRequest, parse_address
from vbackup.cli import copies, keys, output, streams
from vbackup.cli.arguments import domain_and_words_of, swallowed, wanted_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the bytes of the file; on a terminal with what could steer it escaped."""
    domain, words = domain_and_words_of(options)
    if len(words) != 1:
        given = f"One file is printed, but {len(words)} are given" if words else "No file given"
        raise UsageError(f"{given}{swallowed(options)}.")
    if context.as_json:
        raise UsageError("A file is printed as it is, not as JSON; 'vbackup ls --json' describes it.")
    address = parse_address(words[0])
    wanted = wanted_of(options, options.backup)
    with (
        context.reporting(domain, is_log=False) as reporter,
        copies.shown(options, context, domain, wanted, reporter=reporter) as (vb, uuid),
        suppress(streams.LostOutput),
    ):
        vb.cat(
            CatRequest(uuid, wanted, address),
            _print_escaped if sys.stdout.isatty() else streams.Binary().write,
            keys=keys.of(options.key_file, context.stop),
            reporter=reporter,
        )
    sys.stdout.flush()
    return Status.DONE


def _print_escaped(data: bytes) -> None:
    text = data.decode(errors="backslashreplace")
    for line in text.splitlines(keepends=True):
        body = line.rstrip("\r\n")
        shown = "\t".join(output.plain(part) for part in body.split("\t"))
        print(shown, end="\n" if line != body else "")
