"""Check a transaction before it is sent: names, the running QEMU's schema, then the rules that no schema has.

This is the only entry point. If it raises, nothing is sent.
"""

from __future__ import annotations

from typing import Any

from vbackup.qapi import rules
from vbackup.qapi.rules import Existing
from vbackup.qapi.schema import Schema


def check(arguments: Any, schema: Schema, *, existing: Existing) -> tuple[str, ...]:
    """Check the arguments of ``transaction``, JSON-ready data, and return warnings, each a sentence with its path.

    ``existing`` has the current bitmaps by node-name. Raises TransactionError for what QEMU is known to refuse, and
    for experimental names; MalformedError if the schema is malformed.
    """
    if isinstance(arguments, dict):
        rules.experimental_names(arguments)
    warnings = schema.check("transaction", arguments)
    return (*warnings, *rules.check(arguments, existing))
