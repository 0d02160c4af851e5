"""``vbackup restore``: write the disks and the domain XML of a backup to a directory."""

from __future__ import annotations

import argparse
import os
import shlex

from vbackup.cli import output
from vbackup.cli.arguments import backup_of, domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status, domain_argument
from vbackup.model import ImageFormat
from vbackup.operations import restore
from vbackup.repository import manifest
from vbackup.repository.repository import Repository


def run(options: argparse.Namespace, context: Context) -> int:
    """Restore the backup and print the paths of what was written."""
    backup_id = backup_of(options)
    repository = Repository.open(context.repository_path())
    request = restore.RestoreRequest(
        domain=context.uuid_of(repository, domain_of(options)),
        output=options.output,
        backup_id=backup_id,
        at=options.at,
        host=options.host,
        disks=tuple(options.disk),
        is_mixed=options.mixed,
        image_format=ImageFormat(options.format),
        checkpoint=not options.no_checkpoint,
    )
    with context.reporting(domain_of(options)) as reporter:
        done = restore.run(request, repository=repository, reporter=reporter, stop=context.stop)
    if context.as_json:
        document = {
            "id": done.backup.id,
            "domain": {"name": done.backup.domain_name, "uuid": done.backup.domain_uuid},
            "host": None if done.backup.host is None else manifest.host_document(done.backup.host),
            "disks": [
                {
                    "dev": dev,
                    "file": str(path),
                    "format": options.format,
                    "backup": done.backups[dev],
                    "checkpoint": dev in done.checkpoints,
                }
                for dev, path in done.images.items()
            ],
            "domain_xml": str(done.domain_xml),
            "closed": [str(path) for path in done.closed],
            "left_out": [manifest.left_out_document(left) for left in done.left_out],
            "shared": [manifest.left_out_document(left) for left in done.shared],
        }
        context.print_document("vbackup.restore/1", document)
        return Status.DONE
    if not context.is_quiet:
        _print(done, context)
    return Status.DONE


def _print(done: restore.Restored, context: Context) -> None:
    """Print what was written, and the commands that start the domain from it."""
    print(output.plain(f"Restored backup {done.backup.id} of domain {done.backup.domain_name}:"))
    for path in (*done.images.values(), done.domain_xml):
        print(output.plain(f"  {path}"))
    virsh = ["virsh"] if context.uri is None else ["virsh", "-c", context.uri]
    print("To run it:")
    if done.closed and os.geteuid() == 0:
        directories, them = shlex.join(map(str, done.closed)), "it" if len(done.closed) == 1 else "them"
        print(output.plain(f"  chmod o+x {directories}  # or QEMU, as another user, cannot enter {them}"))
    print(output.plain(f"  {shlex.join([*virsh, 'define', str(done.domain_xml)])}"))
    print(output.plain(f"  {shlex.join([*virsh, 'start'])} {domain_argument(done.backup.domain_name)}"))
