"""``vbackup session``: the arguments of its commands."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import (
    add_common,
    add_devs,
    add_disks,
    add_domain,
    add_exclusive,
    add_quiesce,
    add_subcommands,
)
from vbackup.cli.values import MAX_RESULTS, directory, offset_bytes, positive_seconds, result_count, tracker_name
from vbackup.model import Level

_LEVELS = (Level.AUTO, Level.FULL, Level.INCREMENTAL, Level.DIFFERENTIAL)


def add(commands: Any) -> None:
    """Add the command's parser, with a subcommand for each step of a session."""
    parser = commands.add_parser(
        "session",
        description="Serve one moment of a domain's disks by NBD, with what has changed since an earlier one.",
        allow_abbrev=False,
    )
    subcommands = add_subcommands(parser, "action")
    _add_begin(subcommands)
    listing = subcommands.add_parser(
        "list", help="list sessions", description="List the sessions of a domain, or of all.", allow_abbrev=False
    )
    add_domain(listing, otherwise=" (default: all)")
    add_common(listing)
    _add_changes(subcommands)
    for name, purpose in (
        ("status", "show a session"),
        ("renew", "give a session more time"),
        ("commit", "make the session's checkpoint the base of its tracker, and end the session"),
        ("abort", "end a session; the base of its tracker stays as it was"),
    ):
        step = subcommands.add_parser(
            name, help=purpose, description=f"{purpose[:1].upper()}{purpose[1:]}.", allow_abbrev=False
        )
        step.add_argument("session", metavar="ID", help="id of the session")
        add_common(step)
        if name == "renew":
            _add_ttl(step, "let it expire this long from now")


def _add_begin(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "begin",
        help="begin a session",
        description="Serve the disks of a domain, as they all are at one moment, until the session is committed,"
        " aborted, or expires.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    parser.add_argument(
        "--tracker",
        metavar="NAME",
        type=tracker_name,
        required=True,
        help="the name of your product or job: each tracker has its own checkpoints",
    )
    parser.add_argument(
        "--level",
        choices=[level.value for level in _LEVELS],
        default=Level.AUTO.value,
        help="what the bitmaps show; auto (default): for each disk the changes since the tracker's newest checkpoint,"
        " if it can be trusted; incremental: fail if it cannot; differential: the changes since the last full; full:"
        " none",
    )
    parser.add_argument("--base", metavar="CHECKPOINT", help="start from this checkpoint of the tracker")
    add_disks(parser, "serve only these disks")
    add_devs(parser, "--exclude-disk", "do not serve these disks")
    add_exclusive(parser)
    add_quiesce(parser)
    parser.add_argument(
        "--scratch",
        metavar="DIR",
        type=directory,
        help="directory of the domain's host, on a fast disk, for what the guest overwrites meanwhile (default: TMPDIR,"
        " or /var/tmp; on another host /var/tmp)",
    )
    _add_ttl(parser, "let the session expire after this time")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="unix",
        help="where to serve; unix (default): a socket that nobody else can reach; HOST:PORT needs --tls-creds",
    )
    parser.add_argument(
        "--tls-creds",
        metavar="DIR",
        type=directory,
        help="directory with ca-cert.pem, server-cert.pem and server-key.pem; clients need a certificate of the same"
        " authority",
    )


def _add_changes(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "changes",
        help="list the extents of a disk that a client has to read",
        description="List the extents of a disk: those that changed, which of them are zeros, or those with data.",
        allow_abbrev=False,
    )
    parser.add_argument("session", metavar="ID", help="id of the session")
    add_common(parser)
    parser.add_argument("--disk", metavar="DEV", action="append", required=True, help="the disk, only one")
    parser.add_argument("--offset", metavar="N", type=offset_bytes, default=0, help="begin there (default: 0)")
    parser.add_argument("--length", metavar="N", type=offset_bytes, help="go so far (default: to the end of the disk)")
    parser.add_argument(
        "--max-results",
        metavar="N",
        type=result_count,
        default=MAX_RESULTS,
        help="list no more extents than this; the result says where to go on (default, and most: 1000000)",
    )
    parser.add_argument(
        "--kind",
        metavar=("KIND", "CHECKPOINT"),
        nargs="+",
        default=["delta"],
        help="delta (default): what changed since the base, or the whole disk of a full; allocated: what has data;"
        " between CHECKPOINT: what changed since that checkpoint",
    )
    parser.add_argument(
        "--tls-creds",
        metavar="DIR",
        type=directory,
        help="directory with ca-cert.pem, client-cert.pem and client-key.pem, for a session with --listen HOST:PORT"
        " (default: that of the session)",
    )


def _add_ttl(parser: argparse.ArgumentParser, purpose: str) -> None:
    parser.add_argument(
        "--ttl", metavar="TIME", type=positive_seconds, default=7200.0, help=f"{purpose} (90s, 30m; default: 2h)"
    )
