"""Send a transaction to QEMU: all of its actions or none, or none for a test.

vbackup.engine.plan makes a backup's transaction, vbackup.operations.transaction has a user's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vbackup.errors import BusyError, MalformedError, QmpError
from vbackup.qapi.actions import Abort
from vbackup.qemu.monitor import Monitor


def send(monitor: Monitor, arguments: Mapping[str, Any]) -> None:
    """All actions or none: ``arguments`` are those of QMP's transaction.

    Raises BusyError where another block job has a node, QmpError for all else.
    """
    try:
        monitor.execute("transaction", arguments)
    except QmpError as err:
        if err.description.is_busy:
            raise BusyError(f"A block node is busy with another block job; try again when it is done ({err}).") from err
        raise


def prepare_only(monitor: Monitor, actions: Sequence[Mapping[str, Any]], *, qemu: str) -> None:
    """Let QEMU prepare the actions for real and undo them: a trailing abort is refused when all others were prepared.

    ``qemu`` says whose QEMU it is, for the message. Without completion-mode, which only matters when something was
    carried out: abort is not for every mode. Raises what ``send`` raises.
    """
    try:
        send(monitor, {"actions": [*actions, Abort().document()]})
    except QmpError as err:
        if not err.description.is_abort:
            raise
    else:
        raise MalformedError(f"QEMU of {qemu} carried out a transaction that ends in abort.")
