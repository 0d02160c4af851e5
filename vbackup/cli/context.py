"""What every command needs: the host, the repository, where to print."""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbackup.cli import reporters
from vbackup.errors import UsageError
from vbackup.report import Labelling
from vbackup.stop import Stop

if TYPE_CHECKING:
    from vbackup.repository.repository import Repository


class Context:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace, stop: Stop) -> None:
        self.stop = stop
        self.uri: str | None = options.connect
        self.as_json: bool = options.json
        self._repository: str | None = options.repository
        self._progress: str = options.progress
        self._quiet: bool = options.quiet

    def reporting(self) -> AbstractContextManager[Labelling]:
        """Show what the work in the block tells; print its result after the block."""
        return reporters.choose(self._progress, quiet=self._quiet)

    @property
    def has_repository(self) -> bool:
        """True if one was named."""
        return bool(self._repository)

    def repository_path(self) -> Path:
        """The directory given with -r or VBACKUP_REPOSITORY. Raises UsageError."""
        if not self._repository:
            raise UsageError("No repository given: use -r DIR, or set VBACKUP_REPOSITORY.")
        return Path(self._repository)

    def repository(self) -> Repository:
        """The repository there. Raises UsageError, StorageError."""
        from vbackup.repository.repository import Repository

        return Repository.open(self.repository_path())

    def print_document(self, schema: str, document: dict[str, Any]) -> None:
        """Print the one JSON document of this command."""
        print(json.dumps({"schema": schema, **document}, indent=2, ensure_ascii=False, default=str))


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
