"""Every key of a command is an option of it, and the reverse; both take the same values."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Mapping

import pytest

from vbackup.cli import parser
from vbackup.config import keys, times
from vbackup.config.keys import Key, Kind
from vbackup.config.model import When
from vbackup.errors import UsageError
from vbackup.stores import opening

#: What the parser of a target's command is, with what else it needs.
WORDS = {
    "backup": ["--all"],
    "prune": ["--all", "--keep-last=1"],
    "verify": ["--all"],
    "audit": ["web"],
    "copy": ["--all", "--to=/x"],
}
#: A value that each kind takes.
TABLES: list[tuple[str, Mapping[str, tuple[Key, ...]]]] = [
    ("job", keys.JOB_COMMANDS),
    ("target", keys.TARGET_COMMANDS),
]
ALL = [(table, command, key) for table, commands in TABLES for command in commands for key in commands[command]]


@functools.cache
def parser_of(command: str) -> argparse.ArgumentParser:
    return parser.build([command])


def options_of(command: str) -> dict[str, argparse.Action]:
    """The long options of a command by name, without the dashes."""
    (commands,) = [action for action in parser_of(command)._actions if isinstance(action, argparse._SubParsersAction)]
    return {
        option[2:]: action
        for action in commands.choices[command]._actions
        for option in action.option_strings
        if option.startswith("--")
    }


@pytest.mark.parametrize("command", WORDS)
def test_every_option_is_a_key_or_it_is_said_why_not(command: str) -> None:
    known = {key.name for one, named in TABLES for key in named.get(command, ())}
    without = {**keys.NOT_KEYS[""], **keys.NOT_KEYS.get(command, {})}
    options = set(options_of(command))
    assert options - known == (without.keys() - known) & options
    assert keys.NOT_KEYS[command].keys() <= options
    assert all(without.values())


@pytest.mark.parametrize(("table", "command", "key"), ALL, ids=lambda one: getattr(one, "name", one))
def test_every_key_is_an_option_of_the_same_kind(table: str, command: str, key: Key) -> None:
    action = options_of(command)[key.name]
    is_flag = action.nargs == 0
    takes_several = action.nargs == "+" or isinstance(action, argparse._AppendAction)
    assert is_flag == (key.kind is Kind.FLAG)
    assert takes_several == (key.kind in keys.LISTS)
    assert (action.nargs == "?") == (key.kind is Kind.FLAG_OR_WORD)
    assert tuple(action.choices or ()) == key.choices
    if key.choices:
        assert action.default == key.default


@pytest.mark.parametrize(
    ("table", "command", "key"), [one for one in ALL if one[2].check], ids=lambda one: getattr(one, "name", one)
)
def test_key_and_option_accept_the_same_texts(table: str, command: str, key: Key) -> None:
    assert key.check is not None
    accepted, built = 0, parser_of(command)
    for text in (
        *(
            "0",
            "1",
            "5",
            "7",
            "30",
            "1000",
            "1001",
            "5%",
            "0.5",
            "101",
            "20ms",
            "1h",
            "26h",
            "30d",
            "4w",
            "14d",
            "1y6m",
        ),
        *(
            "50M",
            "4G",
            "15M",
            "x",
            "login: $",
            "(",
            ".*",
            "'",
            "vda",
            "b:1-2",
            "[::1]:5",
            "a note",
            "age1abc",
            "/etc/x",
        ),
    ):
        try:
            key.check(text)
            by_key = True
        except ValueError:
            by_key = False
        try:
            built.parse_args([command, f"--{key.name}={text}", *WORDS[command]])
            by_option = True
        except UsageError:
            by_option = False
        if by_key:
            assert by_option, text
            accepted += 1
        elif key.name != "recipient":  # which is looked at when it is used
            assert not by_option, text
    assert accepted > 0


def test_names_are_unique_and_are_words() -> None:
    named = [*keys.NAMED.values(), *keys.SINGLE.values(), *keys.JOB_COMMANDS.values(), *keys.TARGET_COMMANDS.values()]
    for table in (*named, keys.SECRET):
        names = [key.name for key in table]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in names)
        assert all(key.help[0].islower() or key.help.startswith("a URL") for key in table)


def test_words_are_given_where_there_are_only_these() -> None:
    for _, _, key in ALL:
        assert bool(key.choices) == (key.kind in (Kind.WORD, Kind.FLAG_OR_WORD))
    assert tuple(when.value for when in When) == keys.WHEN


def test_schemes_are_those_of_the_stores() -> None:
    assert keys.CLOUDS == opening.CLOUDS


def test_tables_beside_the_keys_name_keys() -> None:
    for command, *names in keys.EXCLUSIVE:
        assert set(names) <= {key.name for key in keys.JOB_COMMANDS[command]}
    for command, name, other, value in keys.NEEDS:
        by_name = {key.name: key for key in keys.JOB_COMMANDS[command]}
        assert name in by_name
        assert value is None or value in by_name[other].choices
    assert {key.name for key in keys.PRUNE} > keys.RULES
    assert set(keys.WAYS) < {key.name for key in keys.NOTIFIER}
    assert set(keys.OPENING) < {key.name for key in keys.COPY}
    assert times.READERS.keys() < set(Kind)
