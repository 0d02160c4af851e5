"""Arguments that several commands share, and the domains they name."""

from __future__ import annotations

import argparse
import os
from typing import Any

from vbackup.errors import UsageError


def add_common(parser: argparse.ArgumentParser, *, at_top: bool = False) -> None:
    """Add the options of every command; ``at_top``: those that may also come before the command's name."""

    def default(value: Any) -> Any:
        return value if at_top else argparse.SUPPRESS

    parser.add_argument(
        "-c",
        "--connect",
        metavar="URI",
        default=default(None),
        help="libvirt connection URI (default: LIBVIRT_DEFAULT_URI, or what libvirt finds)",
    )
    verbosity = parser.add_mutually_exclusive_group()
    verbosity.add_argument(
        "-q", "--quiet", action="store_true", default=default(False), help="print only results, warnings and errors"
    )
    verbosity.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=default(False),
        help="log all QMP commands and replies on stderr",
    )
    if at_top:
        return
    parser.add_argument(
        "-r",
        "--repository",
        metavar="DIR",
        default=os.environ.get("VBACKUP_REPOSITORY"),
        help="repository directory (default: VBACKUP_REPOSITORY)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument(
        "--progress",
        choices=("auto", "json", "none"),
        default="auto",
        help="auto (default): bars on a terminal, log lines elsewhere; json: one JSON event per line on stderr;"
        " none: no progress output",
    )


def add_domain(parser: argparse.ArgumentParser, *, otherwise: str = "") -> None:
    """Add the domain, positional or as --domain as in virsh; ``otherwise``: what the help says of leaving it out."""
    parser.add_argument("domain", metavar="DOMAIN", nargs="?", help=f"name or UUID of the domain{otherwise}")
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)


def add_domains(parser: argparse.ArgumentParser) -> None:
    """Add one or more domains, listed or all (vbackup.domain.selection)."""
    parser.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="names or UUIDs of domains, or patterns such as 'web*'"
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help="back up all domains that can be backed up")
    parser.add_argument(
        "--exclude", metavar="PATTERN", nargs="+", action="extend", default=[], help="with --all: skip these domains"
    )


def add_disks(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add --disk; ``purpose``: its help."""
    parser.add_argument("--disk", metavar="DEV", nargs="+", action="extend", default=[], help=purpose)


def add_host(parser: argparse.ArgumentParser) -> None:
    """Add --host, which selects among the backups of one domain."""
    parser.add_argument("--host", metavar="HOST", help="only backups made on this host: its name or machine id")


def add_qemu(parser: argparse.ArgumentParser) -> None:
    """Add the QEMU to work on: a domain's, one with a QMP socket, or a storage daemon on image files."""
    add_domain(parser)
    parser.add_argument("--socket", metavar="PATH", help="instead of a domain: QMP socket of a QEMU without libvirt")
    parser.add_argument(
        "--image",
        metavar="[raw:]FILE",
        nargs="+",
        action="extend",
        default=[],
        help="instead of a domain: image files that no process has open, named vda, vdb, ... in this order",
    )


def domain_of(options: argparse.Namespace) -> str:
    """Return the domain that add_domain's arguments name. Raises UsageError if there is none."""
    domain = optional_domain_of(options)
    if domain is None:
        raise UsageError("No domain given.")
    return domain


def optional_domain_of(options: argparse.Namespace) -> str | None:
    """Return the domain that add_domain's arguments name, or None. Raises UsageError."""
    named: str | None = options.domain_option
    positional: str | None = options.domain
    if named is not None and positional is not None and named != positional:
        raise UsageError(f"Two domains given: {positional} and {named}.")
    domain = positional if named is None else named
    if domain == "":
        raise UsageError("The domain name is empty.")
    return domain


def domains_of(options: argparse.Namespace) -> list[str]:
    """Return the words that add_domains' arguments name domains with; none for --all. Raises UsageError."""
    named: str | None = options.domain_option
    words: list[str] = options.domains if named is None else [named]
    for word in options.domains:
        if word not in words:
            raise UsageError(f"Two domains given: {word} and {named}.")
    if options.all and words:
        raise UsageError("Give domains or --all, not both.")
    if options.exclude and not options.all:
        raise UsageError("--exclude needs --all; without it, give only the domains to back up.")
    if not options.all and not words:
        raise UsageError("No domain given.")
    if "" in words:
        raise UsageError("The domain name is empty.")
    return words
