"""``vbackup init``: create a repository."""

from __future__ import annotations

import argparse

from vbackup.api import create_repository, is_encrypted
from vbackup.cli.context import Context
from vbackup.errors import Status

_ENCRYPTION = {
    True: "Its filesystem is encrypted.",
    False: "Its filesystem is not encrypted: whoever gets the disk can read the backups (see vbackup(1)).",
    None: "Whether its filesystem is encrypted is not known.",
}


def run(_options: argparse.Namespace, context: Context) -> int:
    """Create the repository; print its id, and whether its filesystem is encrypted."""
    with context.reporting() as reporter:
        repository = create_repository(context.repository_path(), reporter=reporter)
        encrypted = is_encrypted(repository.path)
    if context.as_json:
        document = {"path": str(repository.path), "id": repository.id, "encrypted": encrypted}
        context.print_document("vbackup.init/1", document)
    elif not context.is_quiet:
        print(f"Repository {repository.id} in {repository.path}")
        print(_ENCRYPTION[encrypted])
    return Status.DONE
