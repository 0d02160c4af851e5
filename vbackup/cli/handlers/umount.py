"""``vbackup umount``: end a mount."""

from __future__ import annotations

import argparse

from vbackup.api import UmountRequest
from vbackup.cli import output
from vbackup.cli.context import Context
from vbackup.errors import Status


def run(options: argparse.Namespace, context: Context) -> int:
    """Unmount, and say so."""
    with context.connect_to_libvirt() as vb:
        done = vb.umount(UmountRequest(options.directory.absolute(), is_forced=options.force))
    if context.as_json:
        context.print_document("vbackup.umount/1", {"directory": str(done.directory), "was_dead": done.was_dead})
    elif not context.is_quiet:
        dead = " Its process had been killed; what it had left was removed." if done.was_dead else ""
        print(output.plain(f"{done.directory} is unmounted.{dead}"))
    return Status.DONE
