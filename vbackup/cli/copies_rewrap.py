"""``vbackup copy --rewrap``: let other recipients read what is at a target."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vbackup.api import rewrap_copies
from vbackup.cli import copies, output
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError

#: Options of a copy, which rewraps nothing.
_OF_COPIES = ("all", "since", "full_every", "bwlimit", "parallel", "immutable", "dry_run", "take_over")


def run(options: argparse.Namespace, words: Sequence[str], context: Context) -> int:
    """Rewrap all that is at the target; the exit status is 6 if the identity did not open some of it."""
    given = next((name for name in _OF_COPIES if getattr(options, name)), None)
    if words or given is not None:
        what = "A domain" if words else f"--{str(given).replace('_', '-')}"
        raise UsageError(f"{what} has no effect with --rewrap, which is for all that is at the target.")
    with context.reporting() as reporter:
        done = rewrap_copies(copies.place_of(options, options.to), reporter=reporter, stop=context.stop)
    if context.as_json:
        context.print_document(
            "vbackup.rewrap/1",
            {"target": done.target, "backups": done.points, "objects": done.objects, "passed": list(done.passed)},
        )
    elif not context.is_quiet:
        print(output.plain(f"{done.points} backups can be read by the recipients; {done.objects} new headers."))
    return Status.CHAIN if done.passed else Status.DONE
