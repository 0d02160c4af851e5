"""Check a transaction before it is sent: names, the running QEMU's schema, then the rules that no schema has.

The one entry point; nothing is sent where it raises.
"""

from __future__ import annotations

from typing import Any

from vbackup.qapi import rules
from vbackup.qapi.rules import Existing
from vbackup.qapi.schema import Schema


def check(arguments: Any, schema: Schema, *, existing: Existing) -> tuple[str, ...]:
    """Check the arguments of ``transaction``, JSON-ready data, and return warnings, each a sentence with its path.

    ``existing`` has the bitmaps that there are now by node-name. Raises TransactionError for what QEMU would refuse
    for a reason that can be known beforehand, and for experimental names; MalformedError if the schema is none.
    """
    if isinstance(arguments, dict):
        rules.experimental_names(arguments)
    warned = schema.check("transaction", arguments)
    return (*warned, *rules.check(arguments, existing))
