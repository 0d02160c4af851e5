"""``vbackup metrics``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_asked, add_common
from vbackup.cli.values import directory, host_and_port


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "metrics",
        description="Print what 'vbackup status' knows as metrics of Prometheus, write it for node-exporter, or serve"
        " it.",
        allow_abbrev=False,
    )
    add_asked(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--output",
        metavar="FILE",
        type=directory,
        help="write FILE in one step, such as /var/lib/prometheus/node-exporter/vbackup.prom",
    )
    where.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=host_and_port,
        help="answer GET /metrics on loopback, such as 127.0.0.1:9967, until a signal ends it",
    )
    add_common(parser, reads_config=True)
