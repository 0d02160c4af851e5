"""``vbackup prune``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import add_common, add_wait_lock
from vbackup.cli.copies import add_cache, add_identity, add_take_over
from vbackup.cli.values import chain_length, keep_count, keep_within


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "prune",
        description="Remove the backups that no rule keeps, and give their data to later backups that depend on them."
        " The rules are applied from short to long; what one has kept, the next does not count.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="names or UUIDs of domains, or patterns such as 'web*'"
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help="prune all domains in the repository")
    add_common(parser)
    _add_rules(parser)
    parser.add_argument(
        "--remove", metavar="ID", nargs="+", action="extend", default=[], help="instead of rules: remove these backups"
    )
    parser.add_argument(
        "--consolidate",
        choices=("auto", "reflink", "in-place", "copy", "never"),
        default="auto",
        help="how a removed backup gives its data to those that depend on it; auto (default): the cheapest way that is"
        " safe on this filesystem; never: it stays",
    )
    parser.add_argument(
        "--max-chain",
        metavar="N",
        type=chain_length,
        help="also merge backups until no image has a chain of more than N images",
    )
    parser.add_argument(
        "--at",
        metavar="TARGET",
        dest="at_target",
        help="in place of the repository: remove points at this target of copies, a directory or a URL",
    )
    add_cache(parser)
    add_identity(parser)
    add_take_over(parser)
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")
    add_wait_lock(parser)


def _add_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep-last", metavar="N", type=keep_count, help="keep the newest N backups")
    parser.add_argument(
        "--keep-within",
        metavar="DURATION",
        type=keep_within,
        help="keep all backups made within this time (36h, 14d, 2w, 1y6m) before the newest",
    )
    for rule, period in (
        ("hourly", "hours"),
        ("daily", "days"),
        ("weekly", "weeks"),
        ("monthly", "months"),
        ("yearly", "years"),
    ):
        parser.add_argument(
            f"--keep-{rule}",
            metavar="N",
            type=keep_count,
            help=f"keep the newest backup of each of the last N {period}",
        )
