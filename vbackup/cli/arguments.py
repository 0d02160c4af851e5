"""Arguments that several commands share, and the domains that they name."""

from __future__ import annotations

import argparse
import os
from typing import Any

from vbackup.errors import UsageError


def add_common(parser: argparse.ArgumentParser, *, at_top: bool = False) -> None:
    """The options of every command; they may stand before or behind its name."""

    def default(value: Any) -> Any:
        return value if at_top else argparse.SUPPRESS

    parser.add_argument(
        "-c", "--connect", metavar="URI", default=default(None), help="libvirt URI (default: LIBVIRT_DEFAULT_URI)"
    )
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument(
        "-q", "--quiet", action="store_true", default=default(False), help="only the result, warnings and errors"
    )
    loudness.add_argument(
        "-v", "--verbose", action="store_true", default=default(False), help="every QMP command and reply, on stderr"
    )
    if at_top:
        return
    parser.add_argument(
        "-r",
        "--repository",
        metavar="DIR",
        default=os.environ.get("VBACKUP_REPOSITORY"),
        help="the repository (default: VBACKUP_REPOSITORY)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--progress",
        choices=("auto", "json", "none"),
        default="auto",
        help="bars on a terminal, log lines elsewhere; one JSON event a line on stderr; nothing",
    )


def add_domain(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The domain, by position or with --domain as in virsh."""
    parser.add_argument(
        "domain", metavar="DOMAIN", nargs="?", help="name or UUID" + ("" if required else " (default: all)")
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)


def add_domains(parser: argparse.ArgumentParser) -> None:
    """One domain or several, as words or all there are; see vbackup.selection."""
    parser.add_argument("domains", metavar="DOMAIN", nargs="*", help="names, UUIDs, or patterns such as 'web*'")
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help="all domains that can be backed up")
    parser.add_argument(
        "--exclude", metavar="PATTERN", nargs="+", action="extend", default=[], help="with --all: not these domains"
    )


def add_qemu(parser: argparse.ArgumentParser) -> None:
    """Which QEMU: a domain's, one behind a QMP socket, or a storage daemon on image files."""
    add_domain(parser)
    parser.add_argument("--socket", metavar="PATH", help="instead of a domain: a QMP socket of a QEMU without libvirt")
    parser.add_argument(
        "--image",
        metavar="[raw:]FILE",
        nargs="+",
        action="extend",
        default=[],
        help="instead of a domain: image files that nothing has open, called vda, vdb, ... in this order",
    )


def domain_of(options: argparse.Namespace) -> str:
    """The domain, given by position or with --domain. Raises UsageError."""
    domain = optional_domain_of(options)
    if domain is None:
        raise UsageError("No domain given.")
    return domain


def optional_domain_of(options: argparse.Namespace) -> str | None:
    """The domain where one was given."""
    named: str | None = options.domain_option
    positional: str | None = options.domain
    if named is not None and positional is not None and named != positional:
        raise UsageError(f"Two domains given: {positional} and {named}.")
    domain = positional if named is None else named
    if domain == "":
        raise UsageError("The domain's name is empty.")
    return domain


def domains_of(options: argparse.Namespace) -> list[str]:
    """The words for domains, given by position or with --domain; none where all are meant. Raises UsageError."""
    named: str | None = options.domain_option
    words: list[str] = options.domains if named is None else [named]
    for word in options.domains:
        if word not in words:
            raise UsageError(f"Two domains given: {word} and {named}.")
    if options.all and words:
        raise UsageError("Give domains or --all, not both.")
    if options.exclude and not options.all:
        raise UsageError("--exclude is for --all; leave out the names instead.")
    if not options.all and not words:
        raise UsageError("No domain given.")
    if "" in words:
        raise UsageError("The domain's name is empty.")
    return words
