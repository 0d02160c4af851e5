"""``vbackup metrics``: print metrics, write them, or serve them."""

from __future__ import annotations

import argparse
import sys

from vbackup import api
from vbackup.api import documents
from vbackup.cli import overviews
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Return 0 if the metrics are out, whatever they say."""
    if options.listen is not None:
        return _serve(options, context)
    if options.output is None and context.as_json:
        raise UsageError("Metrics are no JSON: 'vbackup status --json' is. --json is for --output and --listen.")
    overview = overviews.found(options, context)
    if options.output is None:
        sys.stdout.buffer.write(api.metrics_text(overview))
        sys.stdout.buffer.flush()
        return Status.DONE
    api.write_metrics(options.output, overview)
    if context.as_json:
        context.print_document(
            "vbackup.metrics/1", {"path": str(options.output), "health": documents.overview(overview)["health"]}
        )
    elif not context.is_quiet:
        print(f"Metrics of {len(overview.domains)} domains written to {options.output}.")
    return Status.DONE


def _serve(options: argparse.Namespace, context: Context) -> int:
    def on_ready(server: api.MetricsServer) -> None:
        if context.as_json:
            context.print_line("vbackup.metrics/1", {"url": server.url})
        elif not context.is_quiet:
            print(f"Metrics are at {server.url}. Ctrl-C ends it.")
        sys.stdout.flush()

    host, port = options.listen
    api.serve_metrics(host, port, lambda: overviews.found(options, context), on_ready, stop=context.stop)
    return Status.DONE
