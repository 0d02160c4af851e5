"""``vbackup run``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common
from vbackup.cli.values import seconds, window


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "run",
        description="Run jobs of the configuration: back up, remove old backups, copy, verify and audit, and tell what"
        " became of it. What fails does not keep the rest from being done.",
        allow_abbrev=False,
    )
    parser.add_argument("jobs", metavar="JOB", nargs="*", help="names of jobs (default: all)")
    add_common(parser, of_hosts=True, reads_config=True)
    parser.add_argument(
        "--due",
        action="store_true",
        help="run only the jobs whose last time has passed without a run that ended; for timers, cron and the boot",
    )
    parser.add_argument(
        "--wait-lock",
        metavar="TIME",
        type=seconds,
        help="wait up to this time (90, 90s, 5m) for another run that works on the repository (default: 12h)",
    )
    parser.add_argument(
        "--accept-clock",
        action="store_true",
        help="the clock is right: remove old backups again, whatever the times of earlier runs say",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="only list the jobs, with their last and next times")
    what.add_argument("--dry-run", action="store_true", help="only print the commands of the steps; execute nothing")
    once = parser.add_argument_group("of one job, in place of what the configuration has")
    once.add_argument(
        "--domain",
        metavar="DOMAIN",
        dest="domains",
        action="append",
        default=[],
        help="only this domain: a name, UUID or pattern; can be given several times",
    )
    once.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="skip these domains, too; can be given several times",
    )
    once.add_argument(
        "--window", metavar="HH:MM-HH:MM", type=window, help="when backups may begin; any: at any time of the day"
    )
    copies = once.add_mutually_exclusive_group()
    copies.add_argument(
        "--copy-to",
        metavar="TARGET",
        action="append",
        default=[],
        help="copy to this target of the configuration; can be given several times",
    )
    copies.add_argument("--no-copy", action="store_true", help="copy nothing")
    told = once.add_mutually_exclusive_group()
    told.add_argument(
        "--notify",
        metavar="NAME",
        action="append",
        default=[],
        help="tell this notifier of the configuration; can be given several times",
    )
    told.add_argument("--no-notify", action="store_true", help="tell nobody")
