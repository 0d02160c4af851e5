"""``vbackup init``: create a repository."""

from __future__ import annotations

import argparse

from vbackup.api import create_repository
from vbackup.cli.context import Context
from vbackup.errors import Status


def run(_options: argparse.Namespace, context: Context) -> int:
    """Create the repository and print its id."""
    with context.reporting() as reporter:
        repository = create_repository(context.repository_path(), reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.init/1", {"path": str(repository.path), "id": repository.id})
    elif not context.is_quiet:
        print(f"Repository {repository.id} in {repository.path}")
    return Status.DONE
