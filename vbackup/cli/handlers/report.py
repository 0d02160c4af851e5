"""``vbackup report``: print or write what people read about all backups."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vbackup import api
from vbackup.api import documents
from vbackup.cli import overviews
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError

_STDOUT = Path("-")


def run(options: argparse.Namespace, context: Context) -> int:
    """Return 0 if the report is out, whatever it says."""
    wanted = {"html": options.html, "text": options.text}
    if all(path is None for path in wanted.values()):
        wanted["text"] = _STDOUT
    printed = [kind for kind, path in wanted.items() if path == _STDOUT]
    if len(printed) > 1:
        raise UsageError("Only one report can go to standard output: give a file for the other.")
    if printed and context.as_json:
        raise UsageError("A report is no JSON: 'vbackup status --json' is. --json is for reports that go to files.")
    overview = overviews.found(options, context)
    contents = {"html": api.report_html, "text": api.report_text}
    for kind, path in wanted.items():
        if path is not None and path != _STDOUT:
            api.write_report(path, contents[kind](overview))
    for kind in printed:
        _print(contents[kind](overview))
    written = [(kind, os.fspath(path)) for kind, path in wanted.items() if path is not None and kind not in printed]
    if context.as_json:
        reports = [{"kind": kind, "path": path} for kind, path in written]
        health = documents.overview(overview)["health"]
        context.print_document("vbackup.report/1", {"reports": reports, "health": health})
    elif not printed and not context.is_quiet:
        print(f"Report on {len(overview.domains)} domains written to {' and '.join(path for _, path in written)}.")
    return Status.DONE


def _print(text: str) -> None:
    """Print UTF-8, which a page says that it is, whatever the terminal's encoding is."""
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
