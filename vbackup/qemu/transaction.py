"""Send a transaction to QEMU, or only let QEMU check it.

vbackup.engine.plan makes the transaction of a backup, vbackup.operations.transaction reads a user's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vbackup.errors import BusyError, MalformedError, QmpError
from vbackup.qapi.actions import Abort
from vbackup.qemu.monitor import Monitor

log = logging.getLogger(__name__)


def send(monitor: Monitor, arguments: Mapping[str, Any]) -> None:
    """Send a transaction with these arguments: QEMU executes all its actions or none.

    Raises BusyError if another block job uses a node, and QmpError for all other errors.
    """
    try:
        monitor.execute("transaction", arguments)
    except QmpError as err:
        if err.description.is_busy:
            raise BusyError(f"A block node is busy with another block job; try again when it is done ({err}).") from err
        raise


def tuned(attempt: Callable[[list[dict[str, Any]]], None], actions: list[dict[str, Any]]) -> None:
    """Call ``attempt``, which sends or checks the actions; again without x-perf if QEMU does not take it.

    x-perf is unstable: any QEMU may have changed it, and a copy without it is only slower. Only for vbackup's own
    actions. Raises what ``attempt`` raises.
    """
    try:
        attempt(actions)
    except QmpError as err:
        if not err.description.is_of_performance:
            raise
        log.debug("%s", err)
        plain = [
            {**one, "data": {name: value for name, value in one["data"].items() if name != "x-perf"}} for one in actions
        ]
        attempt(plain)


def prepare_only(monitor: Monitor, actions: Sequence[Mapping[str, Any]], *, qemu: str) -> None:
    """Let QEMU prepare the actions for real and undo them: QEMU fails a trailing abort after preparing all others.

    ``qemu`` names the QEMU in the message. completion-mode is left out: it only matters for actions that are carried
    out, and abort does not support every mode. Raises what ``send`` raises.
    """
    try:
        send(monitor, {"actions": [*actions, Abort().document()]})
    except QmpError as err:
        if not err.description.is_abort:
            raise
    else:
        raise MalformedError(f"QEMU of {qemu} carried out a transaction that ends in abort.")
