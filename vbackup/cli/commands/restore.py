"""``vbackup restore``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_exclusive, add_point, add_scripts, add_wait_lock
from vbackup.cli.copies import add_from
from vbackup.cli.values import directory, domain_name, speed_bytes_s
from vbackup.model import ImageFormat


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "restore",
        description="Write the disks of a backup as DIR/DEV.FORMAT, or to block devices, and a DIR/domain.xml that"
        " refers to them, or restore the disks of a domain that is off in place.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    add_from(parser)
    purpose = "restore only these disks; with a PATH to that block device, or to that new file, and not to DIR"
    add_point(parser, "restore", has_id=True, disks=("DEV[=PATH]", purpose))
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", metavar="DIR", type=directory, help="directory to write to; nothing is overwritten")
    where.add_argument(
        "--in-place",
        action="store_true",
        help="restore the domain's own disks, while it is off: by writing only what differs, or else in full",
    )
    parser.add_argument(
        "--keep-old",
        action="store_true",
        help="with --in-place: keep the images of disks that are restored in full, as NAME.before-ID",
    )
    parser.add_argument(
        "--pool",
        metavar="NAME",
        help="with --output: write the disks to new volumes DOMAIN-DEV of this libvirt storage pool, and not to DIR",
    )
    parser.add_argument(
        "--format",
        choices=[image_format.value for image_format in ImageFormat],
        help="image format (default: qcow2)",
    )
    parser.add_argument("--define", action="store_true", help="define the restored domain in libvirt")
    parser.add_argument(
        "--name",
        metavar="NEW",
        type=domain_name,
        help="with --define or --live: a new domain of this name, with new UUID and MAC addresses, beside the original",
    )
    parser.add_argument("--start", action="store_true", help="define the restored domain and start it")
    parser.add_argument(
        "--speed",
        metavar="BYTES/S",
        type=speed_bytes_s,
        help="limit the copy speed of each disk (50M, 50MiB/s, 1GB)",
    )
    _add_live(parser)
    add_scripts(parser)
    add_exclusive(parser)
    add_wait_lock(parser)
    parser.add_argument(
        "--no-checkpoint",
        action="store_true",
        help="do not let the next backup start from this one: after --output it is a full, after --in-place an"
        " incremental on the newest",
    )


def _add_live(parser: Any) -> None:
    parser.add_argument(
        "--live",
        action="store_true",
        help="with --output: define and start the domain at once, and copy its data home while it runs",
    )
    parser.add_argument("--resume", action="store_true", help="with --live: go on with what was interrupted")
    parser.add_argument(
        "--abort", action="store_true", help="with --live: end the domain and remove what was restored and written"
    )
    parser.add_argument("--yes", action="store_true", help="with --abort: do it")
