"""Keep the result of a look at a backup in a JSON file beside its manifest, and read it again.

It is a note: no backup needs it to be read or restored, and one that cannot be read counts as none. What is in it is
for repository.verification, boot_result and fsck_result to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vbackup.errors import ChainError
from vbackup.fields import Fields, parse_json
from vbackup.files import read_regular, replace_text, storage_errors

#: Larger than any result.
_MAX_BYTES = 4 * 1024 * 1024

Result = TypeVar("Result")


def read(path: Path, schema: str, parse: Callable[[Fields], Result]) -> Result | None:
    """Return what ``parse`` makes of the file; None if there is none, it has another schema, or cannot be read."""
    try:
        fields = Fields(parse_json(read_regular(path, max_bytes=_MAX_BYTES).decode()), path.name, ChainError)
        return parse(fields) if fields.text("schema") == schema else None
    except (OSError, ValueError, RecursionError, ChainError):
        return None


def write(path: Path, schema: str, members: Mapping[str, Any]) -> None:
    """Write the file; a reader sees the former one or this one.

    Raises StorageError if it cannot be written, as in a repository that is read-only; NoSpaceError.
    """
    with storage_errors(f"write {path}"):
        replace_text(path, json.dumps({"schema": schema, **members}, indent=2, ensure_ascii=False) + "\n")
