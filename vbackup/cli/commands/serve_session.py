"""``vbackup serve-session``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common
from vbackup.cli.values import count, directory, host_and_port


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "serve-session",
        description="Serve the disks of a pull session over HTTPS, until a signal, or the end of the session, ends it.",
        allow_abbrev=False,
    )
    parser.add_argument("session", metavar="ID", help="id of the session")
    add_common(parser)
    parser.add_argument("--http", action="store_true", required=True, help="serve over HTTPS, the only way there is")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=host_and_port,
        default=("localhost", 0),
        help="where to listen; port 0 is any that is free (default: localhost:0)",
    )
    parser.add_argument(
        "--tls-creds",
        metavar="DIR",
        type=directory,
        required=True,
        help="directory with server-cert.pem, server-key.pem and ca-cert.pem",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=directory,
        required=True,
        help="file with the token that clients have to send; only you can read it",
    )
    parser.add_argument(
        "--verify-peer",
        action="store_true",
        help="clients also need a certificate that the CA in ca-cert.pem has signed",
    )
    parser.add_argument(
        "--max-readers", metavar="N", type=count, default=8, help="requests for data at the same time (default: 8)"
    )
