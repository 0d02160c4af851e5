"""``vbackup notify``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import ShownAsRequired, add_common, add_subcommands

_COMMANDS = {
    "list": (
        "list who is told what",
        "List the notifiers of the configuration: how, of what and of which jobs each is told, and its last message.",
    ),
    "test": ("send a test message", "Send a test message to the notifiers of these names, or to all."),
    "overdue": (
        "tell what is overdue",
        "Tell the notifiers which domains are overdue, unless they know. A run does that, too; this is without one.",
    ),
}


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "notify",
        description="List who is told what becomes of the backups, send a test message, or tell what is overdue.",
        allow_abbrev=False,
    )
    add_common(parser, asks_libvirt=False, reads_config=True)
    subcommands = add_subcommands(parser, "notify_command")
    for name, (purpose, description) in _COMMANDS.items():
        one = subcommands.add_parser(name, help=purpose, description=description, allow_abbrev=False)
        add_common(one, asks_libvirt=False, reads_config=True)
        if name != "overdue":
            one.add_argument(
                "words",
                metavar="[NAME ...]",
                nargs="*",
                action=ShownAsRequired,
                help="name of a notifier in the configuration (default: all)",
            )
            one.set_defaults(has_loose_words=True)
