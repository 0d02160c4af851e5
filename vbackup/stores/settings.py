"""What a store needs beside its address: keys, region, endpoint; from a file of the user's and from the environment.

The names are those that the vendors' own tools know (AWS_ACCESS_KEY_ID). Values never come from a command line, which
every process of the host can read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from vbackup.errors import StorageError, UsageError

#: A larger file is none with settings.
_MAX_BYTES = 64 * 1024


class Settings(Mapping[str, str]):
    """Settings by name: those of a file first, then the environment's. Its text form has no values, only names."""

    def __init__(self, own: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self._values = {**environment, **own}
        self.own = dict(own)  #: those of the file

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Settings({', '.join(sorted(self.own))})"


def read(path: Path | None) -> Settings:
    """Return the settings in a file, whose lines are NAME=VALUE, over those of the environment; None: no file.

    Raises StorageError if it cannot be read, or others can read it; UsageError if it is not such a file.
    """
    if path is None:
        return Settings({}, os.environ)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            _refuse_open_to_others(path, status)
            data = file.read(_MAX_BYTES + 1)
    except OSError as err:
        raise StorageError(f"Cannot read the settings of the target in {path}: {err.strerror or err}.") from err
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{path} is too large for a file with the settings of a target.")
    return Settings(dict(_lines(path, data)), os.environ)


def _refuse_open_to_others(path: Path, status: os.stat_result) -> None:
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise StorageError(f"{path} has keys that other users can read: run 'chmod 600' on it.")
    if status.st_uid not in (0, os.geteuid()):
        raise StorageError(f"{path} belongs to another user, who can change it: run 'chown' on it.")


def _lines(path: Path, data: bytes) -> Iterator[tuple[str, str]]:
    """Yield names and values. A message never has the text of a line, which can be a secret."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file with the settings of a target.") from None
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise UsageError(f"Line {number} of {path} should be NAME=VALUE, for example AWS_ACCESS_KEY_ID=...")
        yield name, value.strip().strip("\"'")
