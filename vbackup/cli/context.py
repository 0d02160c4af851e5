"""What every handler needs: libvirt's URI, the repository's path, reporters, JSON output."""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from vbackup.cli import reporters
from vbackup.errors import UsageError
from vbackup.report import Labelling
from vbackup.stop import Stop


class Context:
    """What the options of every command say, for one run of vbackup."""

    def __init__(self, options: argparse.Namespace, stop: Stop) -> None:
        self.stop = stop
        self.uri: str | None = options.connect
        self.as_json: bool = options.json
        self._repository: str | None = options.repository
        self._progress: str = options.progress
        self.is_quiet: bool = options.quiet

    def reporting(self, domain: str | None = None, *, steps: bool = True) -> AbstractContextManager[Labelling]:
        """Return a context manager that yields a reporter; print results after its block.

        ``domain`` is the only domain that the command works on. A command without steps only has warnings to report:
        they are messages to its user, not the lines of a log.
        """
        return reporters.choose(self._progress, quiet=self.is_quiet or not steps, domain=domain)

    @property
    def has_repository(self) -> bool:
        """True if a repository was given with -r or VBACKUP_REPOSITORY."""
        return bool(self._repository)

    def repository_path(self) -> Path:
        """Return the directory given with -r or VBACKUP_REPOSITORY. Raises UsageError."""
        if not self._repository:
            raise UsageError("No repository given: use -r DIR, or set VBACKUP_REPOSITORY.")
        return Path(self._repository)

    def print_document(self, schema: str, document: dict[str, Any]) -> None:
        """Print the JSON document that is the command's result."""
        print(json.dumps({"schema": schema, **document}, indent=2, ensure_ascii=False, default=str))
