"""``vbackup stream``: its arguments, and those of its commands."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_positional, add_scripts, add_subcommands, add_wait_lock
from vbackup.cli.making import add_log, add_making, add_stage
from vbackup.cli.values import job
from vbackup.model import Level


def add(commands: Any) -> None:
    """Add the command's parser, with its subcommands."""
    parser = commands.add_parser(
        "stream",
        description="Back up a domain to standard output as a tar archive, and restore such archives from standard"
        " input.",
        allow_abbrev=False,
    )
    subcommands = add_subcommands(parser, "stream_command")
    _add_backup(subcommands)
    for name, purpose, text in (
        ("commit", "let later backups start from a stream", "Let later backups start from the one that was streamed."),
        ("abort", "undo a stream", "Undo the backup that was streamed: later ones start from the one before."),
    ):
        end = subcommands.add_parser(name, help=purpose, description=text, allow_abbrev=False)
        add_domain(end)
        add_common(end)
        add_stage(end)
        _add_job(end)
        if name == "commit":
            add_wait_lock(end)
    _add_restore(subcommands)


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--job", metavar="JOB", type=job, required=True, help="name of the job: commit and abort find the backup by it"
    )


def _add_backup(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "backup",
        help="back up a domain to standard output",
        description="Write a backup of a domain to standard output, as a tar archive.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    add_stage(parser)
    _add_job(parser)
    parser.add_argument(
        "--level",
        choices=[level.value for level in Level if level is not Level.COPY],
        default=Level.AUTO.value,
        help="how much to copy; auto (default): incremental for each disk that has a trustworthy base, otherwise full;"
        " incremental: what changed since the newest backup; differential: what changed since the last full; full: the"
        " whole disk",
    )
    add_making(parser)
    add_scripts(parser)
    add_log(parser)


def _add_restore(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "restore",
        help="read streams from standard input",
        description="Read streams from standard input, each complete backup into the repository, or all of them into"
        " whole disks in DIR.",
        allow_abbrev=False,
    )
    add_common(parser, asks_libvirt=False)
    add_positional(
        parser,
        "output",
        "DIR",
        "write the disks as the last stream has them to this directory, new or empty (default: into the repository)",
        shown_as_required=False,
    )
    parser.add_argument("--domain", metavar="DOMAIN", help="accept only streams of this domain: its name or UUID")
    add_log(parser)
