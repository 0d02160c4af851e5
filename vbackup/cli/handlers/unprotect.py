"""``vbackup unprotect``: end the protection of backups."""

from __future__ import annotations

import argparse

from vbackup.cli.context import Context
from vbackup.cli.handlers import protect


def run(options: argparse.Namespace, context: Context) -> int:
    """End the protection and print of which backups."""
    return protect.change(options, context, is_protected=False)
