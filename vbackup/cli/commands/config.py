"""``vbackup config``: its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vbackup.cli.arguments import add_common, add_subcommands


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "config",
        description="Check and show the configuration, make a first one from what libvirt has, or get back the one that"
        " is kept in a repository.",
        allow_abbrev=False,
    )
    add_common(parser, of_hosts=True, reads_config=True)
    subcommands = add_subcommands(parser, "config_command")
    _add_check(subcommands)
    _add_show(subcommands)
    _add_schema(subcommands)
    _add_init(subcommands)
    _add_recover(subcommands)


def _add_check(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "check",
        help="say what is wrong with the configuration",
        description="Say all that is wrong with the configuration, with its place: in the files, and what libvirt, the"
        " repositories, the targets of copies and the files of secrets show. Nothing is changed.",
        allow_abbrev=False,
    )
    add_common(parser, asks_libvirt=False, reads_config=True)
    parser.add_argument("--offline", action="store_true", help="look at the files of the configuration only")


def _add_show(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "show",
        help="print what holds",
        description="Print the configuration as it holds, in TOML: what the files say, and as comments the defaults of"
        " what they do not say.",
        allow_abbrev=False,
    )
    add_common(parser, asks_libvirt=False, reads_config=True)
    parser.add_argument("--origin", action="store_true", help="with the file and line of each key")


def _add_schema(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "schema",
        help="print the JSON Schema of the configuration",
        description="Print the JSON Schema of the configuration, for editors and for taplo.",
        allow_abbrev=False,
    )
    add_common(parser, asks_libvirt=False)


def _add_init(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "init",
        help="propose a configuration",
        description="Print a first configuration with comments, from what libvirt has: a nightly backup of all domains,"
        " with retention and verification, to the repository that -r names.",
        allow_abbrev=False,
    )
    add_common(parser, of_hosts=True)
    _add_output(parser)


def _add_recover(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "recover",
        help="print the configuration that is kept in a repository",
        description="Print the configuration that runs have kept in the repository, one for each host. Secrets are not"
        " in it, only where they were.",
        allow_abbrev=False,
    )
    add_common(parser, asks_libvirt=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--host",
        metavar="HOST",
        help="that of the host with this name, or of this file, without .toml (default: this host's, or the only one)",
    )
    which.add_argument("--list", action="store_true", help="only list the hosts that have one there")
    _add_output(parser)


def _add_output(parser: Any) -> None:
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="write it to this file, which does not exist yet (default, and -: standard output)",
    )
