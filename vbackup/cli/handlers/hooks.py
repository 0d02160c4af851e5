"""``vbackup hooks``: install or remove the script that libvirt calls when a domain starts or ends."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vbackup.api import HookDaemon, HookPlace, HookState, reload_daemons
from vbackup.cli import output
from vbackup.cli.context import Context
from vbackup.errors import Status

_STATES = {
    HookState.INSTALLED: "is installed.",
    HookState.OUTDATED: "differs from what this vbackup installs; 'vbackup hooks install' updates it.",
    HookState.FOREIGN: "is not a vbackup script; vbackup leaves it alone.",
    HookState.ABSENT: "is not installed.",
}


def run(options: argparse.Namespace, context: Context) -> int:
    """Install or remove the script, and print its state. Raises StorageError."""
    place = HookPlace(options.root)
    changed = False
    reloaded: tuple[HookDaemon, ...] = ()
    if options.action == "install":
        changed = place.install()
        # Even if the script was there already: a daemon may not have looked for it since.
        reloaded = reload_daemons() if place.is_here else ()
    elif options.action == "remove":
        changed = place.remove()
    state = place.state()
    if context.as_json:
        document = {
            "action": options.action,
            "path": str(place.path),
            "state": state.value,
            "changed": changed,
            "daemons": [{"name": daemon.name, "pid": daemon.pid, "told": daemon.told} for daemon in reloaded],
        }
        context.print_document("vbackup.hooks/1", document)
        return Status.DONE
    if context.is_quiet and options.action != "status":
        with context.reporting() as reporter:
            for daemon in reloaded:
                if not daemon.told:
                    reporter.warning(_told(daemon))
        return Status.DONE
    print(output.plain(f"{place.path} {'was removed.' if state is HookState.ABSENT and changed else _STATES[state]}"))
    if options.action == "install":
        _print_daemons(reloaded, here=place.is_here)
    return Status.DONE


def _print_daemons(reloaded: Sequence[HookDaemon], *, here: bool) -> None:
    for daemon in reloaded:
        print(_told(daemon))
    if not reloaded:
        print(f"libvirt finds it when it starts{'; no libvirt daemon is running here' if here else ' there'}.")


def _told(daemon: HookDaemon) -> str:
    process = f"{daemon.name} (process {daemon.pid})"
    if daemon.told:
        return f"{process} was reloaded to find it."
    return f"{process} could not be reloaded; run 'systemctl reload {daemon.name}'."
