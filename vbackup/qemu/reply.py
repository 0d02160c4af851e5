"""Parse a QMP reply that vbackup.domain.passthrough received as text."""

from __future__ import annotations

import json
from typing import Any

from vbackup.errors import MalformedError, QmpError
from vbackup.fields import Fields


def parse(command: str, text: str) -> Any:
    """Return the "return" member of ``text``, the reply to ``command`` (QEMU's docs/interop/qmp-spec.rst).

    Raises QmpError if it is an error reply, MalformedError if it is not a QMP reply.
    """
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise MalformedError(f"QEMU's reply to {command} is not JSON ({err}).") from err
    fields = Fields(reply, f"the reply to {command}", MalformedError)
    if "error" in fields:
        error = fields.object("error")
        raise QmpError(command, error.text("class"), error.text("desc"))
    if "return" not in reply:
        raise MalformedError(f"QEMU's reply to {command} has neither a return nor an error.")
    return reply["return"]
