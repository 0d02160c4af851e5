"""Arguments of how the backup of a domain is made, wherever it goes: to a repository, or to a stream."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup.cli.arguments import add_devs, add_disks, add_exclusive, add_quiesce, add_wait_lock
from vbackup.cli.values import absolute_directory, directory, host_and_ports, milliseconds, speed_bytes_s
from vbackup.errors import UsageError
from vbackup.model import MAX_MEDIUM_BYTES, Compression, Transport

if TYPE_CHECKING:
    from vbackup.api import TlsPlace

#: Where stages are by default: the records of what was streamed, and room for one backup of each domain at a time.
STAGE = Path("/var/lib/vbackup/streams")


def add_making(parser: argparse.ArgumentParser) -> None:
    """Add how the backup of a domain is made, wherever it goes."""
    add_disks(parser, "back up only these disks")
    add_devs(parser, "--exclude-disk", "do not back up these disks")
    add_exclusive(parser)
    add_quiesce(parser)
    _add_copying(parser)
    add_wait_lock(parser)
    parser.add_argument(
        "--fleecing",
        metavar="DIR",
        type=directory,
        help="save data in DIR, on a fast disk of the domain's host, before the guest overwrites it: the guest does not"
        " wait for the repository (default for data that comes by SSH: /var/tmp)",
    )
    parser.add_argument(
        "--no-fleecing", action="store_true", help="let the guest wait for the network, where data comes by SSH"
    )
    parser.add_argument(
        "--transport",
        choices=[transport.value for transport in Transport],
        default=Transport.AUTO.value,
        help="how the data comes here from another host: ssh; tls: QEMU connects to a port of this host; path: its QEMU"
        " writes to storage that both hosts have at the same path; auto (default): path if the repository is there,"
        " otherwise ssh",
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT[-PORT]",
        type=host_and_ports,
        help="with --transport tls: name or address of this host, and the ports, of which each backup takes one",
    )
    parser.add_argument(
        "--tls-creds",
        metavar="DIR",
        type=directory,
        help="with --transport tls: directory of this host with ca-cert.pem, server-cert.pem and server-key.pem, or"
        " keys.psk",
    )
    parser.add_argument(
        "--hypervisor-tls-creds",
        metavar="DIR",
        type=absolute_directory,
        help="with --transport tls: directory of the hypervisor with ca-cert.pem, client-cert.pem and client-key.pem,"
        " or keys.psk (default: /etc/pki/libvirt-nbd or /etc/pki/qemu)",
    )
    parser.add_argument(
        "--with-media",
        action="store_true",
        help="back up the media in CD-ROM and floppy drives too, such as seeds of cloud-init: raw image files of up to"
        f" {MAX_MEDIUM_BYTES // 1024**2} MiB",
    )


def _add_copying(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--speed", metavar="BYTES/S", type=speed_bytes_s, help="limit the copy speed of each disk (50M, 50MiB/s, 1GB)"
    )
    parser.add_argument(
        "--max-latency",
        metavar="TIME",
        type=milliseconds,
        help="copy more slowly while the guest's own requests take longer than this on average (20, 20ms, 0.5s)",
    )
    parser.add_argument(
        "--compress",
        nargs="?",
        choices=[compression.value for compression in Compression],
        default=Compression.NONE.value,
        const=Compression.AUTO.value,
        help="compress the images (default: none; auto, or no value: zstd if QEMU has it, otherwise zlib)",
    )
    parser.add_argument(
        "--allow-reflink",
        action="store_true",
        help="let images share data with the disks, where both are on one filesystem that can do that (XFS, btrfs):"
        " quick, and takes no space, but a bad block then hits both",
    )


def add_stage(parser: argparse.ArgumentParser) -> None:
    """Add --stage."""
    parser.add_argument(
        "--stage",
        metavar="DIR",
        type=directory,
        default=STAGE,
        help="directory in which backups are made before they are sent, and the record of those that were sent"
        f" (default: {STAGE})",
    )


def add_log(parser: argparse.ArgumentParser, default: str = "stderr") -> None:
    """Add --log."""
    parser.add_argument(
        "--log", metavar="FILE", type=directory, help=f"write messages to the end of this file (default: {default})"
    )


def tls_of(options: argparse.Namespace) -> TlsPlace | None:
    """Return where TLS is spoken, None with another transport. Raises UsageError if something is missing, or left."""
    given = {
        "--listen": options.listen,
        "--tls-creds": options.tls_creds,
        "--hypervisor-tls-creds": options.hypervisor_tls_creds,
    }
    if options.transport != Transport.TLS.value:
        named = [option for option, value in given.items() if value is not None]
        if named:
            raise UsageError(f"{named[0]} is for --transport tls: give that too, or leave out {named[0]}.")
        return None
    missing = [option for option in ("--listen", "--tls-creds") if given[option] is None]
    if missing:
        raise UsageError(f"--transport tls needs {' and '.join(missing)}.")
    from vbackup.api import TlsPlace  # which 'vbackup --help' does without

    host, ports = options.listen
    return TlsPlace(host, ports, options.tls_creds, options.hypervisor_tls_creds)
