"""The scanner finds the same keys as tomllib, knows their lines, and refuses what would keep tomllib busy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import tomllib
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vbackup.config import positions
from vbackup.config.positions import Path, TooMuchError


def flat(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of all keys, tables and items."""
    if path:
        yield path
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in below:
        yield from flat(one, (*path, str(name)))


def basic(text: str) -> str:
    """The text as TOML's basic string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# Documents of which the writer knows the lines

NAMES = st.one_of(
    st.sampled_from(("a", "b-1", "_", "3", "path", "a.b", 'a"b', "ü #[", "=", "", "x\ty", "]")), st.text(max_size=3)
)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.text(max_size=8),
    st.sampled_from(("# no comment", "]", "}", ",", "'", '"', '"""', "\\", "a\nb", "[x]", "k = 1")),
)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(NAMES, below, max_size=3)),
    max_leaves=6,
)
TABLES = st.dictionaries(NAMES, VALUES, max_size=4)


@dataclass
class Writer:
    """Writes a document in one of the many ways there are, and notes the lines of its keys."""

    draw: Any
    text: str = ""
    lines: dict[Path, int] = field(default_factory=dict)

    def note(self, path: Path) -> None:
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def choose(self, *choices: str) -> str:
        return str(self.draw(st.sampled_from(choices)))

    def key(self, name: str) -> str:
        quoted = [basic(name)]
        if name and all(char.isascii() and (char.isalnum() or char in "_-") for char in name):
            quoted.append(name)
        if all(char.isprintable() and char != "'" for char in name):
            quoted.append(f"'{name}'")
        return self.choose(*quoted)

    def table(self, path: Path, value: dict[str, Any]) -> None:
        """Write what is not a table first, then tables with a header of their own."""
        later = {}
        for name, one in value.items():
            here = (*path, name)
            if isinstance(one, dict) and self.choose("header", "inline") == "header":
                later[name] = one
                continue
            self.text += self.choose("", "\n", "# [x] = 'y'\n", "  ", "\t")
            self.note(here)
            self.text += self.key(name) + self.choose("=", " = ", "\t=  ")
            self.value(here, one)
            self.text += self.choose("\n", " # ] } ,\n", "\n\n")
        for name, one in later.items():
            here = (*path, name)
            self.text += self.choose("", "\n", "# k = 1\n")
            for length in range(1, len(here) + 1):
                self.note(here[:length])
            self.text += "[" + self.choose("", " ") + self.choose(".", " . ").join(map(self.key, here)) + "]"
            self.text += self.choose("\n", "  # [y]\n", "\n\n")
            self.table(here, one)

    def value(self, path: Path, value: Any) -> None:
        if isinstance(value, list):
            self.text += "["
            for number, one in enumerate(value):
                self.text += self.choose("", " ", "\n", " # ] ,\n ")
                self.note((*path, str(number)))
                self.value((*path, str(number)), one)
                self.text += self.choose(",", " ,", "\n,") if number + 1 < len(value) else self.choose("", ",", "\n")
            self.text += self.choose("]", " # [\n]")
        elif isinstance(value, dict):
            self.text += "{"
            for number, (name, one) in enumerate(value.items()):
                self.note((*path, name))
                self.text += self.key(name) + self.choose("=", " = ")
                self.value((*path, name), one)
                self.text += ", " if number + 1 < len(value) else self.choose("", " ")
            self.text += "}"
        else:
            self.text += self.choose(*self.scalars(value))

    @staticmethod
    def scalars(value: Any) -> list[str]:
        if not isinstance(value, str):
            return [json.dumps(value)]
        found = [basic(value)]
        if all(char.isprintable() for char in value.replace("\n", "")) and "'" not in value:
            found.append(f"'''{value}'''" if "\n" in value else f"'{value}'")
        if all(char.isprintable() for char in value.replace("\n", "")) and '"""' not in value + '"':
            found.append('"""\n' + value.replace("\\", "\\\\") + '"""')
        return found


@st.composite
def written(draw: st.DrawFn) -> tuple[dict[str, Any], Writer]:
    """A document, and the writer that has written it."""
    data = draw(TABLES)
    writer = Writer(draw)
    writer.table((), data)
    return data, writer


@given(written())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_lines_are_those_on_which_the_keys_were_written(one: tuple[dict[str, Any], Writer]) -> None:
    data, writer = one
    assert tomllib.loads(writer.text) == data, "the test writes TOML"
    assert positions.find(writer.text).lines == writer.lines


# Anything

PIECES = st.sampled_from(
    [
        *(
            "a",
            "b",
            "1",
            ".",
            "=",
            "[",
            "]",
            "[[",
            "]]",
            "{",
            "}",
            ",",
            "\n",
            " ",
            "#",
            '"',
            "'",
            '"""',
            "'''",
            "\\",
            "ä",
        ),
        *(
            "a = 1\n",
            "[t]\n",
            "[[t]]\n",
            "[t.u]\n",
            "x.y = 2\n",
            'k = """\nv"""\n',
            "l = [1,\n 2]\n",
            "d = 1979-05-27 07:32:00\n",
        ),
        *(
            "i = {a = 1, b.c = 2}\n",
            's = "\\u00e4"\n',
            "f = -1e5\n",
            "z = '''a'b'''\n",
            'q = """a""b"""""\n',
            "n = inf\n",
        ),
    ]
)


@given(st.lists(PIECES, max_size=14).map("".join))
@settings(max_examples=600, deadline=None)
@example('a = "\\"\n"')
@example("[[t]]\n[t.u]\n[[t]]\nx = 1\n[[t.v]]\n[[t.v]]\ny = 2\n")
@example("k = \"\"\"\"\"\"\nl = ''''''\n")
@example('k = """a"""""\nl = 1\n')
@example('k = """\\"""a\\\\"""\nl = 1\n')
def test_keys_are_those_that_tomllib_finds(text: str) -> None:
    found = positions.find(text)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # it says what is wrong; the scanner did not fall over it
    assert set(found.lines) == set(flat(data))


def test_inline_tables_and_headers_are_told_apart() -> None:
    found = positions.find("a = {b = 1}\n[c]\nd.e = 1\n[[f]]\n")
    assert found.inline == {("a",)}
    assert found.headers == {("c",), ("f", "0")}


def test_line_of_what_is_not_there_is_that_of_the_table_around_it() -> None:
    found = positions.find("\n[job.nightly]\nat = '01:00'\n")
    assert found.line(("job", "nightly", "at")) == 3
    assert found.line(("job", "nightly", "prune", "keep-daily")) == 2
    assert found.line(("metrics",)) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\n" + ".".join("k" * 50000) + " = 1", 2),
        ("\n\n[" + ".".join("k" * 50000) + "]", 3),
        ("a =\n", None),
        ("a = " + "[" * 50000 + "]" * 50000, 1),
        ("a = 1\nb = " + "{a=" * 50000 + "1" + "}" * 50000, 2),
        ("a = " + "9" * 100000, 1),
        ("a = [1,\n2,\n0x" + "f" * 100000 + "]", 3),
    ],
)
def test_what_keeps_tomllib_busy_is_refused(text: str, line: int | None) -> None:
    begun = time.monotonic()
    if line is None:
        assert positions.find(text).lines == {("a",): 1}
    else:
        with pytest.raises(TooMuchError) as caught:
            positions.find(text)
        assert caught.value.line == line
    assert time.monotonic() - begun < 5
