"""The keys of the configuration as a JSON Schema, for editors and for taplo. Does no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vbackup.config import keys
from vbackup.config.keys import Key, Kind

#: The version that taplo and most editors know.
DRAFT = "http://json-schema.org/draft-07/schema#"
_NAME = "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
_TIME = "^([01][0-9]|2[0-3]):[0-5][0-9]$"
_WINDOW = r"^([01][0-9]|2[0-3]):[0-5][0-9]\s*-\s*(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_PATH = "^(/|~/)"
_TEXT: dict[str, Any] = {"type": "string"}
_HELP = {
    "repository": "A directory with backups, by name.",
    "target": "A place for copies of backups, by name.",
    "job": "What is backed up, when, and what is done with it then.",
    "notify": "Somebody who is told.",
    "defaults": "What holds for each job that does not say otherwise.",
    "metrics": "Figures for Prometheus.",
    "report": "The report for people.",
    "backup": "Options of 'vbackup backup'.",
    "prune": "Options of 'vbackup prune': what is kept.",
    "verify": "Options of 'vbackup verify'.",
    "audit": "Options of 'vbackup audit'.",
    "copy": "Options of 'vbackup copy'.",
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of vbackup.toml."""
    named = {
        kind: {
            "type": "object",
            "description": _HELP[kind],
            "propertyNames": {"pattern": _NAME},
            "additionalProperties": _table(known, keys.BELOW.get(kind, {})),
        }
        for kind, known in keys.NAMED.items()
    }
    single = {
        kind: {"description": _HELP[kind], **_table(known, keys.BELOW.get(kind, {}))}
        for kind, known in keys.SINGLE.items()
    }
    return {
        "$schema": DRAFT,
        "title": "vbackup.toml",
        "description": "Configuration of vbackup: vbackup.toml(5).",
        "type": "object",
        "properties": {**named, **single},
        "additionalProperties": False,
    }


def _table(known: Sequence[Key], below: Mapping[str, Sequence[Key]]) -> dict[str, Any]:
    tables = {name: {"description": _HELP[name], **_table(some, {})} for name, some in below.items()}
    required = [key.name for key in known if key.is_required]
    return {
        "type": "object",
        "properties": {**{key.name: _key(key) for key in known}, **tables},
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _key(key: Key) -> dict[str, Any]:
    help_text = key.help[0].upper() + key.help[1:] + "."
    default = "" if key.default is None else f" Default: {key.default}."
    return {"description": help_text + default, **_value(key)}


def _value(key: Key) -> dict[str, Any]:
    if key.kind is Kind.SECRET:
        return {**_table(keys.SECRET, {}), "minProperties": 1, "maxProperties": 1}
    words = {"enum": list(key.choices)}
    text: dict[str, Any] = words if key.choices else _TEXT
    path = {"type": "string", "pattern": _PATH}
    by_kind: Mapping[Kind, dict[str, Any]] = {
        Kind.FLAG: {"type": "boolean"},
        Kind.WORD: words,
        Kind.FLAG_OR_WORD: {"anyOf": [{"type": "boolean"}, words]},
        Kind.PATH: path,
        Kind.NUMBER: {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+$"}]},
        Kind.LIST: {"anyOf": [text, {"type": "array", "items": text}]},
        Kind.PATHS: {"anyOf": [path, {"type": "array", "items": path}]},
        Kind.DAY_TIMES: {
            "anyOf": [
                {"enum": ["hourly"]},
                {"type": "string", "pattern": _TIME},
                {"type": "array", "items": {"type": "string", "pattern": _TIME}, "minItems": 1},
            ]
        },
        Kind.DAYS: {"anyOf": [{"enum": list(_DAYS)}, {"type": "array", "items": {"enum": list(_DAYS)}, "minItems": 1}]},
        Kind.WINDOW: {"type": "string", "pattern": _WINDOW},
    }
    if key.kind in by_kind:
        return by_kind[key.kind]
    return {"type": ["string", "number"]} if key.kind in keys.NUMBERS else text
