"""``vbackup restore``: write a backup's disks and domain XML into a directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vbackup.cli import output
from vbackup.cli.arguments import add_common, add_domain, time
from vbackup.cli.context import Context, domain_of
from vbackup.errors import Status
from vbackup.model import ImageFormat


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "restore",
        description="Write the disks of a backup as DIR/DEV.FORMAT, and DIR/domain.xml that points to them.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--backup", metavar="ID", help="this one (default: the newest)")
    which.add_argument("--at", metavar="TIME", type=time, help="the newest made at TIME or before")
    parser.add_argument("--disk", metavar="DEV", nargs="+", action="extend", default=[], help="only these disks")
    parser.add_argument("--output", metavar="DIR", required=True, type=Path, help="where to; nothing is overwritten")
    parser.add_argument(
        "--format",
        choices=[image_format.value for image_format in ImageFormat],
        default=ImageFormat.QCOW2.value,
        help="of the images (default: qcow2)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, context: Context) -> int:
    """Restore, and tell what was written."""
    from vbackup.operations import restore

    request = restore.RestoreRequest(
        domain=domain_of(options),
        output=options.output,
        backup_id=options.backup,
        at=options.at,
        disks=tuple(options.disk),
        image_format=ImageFormat(options.format),
    )
    repository = context.repository()
    with context.reporting() as reporter:
        done = restore.run(request, repository=repository, reporter=reporter, stop=context.stop)
    if context.as_json:
        document = {
            "id": done.backup.id,
            "domain": {"name": done.backup.domain_name, "uuid": done.backup.domain_uuid},
            "disks": [{"dev": dev, "file": str(path), "format": options.format} for dev, path in done.images.items()],
            "domain_xml": str(done.domain_xml),
        }
        context.print_document("vbackup.restore/1", document)
        return Status.DONE
    print(output.plain(f"Restored backup {done.backup.id} of domain {done.backup.domain_name}:"))
    for path in (*done.images.values(), done.domain_xml):
        print(f"  {path}")
    return Status.DONE
