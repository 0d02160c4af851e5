"""``vbackup engine``: its arguments, and those of its commands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vbackup.cli.arguments import add_common, add_scripts, add_subcommands
from vbackup.cli.making import STAGE, add_log, add_stage
from vbackup.cli.values import director_job_time, director_time, directory, job

#: Where restores of a director go by default.
WHERE = Path("/var/lib/vbackup/restored")


def add(commands: Any) -> None:
    """Add the command's parser, with its subcommands."""
    parser = commands.add_parser(
        "engine",
        description="Print the configuration with which a director (Bacula, Bareos) lets vbackup make its backups; and"
        " the commands that this configuration calls.",
        allow_abbrev=False,
    )
    subcommands = add_subcommands(parser, "engine_command")
    _add_config(subcommands)
    reading = subcommands.add_parser(
        "read",
        help="called by a director: back up to standard output",
        description="Back up a domain to standard output, for a job of a director.",
        allow_abbrev=False,
    )
    add_common(reading)
    _add_work(reading)
    for option, kind, what in (
        ("--since", director_time, "the director's last good job had begun"),
        ("--begun", director_job_time, "the director made this job"),
    ):
        reading.add_argument(option, metavar="TIME", type=kind, help=f"when {what}, by its clock (YYYY.MM.DD.hh.mm.ss)")
    add_scripts(reading)
    add_log(reading, "DOMAIN-JOB.log in the stage, which finish prints")
    ending = subcommands.add_parser(
        "finish",
        help="called by a director: end of a backup job",
        description="Commit or undo what a job has read, as the job has ended, and print what it logged.",
        allow_abbrev=False,
    )
    add_common(ending)
    _add_work(ending)
    ending.add_argument(
        "--exit", metavar="STATUS", required=True, help="how the job has ended, in the director's words: OK, or not"
    )
    writing = subcommands.add_parser(
        "write",
        help="called by a director: restore from standard input",
        description="Read a stream from standard input, for a restore job of a director, into the repository"
        " DIR/vbackup.",
        allow_abbrev=False,
    )
    add_common(writing, asks_libvirt=False)
    writing.add_argument("--domain", metavar="DOMAIN", required=True, help="name or UUID of the domain")
    writing.add_argument(
        "--where", metavar="DIR", type=directory, required=True, help="directory that the restore job has as Where"
    )
    add_log(writing, "DIR/vbackup.log")


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domain", metavar="DOMAIN", required=True, help="name or UUID of the domain")
    parser.add_argument("--job-id", metavar="JOB", type=job, required=True, help="the director's id of the job")
    parser.add_argument(
        "--level", metavar="LEVEL", required=True, help="the director's level: Full, Incremental or Differential"
    )
    add_stage(parser)


def _add_config(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "config",
        help="print a director's configuration",
        description="Print the resources for the configuration of a director and of the file daemon on this host.",
        allow_abbrev=False,
    )
    add_common(parser)
    parser.add_argument("--for", choices=["bacula", "bareos"], required=True, dest="director_kind", help="the director")
    parser.add_argument(
        "--domain",
        metavar="DOMAIN",
        nargs="+",
        action="extend",
        default=[],
        help="domains to back up (default: all that libvirt has)",
    )
    for option, what in (
        ("--director", "name of the director (default: bacula-dir or bareos-dir)"),
        ("--client", "name of the file daemon on this host (default: HOST-fd)"),
        ("--address", "address of this host (default: its name)"),
        ("--catalog", "catalog of the director (default: MyCatalog)"),
        ("--storage", "storage of the director (default: File1 or File)"),
        ("--pool", "pool of the director (default: File or Full)"),
        ("--messages", "messages resource of the director (default: Standard)"),
        ("--schedule", "schedule of the director (default: none)"),
    ):
        parser.add_argument(option, metavar="NAME", help=what)
    parser.add_argument(
        "--program", metavar="PATH", type=directory, help="path of vbackup on this host (default: the one that runs)"
    )
    parser.add_argument(
        "--where",
        metavar="DIR",
        type=directory,
        default=WHERE,
        help=f"directory on this host for restores (default: {WHERE})",
    )
    parser.add_argument(
        "--stage", metavar="DIR", type=directory, help=f"directory in which backups are made (default: {STAGE})"
    )
