"""Small QMP schemas, for tests."""

from __future__ import annotations

from typing import Any

from vbackup.qapi.schema import Schema


def schema(**types: Any) -> Schema:
    """A command ``c`` whose arguments are of type ``a``."""
    entries = [
        {"name": "c", "meta-type": "command", "arg-type": "a", "ret-type": "0"},
        *(
            {"name": json_type, "meta-type": "builtin", "json-type": json_type}
            for json_type in ("string", "number", "int", "boolean", "null", "value")
        ),
        {"name": "[a]", "meta-type": "array", "element-type": "a"},
        *({"name": name, **entry} for name, entry in types.items()),
    ]
    return Schema(entries)


def members(*pairs: str, **more: Any) -> dict[str, Any]:
    """An object type from name:type pairs; a ? after the name makes a member optional."""
    listed = []
    for pair in pairs:
        name, _, kind = pair.partition(":")
        listed.append({"name": name.rstrip("?"), "type": kind, **({"default": None} if name.endswith("?") else {})})
    return {"meta-type": "object", "members": listed, **more}
