"""Options of targets of copies, and commands that read a target in the place of a repository."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup.cli.context import Context
from vbackup.errors import UsageError

if TYPE_CHECKING:
    from vbackup.api import Connection, OpenedCopies, TargetKeys, TargetPlace, Wanted
    from vbackup.report import Reporter


def add_from(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add --from, for a command that reads a target in the place of a repository."""
    parser.add_argument(
        "--from",
        metavar="TARGET",
        dest="from_target",
        required=required,
        help="a target of copies: a directory or a URL"
        if required
        else "in place of the repository: a target of copies, a directory or a URL; only what is needed is fetched",
    )
    add_cache(parser)
    add_identity(parser)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add --cache."""
    from vbackup.cli.values import directory  # which 'vbackup --help' does without

    parser.add_argument(
        "--cache",
        metavar="DIR",
        type=directory,
        help="directory for manifests, and for images until the command ends (default: /var/cache/vbackup, of other"
        " users than root ~/.cache/vbackup)",
    )


def add_take_over(parser: argparse.ArgumentParser) -> None:
    """Add --take-over."""
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="a vbackup of another machine that seems to work on the domain at the target is dead",
    )


def add_identity(parser: argparse.ArgumentParser) -> None:
    """Add --identity and --target-config: what opens a target."""
    parser.add_argument(
        "--identity",
        metavar="FILE",
        dest="identities",
        action="append",
        default=[],
        help="age identity that opens an encrypted target, in a file that only you can read, or command:PROGRAM which"
        " prints it; can be given several times",
    )
    parser.add_argument(
        "--target-config",
        metavar="FILE",
        type=Path,
        help="file that only you can read, with lines NAME=VALUE such as AWS_ACCESS_KEY_ID: keys and endpoint of a"
        " target in a bucket (default: the environment, then ~/.aws)",
    )


def add_recipients(parser: argparse.ArgumentParser) -> None:
    """Add --recipient and --recipients-file."""
    parser.add_argument(
        "--recipient",
        metavar="age1...",
        dest="recipients",
        action="append",
        default=[],
        help="encrypt with age, to this recipient; can be given several times",
    )
    parser.add_argument(
        "--recipients-file",
        metavar="FILE",
        dest="recipients_files",
        type=Path,
        action="append",
        default=[],
        help="encrypt with age, to the recipients in a file, one a line; can be given several times",
    )


def place_of(options: argparse.Namespace, target: str) -> TargetPlace:
    """Return a target with what opens it. Raises UsageError, IdentityError."""
    from vbackup.api import TargetPlace

    if not target:
        raise UsageError("The target is empty: give a directory or a URL.")
    return TargetPlace(target, keys_of(options), config=options.target_config)


def keys_of(options: argparse.Namespace) -> TargetKeys:
    """Return what encrypts a target and opens it; it is read once. Raises UsageError, IdentityError."""
    from vbackup.api import TargetKeys, read_identities, read_recipients

    if getattr(options, "target_keys", None) is None:
        to = read_recipients(getattr(options, "recipients", []), getattr(options, "recipients_files", []))
        options.target_keys = TargetKeys(to, read_identities(options.identities))
    keys: TargetKeys = options.target_keys
    return keys


@contextmanager
def opened(options: argparse.Namespace, context: Context, target: str, reporter: Reporter) -> Iterator[OpenedCopies]:
    """Yield a target that is open for reading."""
    from vbackup.api import open_copies

    cache: Path | None = options.cache
    with open_copies(
        place_of(options, target),
        cache=cache,
        source=context.repository_path() if context.has_repository else None,
        reporter=reporter,
        stop=context.stop,
    ) as copies:
        yield copies


@contextmanager
def connected(
    options: argparse.Namespace, context: Context, *, reporter: Reporter | None = None
) -> Iterator[tuple[Connection, OpenedCopies | None]]:
    """Yield a connection to the repository, or to the target that --from names, and that target.

    ``reporter``: of what is fetched (default: warnings only).
    """
    from vbackup.api import connect

    if options.from_target is None:
        if options.cache is not None or options.identities:
            raise UsageError("--cache and --identity are for what --from reads.")
        with context.connect() as vb:
            yield vb, None
        return
    with (
        context.reporting(steps=False) as warnings,
        opened(options, context, options.from_target, warnings if reporter is None else reporter) as copies,
        connect(context.uri, repository=copies.repository, stop=context.stop) as vb,
    ):
        yield vb, copies


@contextmanager
def shown(
    options: argparse.Namespace, context: Context, domain: str, wanted: Wanted, *, reporter: Reporter
) -> Iterator[tuple[Connection, str]]:
    """Yield a connection for a command that looks into a point, and the UUID of its domain (name or UUID).

    With --from, what the command reads of the point is fetched from the target.
    """
    with connected(options, context, reporter=reporter) as (vb, target):
        uuid = context.uuid_of(vb.repository, domain)
        if target is not None:
            target.show(uuid, wanted)
        yield vb, uuid


def make_absolute(options: argparse.Namespace) -> None:
    """Make the paths of --from and --cache absolute, and read the keys, for a command that goes to the background."""
    if options.from_target and "://" not in options.from_target:
        options.from_target = os.fspath(Path(options.from_target).absolute())
    if options.cache is not None:
        options.cache = options.cache.absolute()
    if options.from_target is None and options.identities:
        raise UsageError("--identity is for what --from reads.")
    if options.target_config is not None:
        options.target_config = options.target_config.absolute()
    keys_of(options)  # now, while a program that prints an identity has the terminal


def refuse(options: argparse.Namespace, *names: str) -> None:
    """Raise UsageError if --from was given with an option that needs a repository."""
    if options.from_target is None:
        return
    for name in names:
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} needs a repository, and --from names a target of copies.")
