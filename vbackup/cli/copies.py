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
    from vbackup.api import Connection, OpenedCopies, TargetPlace
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


def place_of(options: argparse.Namespace, target: str) -> TargetPlace:
    """Return a target with what opens it. Raises UsageError."""
    from vbackup.api import TargetPlace

    if not target:
        raise UsageError("The target is empty: give a directory or a URL.")
    return TargetPlace(target)


@contextmanager
def opened(options: argparse.Namespace, context: Context, target: str, reporter: Reporter) -> Iterator[OpenedCopies]:
    """Yield a target that is open for reading."""
    from vbackup.api import open_copies

    cache: Path | None = options.cache
    with open_copies(place_of(options, target), cache=cache, reporter=reporter, stop=context.stop) as copies:
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
        if options.cache is not None:
            raise UsageError("--cache is for what --from reads.")
        with context.connect() as vb:
            yield vb, None
        return
    with (
        context.reporting(steps=False) as warnings,
        opened(options, context, options.from_target, warnings if reporter is None else reporter) as copies,
        connect(context.uri, repository=copies.repository, stop=context.stop) as vb,
    ):
        yield vb, copies


def make_absolute(options: argparse.Namespace) -> None:
    """Make the paths of --from and --cache absolute, for a command that leaves the working directory."""
    if options.from_target and "://" not in options.from_target:
        options.from_target = os.fspath(Path(options.from_target).absolute())
    if options.cache is not None:
        options.cache = options.cache.absolute()


def refuse(options: argparse.Namespace, *names: str) -> None:
    """Raise UsageError if --from was given with an option that needs a repository."""
    if options.from_target is None:
        return
    for name in names:
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} needs a repository, and --from names a target of copies.")
