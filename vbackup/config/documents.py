"""Files of the configuration: find them, refuse those that others can change, and read them as one document."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vbackup.config import positions
from vbackup.config.model import Place
from vbackup.errors import ConfigError
from vbackup.files import user_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SYSTEM = Path("/etc/vbackup")
FILE = "vbackup.toml"
DIRECTORY = "conf.d"
#: More than a configuration of a thousand jobs has.
MAX_BYTES = 1024 * 1024
#: How tomllib says that something is there twice, or in two ways.
_TWICE = ("Cannot declare", "Cannot overwrite", "Cannot mutate", "Duplicate")
_AT_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass
class Document:
    """Tables and keys of all files, with their places, and what is wrong with them."""

    tables: dict[str, Any] = field(default_factory=dict)
    places: dict[positions.Path, Place] = field(default_factory=dict)
    faults: list[ConfigError] = field(default_factory=list)
    #: Where a table has its header, or is written in one piece.
    _headers: dict[positions.Path, Place] = field(default_factory=dict)
    _in_one_piece: set[positions.Path] = field(default_factory=set)

    def place(self, path: positions.Path) -> Place:
        """Return where the key or table is, or the nearest table around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(Path(), 0))

    def add(self, file: Path, text: str) -> None:
        """Add the content of a file. What is wrong with it is in ``faults``."""
        found = positions.Positions()
        try:
            found = positions.find(text)
            tables = tomllib.loads(text)
        except positions.TooMuchError as err:
            self._fault(Place(file, err.line), f"This is refused: {err}.")
        except (ValueError, RecursionError) as err:
            self._fault(*_broken(file, text, err, found))
        else:
            for path, line in found.lines.items():
                self.places.setdefault(path, Place(file, line))
            self._merge(self.tables, tables, (), file, found)

    def _merge(
        self, into: dict[str, Any], tables: dict[str, Any], path: positions.Path, file: Path, found: positions.Positions
    ) -> None:
        """Add the tables of a file to those of the files before it: nothing may be there twice."""
        for name, value in tables.items():
            below = (*path, name)
            place = Place(file, found.line(below))
            is_one_piece = not isinstance(value, dict) or below in found.inline
            if name not in into:
                into[name] = {} if isinstance(value, dict) else value
            elif is_one_piece or not isinstance(into[name], dict) or self._is_complete(below, found):
                first = self._headers.get(below, self.place(below))
                what = f"Table [{dotted(below)}]" if isinstance(value, dict) else f"Key {dotted(below)!r}"
                self._fault(place, _already(what, first))
                continue
            if is_one_piece:
                self._in_one_piece.add(below)
            if is_one_piece or below in found.headers:
                self._headers.setdefault(below, place)
            if isinstance(value, dict):
                self._merge(into[name], value, below, file, found)

    def _is_complete(self, path: positions.Path, found: positions.Positions) -> bool:
        """Return True if another file has the whole table, so that this one can add nothing to it."""
        return path in self._in_one_piece or (path in self._headers and path in found.headers)

    def _fault(self, place: Place, fault: str) -> None:
        self.faults.append(ConfigError(os.fspath(place.path), place.line, fault))


def dotted(path: Iterable[str]) -> str:
    """Return the path of a key as TOML writes it: job.nightly.at."""
    return ".".join(
        part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else '"' + part.translate(_ESCAPED) + '"' for part in path
    )


_ESCAPED = {ord('"'): '\\"', ord("\\"): "\\\\"} | {code: f"\\u{code:04x}" for code in (*range(32), 127)}


def _broken(file: Path, text: str, err: Exception, found: positions.Positions) -> tuple[Place, str]:
    """Return where tomllib stopped, and why. What is there twice, it calls by Python's names, so that is found here."""
    if isinstance(err, RecursionError):
        return Place(file, 1), "This is refused: values are nested too deep."
    message = str(err)
    match = _AT_LINE.search(message)
    line = int(match[1]) if match and match[1] else text.rstrip().count("\n") + 1
    twice = _twice(file, line, found) if message.startswith(_TWICE) else None
    return Place(file, line), twice or f"This is not TOML: {message[: match.start()] if match else message}."


def _twice(file: Path, line: int, found: positions.Positions) -> str | None:
    """Return what on the line was there before, and where; None if it cannot be told."""
    statements = found.statements.get(line, [])
    for one in statements:
        if one.before is not None:
            return _already(_what(one), Place(file, one.before))
    for one in statements:
        for length in range(len(one.path) - 1, 0, -1):
            around = one.path[:length]
            if found.line(around) < line or around in found.inline:
                return f"{_what(one)} cannot be added: {dotted(around)!r} is complete at {file}:{found.line(around)}."
    return None


def _what(one: positions.Statement) -> str:
    return f"Table [{dotted(one.path)}]" if one.is_header else f"Key {dotted(one.path)!r}"


def _already(what: str, first: Place) -> str:
    return f"{what} is already at {first}: leave out one of them."


def directory(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """Return where this user's configuration is."""
    environ = os.environ if environ is None else environ
    if (os.geteuid() if uid is None else uid) == 0:
        return SYSTEM
    xdg = environ.get("XDG_CONFIG_HOME", "")
    return (Path(xdg) if xdg.startswith("/") else Path("~").expanduser() / ".config") / "vbackup"


def default_paths(place: Path | None = None) -> tuple[Path, ...]:
    """Return the files of this user's configuration, or of the one in that directory, in the order of reading.

    It is empty if there is none. Raises ConfigError if that cannot be seen.
    """
    place = directory() if place is None else place
    try:
        first = [place / FILE] if os.path.lexists(place / FILE) else []
        more = sorted((place / DIRECTORY).iterdir()) if (place / DIRECTORY).is_dir() else []
    except OSError as err:
        raise ConfigError(os.fspath(place), 0, f"The directory cannot be read: {err.strerror or err}.") from err
    return (*first, *(path for path in more if path.suffix == ".toml" and not path.name.startswith(".")))


def read(paths: Sequence[Path]) -> Document:
    """Return the content of the files as one document. It has the faults of those that cannot be read."""
    document = Document()
    for path in paths:
        try:
            text = _text(path)
        except ConfigError as err:
            document.faults.append(err)
        else:
            document.add(path, text)
    return document


def _text(path: Path) -> str:
    name = os.fspath(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            _refuse_foreign(name, os.fstat(fd))
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        raise ConfigError(name, 0, f"The configuration cannot be read: {why or err}.") from err
    if len(data) > MAX_BYTES:
        raise ConfigError(name, 0, f"The file is larger than {MAX_BYTES // 1024**2} MiB, which no configuration is.")
    try:
        return data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        raise ConfigError(name, line, "This is not UTF-8, which TOML is written in.") from None


def _refuse_foreign(name: str, status: os.stat_result) -> None:
    """Raise ConfigError if somebody else could have written the file: it says what vbackup runs."""
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(name, 0, "This is not a file.")
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            name, 0, f"The file is {user_name(status.st_uid)}'s, who could change what vbackup does: 'chown root' it."
        )
    # A user's own group has nobody else in it where files are made writable for it (umask 002).
    own = (0,) if os.geteuid() == 0 else (0, os.getegid())
    by_group = status.st_mode & stat.S_IWGRP and status.st_gid not in own
    if by_group or status.st_mode & stat.S_IWOTH:
        raise ConfigError(name, 0, "Others can write to the file, and change what vbackup does: 'chmod go-w' it.")
