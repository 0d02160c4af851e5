"""``vbackup schedule``: its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vbackup.cli.arguments import ShownAsRequired, add_common, add_subcommands

_COMMANDS = {
    "install": (
        "let jobs run by themselves",
        "Let jobs run by themselves, or bring what is installed up to date: by timers of systemd, or else by cron.",
    ),
    "remove": ("stop jobs from running by themselves", "Remove what 'vbackup schedule install' has installed."),
    "list": (
        "list when jobs run by themselves",
        "List the jobs: whether each runs by itself, when next, and whether that is what the configuration says.",
    ),
}


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "schedule",
        description="Let jobs of the configuration run by themselves, or list when they do.",
        allow_abbrev=False,
    )
    add_common(parser, asks_libvirt=False, reads_config=True)
    subcommands = add_subcommands(parser, "schedule_command")
    for name, (purpose, description) in _COMMANDS.items():
        one = subcommands.add_parser(name, help=purpose, description=description, allow_abbrev=False)
        add_common(one, asks_libvirt=False, reads_config=True)
        one.add_argument(
            "words",
            metavar="[JOB ...]",
            nargs="*",
            action=ShownAsRequired,
            help="name of a job (default: all that have times; with remove, all that are installed)",
        )
        _add_place(one)
        if name != "list":
            one.add_argument("--dry-run", action="store_true", help="only print what would be written or removed")
        one.set_defaults(has_loose_words=True)


def _add_place(parser: Any) -> None:
    parser.add_argument("--user", action="store_true", help="work on the user's systemd instead of the system's")
    parser.add_argument(
        "--with",
        dest="way",
        choices=("systemd", "cron"),
        help="what starts the jobs (default: systemd if it manages the system, else cron)",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=Path,
        default=Path("/"),
        help="root directory of another system, such as an image that is being built (default: /)",
    )
    parser.add_argument(
        "--program",
        metavar="PATH",
        type=Path,
        help="the vbackup that the jobs start (default: this one; with --root, /usr/bin/vbackup)",
    )
