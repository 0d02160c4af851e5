"""The lines of the keys of a TOML document, which tomllib does not tell. Does no I/O.

What is valid is decided by tomllib alone. This only goes through what it would accept, so it knows no rules but those
that say where a key and a value end; where it finds something else, it stops, and tomllib says what is wrong. It goes
first, because it also refuses what would keep tomllib busy for minutes, or would be nothing that a person wrote.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import sys
from dataclasses import dataclass, field

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: A key with the keys of the tables around it; a table in an array has its number.
Path = tuple[str, ...]

#: tomllib takes time that grows with the square of the parts of a key, and with each level the stack.
MAX_PARTS, MAX_DEPTH = 20, 20
#: Longer than any number, date or word that means something; the time to read a number grows with its square.
MAX_SCALAR = 100

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"')
_LITERAL = re.compile(r"'[^'\n]*'")
_LONG_BASIC = re.compile(r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''(?:[^']|'{1,2}(?!'))*'{3,5}")
_SCALAR = re.compile(r"[^,\]}#\n]+")


class TooMuchError(ValueError):
    """The document has something that no configuration needs. ``line``: where."""

    def __init__(self, message: str, line: int) -> None:
        self.line = line
        super().__init__(message)


@dataclass(frozen=True)
class Statement:
    """A key with its value, or a header."""

    path: Path
    is_header: bool
    before: int | None  #: the line on which there was something of this path before; None: there was not


@dataclass
class Positions:
    """Where each key and table of a document is."""

    lines: dict[Path, int] = field(default_factory=dict)  #: the first line on which something of it is
    headers: set[Path] = field(default_factory=set)  #: the tables that have a [header]
    inline: set[Path] = field(default_factory=set)  #: the tables that are { written = "like this" }
    statements: dict[int, list[Statement]] = field(default_factory=dict)  #: that begin on a line, in their order

    def line(self, path: Path) -> int:
        """Return the line of the key or table, or of the nearest table around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def find(text: str) -> Positions:
    r"""Return where the keys of the document are; of one that is not valid, those before the fault.

    Line ends are "\n". Raises TooMuchError.
    """
    scanner = _Scanner(text)
    with contextlib.suppress(_LostError):
        scanner.document()
    return scanner.found


class _LostError(Exception):
    """The document is not valid TOML."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_ends = [match.start() for match in re.finditer("\n", text)]
        self._arrays: dict[Path, int] = {}
        self._stated: dict[Path, int] = {}  # the line on which a key or header of this very path is
        self.found = Positions()

    def document(self) -> None:
        """Go through the document."""
        table: Path = ()
        while True:
            self._skip(_BLANK)
            if self._at == len(self._text):
                return
            if self._next("["):
                table = self._header()
            else:
                self._key_and_value(table, 0)
            self._skip(_SPACE)
            if self._at < len(self._text) and self._text[self._at] not in "#\n":
                raise _LostError

    def _header(self) -> Path:
        is_array = self._next("[")
        start = self._at
        self._skip(_SPACE)
        path = self._numbered(self._key())
        self._skip(_SPACE)
        if not self._next("]") or (is_array and not self._next("]")):
            raise _LostError
        self._state(path, start, is_header=True)
        if is_array:
            number = self._arrays[path] = self._arrays.get(path, -1) + 1
            self._note(path, start)
            path = (*path, str(number))
        self._note(path, start)
        self.found.headers.add(path)
        return path

    def _numbered(self, key: Path) -> Path:
        """Return the path of a header, which names the last table of each array of tables around it."""
        path: Path = ()
        for number, part in enumerate(key, 1):
            path = (*path, part)
            if number < len(key) and path in self._arrays:
                path = (*path, str(self._arrays[path]))
        return path

    def _key_and_value(self, table: Path, depth: int) -> None:
        start = self._at
        path = (*table, *self._key())
        self._skip(_SPACE)
        if not self._next("="):
            raise _LostError
        self._state(path, start, is_header=False)
        self._note(path, start, outside=len(table))
        self._skip(_SPACE)
        self._value(path, depth)

    def _key(self) -> Path:
        parts = []
        start = self._at
        while True:
            parts.append(self._part())
            if len(parts) > MAX_PARTS:
                raise TooMuchError(f"a key has more than {MAX_PARTS} parts", self._line(start))
            before = self._at
            self._skip(_SPACE)
            if not self._next("."):
                self._at = before
                return tuple(parts)
            self._skip(_SPACE)

    def _part(self) -> str:
        for pattern in (_BARE_KEY, _BASIC, _LITERAL):
            match = pattern.match(self._text, self._at)
            if match is not None:
                self._at = match.end()
                return match[0] if pattern is _BARE_KEY else _unquoted(match[0])
        raise _LostError

    def _value(self, path: Path, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise TooMuchError(f"values are nested more than {MAX_DEPTH} deep", self._line(self._at))
        if self._next("["):
            self._array(path, depth)
        elif self._next("{"):
            self.found.inline.add(path)
            self._inline_table(path, depth)
        else:
            self._scalar()

    def _scalar(self) -> None:
        for pattern in (_LONG_BASIC, _LONG_LITERAL):
            match = pattern.match(self._text, self._at)
            if match is not None:
                self._at = match.end()
                return
        for pattern in (_BASIC, _LITERAL, _SCALAR):
            match = pattern.match(self._text, self._at)
            if match is not None:
                if pattern is _SCALAR and len(match[0]) > MAX_SCALAR:
                    raise TooMuchError(
                        f"a value without quotes is longer than {MAX_SCALAR} characters", self._line(self._at)
                    )
                self._at = match.end()
                return
        raise _LostError

    def _array(self, path: Path, depth: int) -> None:
        number = 0
        while True:
            self._skip(_BLANK)
            if self._next("]"):
                return
            item = (*path, str(number))
            self._note(item, self._at)
            self._value(item, depth + 1)
            number += 1
            self._skip(_BLANK)
            if not self._next(","):
                if self._next("]"):
                    return
                raise _LostError

    def _inline_table(self, path: Path, depth: int) -> None:
        while True:
            self._skip(_BLANK)
            if self._next("}"):
                return
            self._key_and_value(path, depth + 1)
            self._skip(_BLANK)
            if not self._next(","):
                if self._next("}"):
                    return
                raise _LostError

    def _state(self, path: Path, position: int, *, is_header: bool) -> None:
        line = self._line(position)
        before = self._stated.get(path, self.found.lines.get(path))
        self.found.statements.setdefault(line, []).append(Statement(path, is_header, before))
        self._stated.setdefault(path, line)

    def _note(self, path: Path, position: int, *, outside: int = 0) -> None:
        line = self._line(position)
        for length in range(outside + 1, len(path) + 1):
            self.found.lines.setdefault(path[:length], line)

    def _line(self, position: int) -> int:
        return bisect.bisect_left(self._line_ends, position) + 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match is not None else self._at

    def _next(self, character: str) -> bool:
        """Return True, and go on behind it, if the next character is this one."""
        if not self._text.startswith(character, self._at):
            return False
        self._at += len(character)
        return True


def _unquoted(text: str) -> str:
    try:
        return str(tomllib.loads(f"key = {text}")["key"])
    except ValueError:
        raise _LostError from None
