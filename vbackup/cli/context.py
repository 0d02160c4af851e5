"""What every handler needs: libvirt's URI, the repository's path, reporters, JSON output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbackup.cli import reporters
from vbackup.errors import UsageError
from vbackup.report import Labelling
from vbackup.stop import Stop

if TYPE_CHECKING:
    from vbackup.api import Connection, Fleet, Repository


class Context:
    """What the options of every command say, for one run of vbackup."""

    def __init__(self, options: argparse.Namespace, stop: Stop) -> None:
        self.stop = stop
        self.uris: list[str] = options.uris  #: several for a command that works on several hosts
        self.uri: str | None = self.uris[0] if self.uris else None
        self.as_json: bool = options.json
        self._repository: str | None = options.repository
        self._progress: str = options.progress
        self.is_quiet: bool = options.quiet

    def reporting(
        self, domain: str | None = None, *, steps: bool = True, is_log: bool = True
    ) -> AbstractContextManager[Labelling]:
        """Return a context manager that yields a reporter; print results after its block.

        ``domain`` is the only domain that the command works on. A command without steps only has warnings to report:
        they are messages to its user, not the lines of a log. Nor are its steps without ``is_log``.
        """
        return reporters.choose(self._progress, quiet=self.is_quiet or not steps, domain=domain, is_log=is_log)

    def connect(self) -> Connection:
        """Return a connection to libvirt, which is reached when it is needed, and the repository, which is opened now.

        Raises UsageError without a repository, StorageError if it cannot be opened.
        """
        from vbackup import api  # which 'vbackup --help' does without

        return api.connect(self.uri, repository=self.repository_path(), stop=self.stop)

    def connect_all(self, uris: Sequence[str]) -> Fleet:
        """Return a connection to several hosts and the repository, which is opened now. Raises as ``connect``."""
        from vbackup import api  # which 'vbackup --help' does without

        return api.connect_all(uris, repository=self.repository_path(), stop=self.stop)

    def connect_to_libvirt(self) -> Connection:
        """Return a connection to libvirt and the repository, if there is one: both are opened when they are needed."""
        from vbackup.api import Connection  # which 'vbackup --help' does without

        return Connection(self.uri, repository=self._repository, stop=self.stop)

    @property
    def has_repository(self) -> bool:
        """True if a repository was given with -r or VBACKUP_REPOSITORY."""
        return bool(self._repository)

    def repository_path(self) -> Path:
        """Return the directory given with -r or VBACKUP_REPOSITORY. Raises UsageError."""
        if not self._repository:
            raise UsageError("No repository given: use -r DIR, or set VBACKUP_REPOSITORY.")
        return Path(self._repository)

    def uuids_of(self, repository: Repository, words: Sequence[str]) -> list[str]:
        """Return the UUIDs of the domains that words name, each once: by name, UUID or pattern of the newest name.

        Raises what ``uuid_of`` raises, also if nothing matches a pattern.
        """
        from vbackup import api  # which 'vbackup --help' does without

        with api.connect(self.uri, repository=repository) as vb, self.reporting() as reporter:
            return vb.uuids_of(words, reporter=reporter)

    def uuid_of(self, repository: Repository, domain: str) -> str:
        """Return the UUID of a domain of the repository, given by name or UUID.

        Of several domains that have had the name, it is the one that libvirt has under this name now, which a warning
        says. Raises DomainNotFoundError; AmbiguousNameError if libvirt has none of them, or cannot be reached.
        """
        from vbackup import api  # which 'vbackup --help' does without

        with api.connect(self.uri, repository=repository) as vb, self.reporting() as reporter:
            return vb.uuid_of(domain, reporter=reporter)

    def print_document(self, schema: str, document: dict[str, Any]) -> None:
        """Print the JSON document that is the command's result."""
        print(json.dumps({"schema": schema, **document}, indent=2, ensure_ascii=False, default=str))

    def print_line(self, schema: str, document: dict[str, Any]) -> None:
        """Print the JSON document of a command that goes on: as one line, so that a reader knows where it ends."""
        print(json.dumps({"schema": schema, **document}, ensure_ascii=False, default=str))

    def print_stream(self, schema: str, document: dict[str, Any], name: str, entries: Iterable[dict[str, Any]]) -> None:
        """Print the document with one more member, a list, whose entries are printed as they come, one per line."""
        head = json.dumps({"schema": schema, **document}, indent=2, ensure_ascii=False, default=str)
        print(f"{head.removesuffix('}').rstrip()},")
        print(f'  "{name}": [', end="")
        separator = ""
        for entry in entries:
            print(f"{separator}\n    {json.dumps(entry, ensure_ascii=False)}", end="")
            separator = ","
        print("\n  ]\n}")
