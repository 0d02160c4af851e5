"""The grammar as data says what the parsers do."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from vbackup.api import ValueKind
from vbackup.cli import grammar, parser
from vbackup.cli.grammar import Takes

COMMANDS = {" ".join(command.words): command for command in grammar.read(parser.build())}
#: Kinds that are no question to the repository or libvirt.
STATIC = {"files", "directories", "place"}


def parsers(one: argparse.ArgumentParser, words: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield words, one
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from parsers(below, f"{words} {name}".strip())


PARSERS = dict(parsers(parser.build()))


def test_every_command_is_there_with_those_below_it() -> None:
    assert COMMANDS.keys() == PARSERS.keys()
    assert COMMANDS[""].commands == parser.COMMANDS
    for words, command in COMMANDS.items():
        assert {f"{words} {name}".strip() for name in command.commands} <= COMMANDS.keys()


@pytest.mark.parametrize("words", PARSERS)
def test_options_are_those_of_the_parser(words: str) -> None:
    actions = {tuple(one.option_strings): one for one in PARSERS[words]._actions if one.option_strings}
    options = {one.names: one for one in COMMANDS[words].options}
    assert options.keys() == actions.keys()
    for names, action in actions.items():
        assert options[names].is_offered == (action.help is not argparse.SUPPRESS)
        assert (options[names].takes is Takes.NONE) == (action.nargs == 0)
        if action.choices is not None:
            assert options[names].values == tuple(f"={one}" for one in action.choices)


@pytest.mark.parametrize("words", PARSERS)
def test_values_are_of_kinds_that_there_are(words: str) -> None:
    command = COMMANDS[words]
    kinds = [kind for option in command.options for kind in option.values]
    kinds += [kind for values in command.arguments for kind in values]
    known = STATIC | {kind.value for kind in ValueKind}
    assert [kind for kind in kinds if kind not in known and not kind.startswith("=")] == []


def of(words: str, name: str) -> tuple[Takes, grammar.Values]:
    """What an option takes."""
    return next((one.takes, one.values) for one in COMMANDS[words].options if name in one.names)


def test_domains_are_libvirt_s_for_what_works_on_them_and_recorded_for_the_others() -> None:
    def first(words: str) -> grammar.Values:
        return COMMANDS[words].arguments[0]

    for words in ("backup", "audit", "session begin", "stream backup", "bitmap list", "speed", "forget", "transaction"):
        assert first(words) == ("domains",)
    for words in ("list", "show", "restore", "verify", "copy", "prune", "cp", "mount", "fetch", "recover"):
        assert first(words) == ("recorded-domains",)
    assert of("backup", "--disk") == (Takes.MANY, ("disks",))
    assert of("restore", "--disk") == (Takes.MANY, ("recorded-disks",))
    assert parser.COMMANDS.keys() >= grammar.OF_LIBVIRT


@pytest.mark.parametrize(
    ("words", "name", "takes", "values"),
    [
        ("backup", "--compress", Takes.MAYBE, ("=none", "=auto", "=zstd", "=zlib")),
        ("list", "--host", Takes.ONE, ("hosts",)),
        ("failback", "--from", Takes.ONE, ()),
        ("list", "--from", Takes.ONE, ("place", "target-urls")),
        ("copy", "--to", Takes.ONE, ("directories", "target-urls")),
        ("run", "--copy-to", Takes.ONE, ("targets",)),
        ("run", "--notify", Takes.ONE, ("notifiers",)),
        ("stream backup", "--job", Takes.ONE, ()),
        ("verify", "--boot-console", Takes.ONE, ()),
        ("prune", "--remove", Takes.MANY, ("backups",)),
        ("", "-r", Takes.ONE, ("directories", "repositories")),
        ("session begin", "--tracker", Takes.ONE, ("trackers",)),
        ("engine read", "--level", Takes.ONE, ("=Full", "=Incremental", "=Differential")),
    ],
)
def test_option_takes(words: str, name: str, takes: Takes, values: grammar.Values) -> None:
    assert of(words, name) == (takes, values)


@pytest.mark.parametrize(
    ("words", "arguments", "repeats"),
    [
        ("backup", [("domains",)], True),
        ("show", [("recorded-domains",), ("backups",)], False),
        ("run", [("jobs",)], True),
        ("mount", [("recorded-domains",), ("backups", "directories"), ("directories",)], False),
        ("protect", [("recorded-domains", "backups"), ("backups",)], True),
        ("note", [("recorded-domains", "backups"), ("backups",)], False),
        ("session commit", [("sessions",)], False),
        ("hooks", [("=install", "=remove", "=status")], False),
        ("init", [], False),
        ("bitmap", [], False),
    ],
)
def test_arguments(words: str, arguments: list[grammar.Values], repeats: bool) -> None:
    command = COMMANDS[words]
    assert (list(command.arguments), command.repeats) == (arguments, repeats)


def repeated(words: str) -> set[str]:
    return {name for one in COMMANDS[words].options if one.repeats for name in one.names}


def test_option_is_repeated_where_each_counts_and_none_is_refused() -> None:
    assert {"--disk", "--exclude", "-c"} <= repeated("backup")
    assert {"-c", "--level", "--json"}.isdisjoint(repeated("audit"))
    assert {"-c", "--copy-to"} <= repeated("run")
    assert "--disk" not in repeated("session changes")


def test_options_that_exclude_each_other_are_a_group() -> None:
    groups = COMMANDS["restore"].groups
    assert ("-q", "--quiet", "-v", "--verbose") in groups
    assert ("--backup", "--at") in groups
    assert ("--scripts", "--no-scripts") in groups
    assert ("-r", "--repository") in groups


def test_metavar_that_nobody_has_said_anything_of_is_named() -> None:
    made = parser.Parser(prog="vbackup")
    made.add_argument("--colour", metavar="COLOUR")
    with pytest.raises(LookupError, match=r"--colour .*: say in VALUES .* what COLOUR can be"):
        grammar.read(made)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("how much to copy; auto (default): incremental", "how much to copy"),
        ("wait up to this time (90, 90s, 5m) for another", "wait up to this time"),
        ("with --abort: do it", "with --abort: do it"),
        ("with --test: how long it may take (default: 5m)", "with --test: how long it may take"),
        ("auto (default): bars on a terminal; json: events", "auto (default): bars on a terminal"),
        ("only with -v", "only with -v"),
        ("", ""),
    ],
)
def test_short_help_is_the_first_statement(text: str, expected: str) -> None:
    assert grammar.short(text) == expected


def test_what_options_take_is_said_once_for_all_commands_and_apart_where_it_differs() -> None:
    taken = grammar.taken(list(COMMANDS.values()))
    for words, command in COMMANDS.items():
        for option in command.options:
            for name in option.names:
                said = taken.get((words, name), taken.get(("*", name), (Takes.NONE, ())))
                assert said == (option.takes, option.values), (words, name)
    assert len(taken) < sum(len(command.options) for command in COMMANDS.values()) / 2
