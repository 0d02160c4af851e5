"""What every command needs: the host, the repository, where to print."""

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

    def print_document(self, schema: str, document: dict[str, Any]) -> None:
        """Print the one JSON document of this command."""
        print(json.dumps({"schema": schema, **document}, indent=2, ensure_ascii=False, default=str))
