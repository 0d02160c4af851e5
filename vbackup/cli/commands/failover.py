"""``vbackup failover``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_wait_lock
from vbackup.cli.values import console_pattern, guest_command, positive_seconds


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "failover",
        description="Let a standby take over: the links of its network interfaces come up, and it starts. With --test,"
        " boot a copy of the standby without a network instead, and throw away what it writes.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    parser.add_argument("--to", metavar="HOST", required=True, help="URI of the libvirt that has the standby")
    parser.add_argument("--no-start", action="store_true", help="do not start it")
    parser.add_argument("--as-is", action="store_true", help="also if the repository has newer backups")
    parser.add_argument("--force", action="store_true", help="also if the original runs")
    parser.add_argument(
        "--test", action="store_true", help="boot a copy, and see that its guest agent answers, or its screen is in use"
    )
    parser.add_argument(
        "--boot-exec",
        metavar="COMMAND",
        type=guest_command,
        help="with --test: the guest agent runs this command in the guest, which has to exit with status 0",
    )
    parser.add_argument(
        "--boot-console",
        metavar="PATTERN",
        type=console_pattern,
        help="with --test: this regular expression has to match what is written to the serial console",
    )
    parser.add_argument(
        "--boot-timeout", metavar="TIME", type=positive_seconds, help="with --test: how long it may take (default: 5m)"
    )
    add_wait_lock(parser)
