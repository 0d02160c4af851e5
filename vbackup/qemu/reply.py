"""Take apart a QMP reply that came as text; vbackup.domain.passthrough brings it."""

from __future__ import annotations

import json
from typing import Any

from vbackup.errors import MalformedError, QmpError
from vbackup.fields import Fields


def parse(command: str, text: str) -> Any:
    """What is behind "return" in the reply to ``command``.

    Raises QmpError for an error reply and MalformedError for what is no QMP reply.
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
