"""``vbackup cp``: copy files of a guest out of a backup, to files or as a tar archive on standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vbackup.api import Copies, CpRequest, parse_address
from vbackup.cli import copies, keys, output, streams
from vbackup.cli.arguments import domain_and_words_of, swallowed, wanted_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError
from vbackup.report import Reporter

#: How many of the files that were left out are named.
_NAMED = 20


def run(options: argparse.Namespace, context: Context) -> int:
    """Copy, and print what was copied; of a tar archive nothing, as that is the output."""
    domain, words = domain_and_words_of(options)
    given = len(words)
    target = _target(words, options)
    if not words:
        missing = "file" if options.tar or not given else "target"
        raise UsageError(f"No {missing} given: DOMAIN [WHERE:]/PATH... TARGET{swallowed(options)}.")
    sources = tuple(map(parse_address, words))
    if len({source.where for source in sources}) > 1:
        raise UsageError("The files are in different file systems; copy those of one at a time.")
    if target is None and sys.stdout.isatty():
        raise UsageError("A tar archive is not written to a terminal: redirect the output, or pipe it into tar.")
    if target is None and context.as_json:
        raise UsageError("The output is a tar archive, so there is no place for JSON: leave out --json.")
    wanted = wanted_of(options, options.backup)
    with (
        context.reporting(domain, is_log=False) as reporter,
        copies.shown(options, context, domain, wanted, reporter=reporter) as (vb, uuid),
    ):
        request = CpRequest(uuid, wanted, sources, target, keeps_everything=options.archive)
        try:
            done = vb.cp(
                request,
                streams.Binary() if target is None else None,
                keys=keys.of(options.key_file, context.stop),
                reporter=reporter,
            )
        except streams.LostOutput:
            return Status.FAILED
        _warn(done, reporter)
    if target is None:
        sys.stdout.flush()
    else:
        _print(done, context)
    return Status.DONE


def _target(words: list[str], options: argparse.Namespace) -> Path | None:
    """Remove the target from the words, and return it; None: standard output."""
    if options.tar:
        if words and words[-1] == "-":
            words.pop()
        return None
    word = words.pop() if len(words) > 1 else ""
    if word == "" and words:
        words.clear()
    return None if word == "-" else Path(word)


def _warn(done: Copies, reporter: Reporter) -> None:
    left_out = [each for copied in done.copied for each in copied.left_out]
    for each in left_out[:_NAMED]:
        reporter.warning(f"Left out {each}.")
    if len(left_out) > _NAMED:
        reporter.warning(f"Left out {len(left_out) - _NAMED} more files.")


def _print(done: Copies, context: Context) -> None:
    backup = done.backup
    if context.as_json:
        document: dict[str, Any] = {
            "id": backup.id,
            "domain": {"name": backup.domain_name, "uuid": backup.domain_uuid},
            "copied": [
                {
                    "source": str(each.source),
                    "path": str(each.path),
                    "files": each.files,
                    "size_bytes": each.size_bytes,
                    "left_out": list(each.left_out),
                }
                for each in done.copied
            ],
        }
        context.print_document("vbackup.cp/1", document)
    elif not context.is_quiet:
        for each in done.copied:
            count = f"{each.files} files, " if each.files != 1 else ""
            text = (
                f"{each.source} of backup {backup.id} is copied to {each.path}: {count}{output.size(each.size_bytes)}"
            )
            print(output.plain(text))
