"""``vbackup init``: create a repository."""

from __future__ import annotations

import argparse

from vbackup.cli.context import Context
from vbackup.errors import Status
from vbackup.repository.repository import Repository


def run(_options: argparse.Namespace, context: Context) -> int:
    """Create the repository and print its id."""
    repository = Repository.create(context.repository_path())
    if not repository.locks():
        with context.reporting() as reporter:
            reporter.warning(
                f"The filesystem of {repository.path} does not lock files (flock): two backups of one domain at the"
                " same time can go unnoticed until one of them fails. Another filesystem, or mounting this one with"
                " locks, is safer."
            )
    if context.as_json:
        context.print_document("vbackup.init/1", {"path": str(repository.path), "id": repository.id})
    elif not context.is_quiet:
        print(f"Repository {repository.id} in {repository.path}")
    return Status.DONE
