"""What holds, key by key: what the files say and where, and the defaults of what they do not say. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vbackup.config import keys, writing
from vbackup.config.documents import dotted
from vbackup.config.keys import Key, Kind
from vbackup.config.model import Config, Place
from vbackup.config.writing import Table, Value


@dataclass(frozen=True)
class Shown:
    """A key that holds. Either ``value`` or ``default`` is set."""

    table: tuple[str, ...]  #: ("job", "nightly", "backup")
    name: str
    value: Value | None  #: as TOML has it; None: the files do not say
    default: str | None = None  #: what holds then, in words
    place: Place | None = None  #: where it was written; None: nowhere

    @property
    def origin(self) -> str:
        """The place as FILE:LINE, or "default"."""
        return "default" if self.place is None else str(self.place)


def effective(config: Config) -> tuple[Shown, ...]:
    """Return all keys that hold, by table, in the order of vbackup.toml(5)."""
    found: list[Shown] = []
    for kind, table in writing.tables(config).items():
        if kind in keys.SINGLE:
            found += _of_table((kind,), table, keys.SINGLE[kind], config)
            continue
        below = keys.BELOW.get(kind, {})
        for name, one in table.items():
            found += _of_table((kind, name), one, keys.NAMED[kind], config)
            for command, known in below.items():
                # A backup is always made; another step exists if its table does.
                if command in one or (kind, command) == ("job", "backup"):
                    found += _of_table((kind, name, command), one.get(command, {}), known, config)
    return tuple(found)


def text(shown: Sequence[Shown], *, with_origin: bool) -> str:
    """Return the keys as TOML, with defaults as comments. ``with_origin``: with the place of each as a comment."""
    lines: list[str] = []
    for number, one in enumerate(shown):
        if not number or shown[number - 1].table != one.table:
            lines += ([""] if number else []) + [f"[{dotted(one.table)}]"]
        is_set = one.value is not None
        line = f"{one.name} = {writing.value(one.value)}" if one.value is not None else f"# {one.name}: {one.default}"
        if with_origin:
            line = f"{line}  # {one.origin}" if is_set else f"{line} (default)"
        lines.append(line)
    return "\n".join(lines) + "\n" if lines else ""


def _of_table(path: tuple[str, ...], table: Table, known: Sequence[Key], config: Config) -> Iterator[Shown]:
    for key in known:
        place = config.origins.get(dotted((*path, key.name)))
        if key.name in table and (place is not None or key.default is None):
            yield Shown(path, key.name, table[key.name], place=place)
        elif key.name in table:  # it follows from other keys
            yield Shown(path, key.name, None, f"{_plain(table[key.name])} ({key.default})")
        elif key.default is not None:
            yield Shown(path, key.name, None, key.default)
        elif key.kind is Kind.FLAG:
            yield Shown(path, key.name, None, "false")


def _plain(one: object) -> str:
    return ", ".join(map(str, one)) if isinstance(one, list) else str(one)
