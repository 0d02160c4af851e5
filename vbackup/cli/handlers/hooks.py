"""``vbackup hooks``: install the script that libvirt calls at each start and end of a domain, or remove it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vbackup.cli import output
from vbackup.cli.context import Context
from vbackup.errors import Status
from vbackup.hooks import daemons
from vbackup.hooks.install import Place, State

_STATES = {
    State.INSTALLED: "is installed.",
    State.OUTDATED: "is not as this vbackup installs it; 'vbackup hooks install' brings it up to date.",
    State.FOREIGN: "is somebody else's script; vbackup leaves it alone.",
    State.ABSENT: "is not installed.",
}


def run(options: argparse.Namespace, context: Context) -> int:
    """Do it, and tell what is there now. Raises StorageError."""
    place = Place(options.root)
    changed = False
    told: tuple[daemons.Daemon, ...] = ()
    if options.action == "install":
        changed = place.install()
        # Though it was there already: perhaps a daemon has not seen it yet.
        told = daemons.reload_all() if place.is_here else ()
    elif options.action == "remove":
        changed = place.remove()
    state = place.state()
    if context.as_json:
        document = {
            "action": options.action,
            "path": str(place.path),
            "state": state.value,
            "changed": changed,
            "daemons": [{"name": one.name, "pid": one.pid, "told": one.told} for one in told],
        }
        context.print_document("vbackup.hooks/1", document)
        return Status.DONE
    print(output.plain(f"{place.path} {'is removed.' if state is State.ABSENT and changed else _STATES[state]}"))
    if options.action == "install":
        _print_daemons(told, here=place.is_here)
    return Status.DONE


def _print_daemons(told: Sequence[daemons.Daemon], *, here: bool) -> None:
    for one in told:
        if one.told:
            print(f"{one.name} (process {one.pid}) was told to look for it.")
        else:
            print(f"{one.name} (process {one.pid}) could not be told: reload it, with 'systemctl reload {one.name}'.")
    if not told:
        print(f"libvirt finds it when it starts{'; none runs here now' if here else ' there'}.")
