"""The grammar of the command line as data, from its parsers: what a shell has to know to complete a word.

What an argument can be follows from its metavar, which is the word that people read in the help. vbackup.cli.scripts
makes a script of it; names that nobody knows until the key is pressed are asked for then (ValueKind).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from vbackup.api import ValueKind, known_schemas
from vbackup.cli.parser import Parser


class Takes(Enum):
    """How many words an option takes."""

    NONE = ""
    MAYBE = "maybe"  #: one, if it does not look like an option
    ONE = "one"
    MANY = "many"  #: all up to the next option


#: What a word can be: values of ValueKind, FILES or DIRECTORIES, and words as they are, each after a "=".
Values = tuple[str, ...]
FILES, DIRECTORIES = ("files",), ("directories",)
JOBS, TARGETS, NOTIFIERS = (ValueKind.JOBS.value,), (ValueKind.TARGETS.value,), (ValueKind.NOTIFIERS.value,)
#: A directory, or a URL, which is read in the place of the repository: a target of copies.
PLACE = ("place", ValueKind.TARGET_URLS.value)

DOMAINS, RECORDED_DOMAINS = (ValueKind.DOMAINS.value,), (ValueKind.RECORDED_DOMAINS.value,)
BACKUPS = (ValueKind.BACKUPS.value,)
DISKS, RECORDED_DISKS = (ValueKind.DISKS.value,), (ValueKind.RECORDED_DISKS.value,)


@dataclass(frozen=True)
class Option:
    """An option of a command."""

    names: tuple[str, ...]
    takes: Takes
    values: Values
    purpose: str
    is_offered: bool  #: False for one that the help does not show
    repeats: bool  #: it can be given several times, each of which counts


@dataclass(frozen=True)
class Command:
    """A command, or a command of a command."""

    words: tuple[str, ...]  #: none for vbackup itself
    commands: Mapping[str, str]  #: those below it, each with its purpose
    options: tuple[Option, ...]
    arguments: tuple[Values, ...]  #: what each word that belongs to no option can be
    repeats: bool  #: the last of these can be repeated
    groups: tuple[tuple[str, ...], ...]  #: names of options of which only one can be given, if they are several


#: The commands that work on domains as libvirt has them; the others read what the repository has.
OF_LIBVIRT = frozenset(
    ("backup", "audit", "bitmap", "engine", "forget", "run", "session", "speed", "stream", "transaction")
)
_OF_SESSIONS = frozenset(("tracker", "checkpoint"))

#: What is to be typed: there is nothing to choose from.
_FREE: Values = ()
#: By metavar. In a command of OF_LIBVIRT, domains and disks are libvirt's.
VALUES: Mapping[str, Values] = {
    **dict.fromkeys(("DOMAIN", "PATTERN"), RECORDED_DOMAINS),
    **dict.fromkeys(("DEV", "DEV[=PATH]"), RECORDED_DISKS),
    "ID": BACKUPS,
    **dict.fromkeys(("FILE", "[raw:]FILE", "PATH", "SOCKET"), FILES),
    "DIR": DIRECTORIES,
    "JOB": JOBS,
    "TARGET": PLACE,
    "URI": ("=qemu:///system", "=qemu:///session"),
    **dict.fromkeys(
        (
            *("age1...", "BYTES/S", "CHECKPOINT", "COMMAND", "DAYS", "DURATION", "HOST", "HOST:PORT"),
            *("HOST:PORT[-PORT]", "HH:MM-HH:MM", "LEVEL", "N", "NAME", "NEW", "NODE", "[NODE:]NAME", "PERCENT", "RATE"),
            *("SIZE", "STATUS", "TEXT", "TIME"),
        ),
        _FREE,
    ),
}
#: By command and option, or argument, where the metavar does not say it.
_SPECIAL: Mapping[tuple[str, str], Values] = {
    ("failover", "--boot-console"): _FREE,
    ("verify", "--boot-console"): _FREE,
    ("forget", "--repository-id"): _FREE,
    ("checkpoint delete", "--checkpoint"): _FREE,
    ("completion", "kinds"): tuple(f"={kind.value}" for kind in ValueKind),
    ("copy", "--to"): (*DIRECTORIES, ValueKind.TARGET_URLS.value),
    ("restore", "--name"): _FREE,
    ("run", "--copy-to"): TARGETS,
    ("run", "--notify"): NOTIFIERS,
    ("schema", "name"): tuple(f"={name}" for name in known_schemas()),
    ("session changes", "--kind"): ("=delta", "=allocated", "=between"),
    ("speed", "rate"): ("=unlimited",),
    **{(f"engine {name}", "--level"): ("=Full", "=Incremental", "=Differential") for name in ("read", "finish")},
    **{(f"session {name}", "session"): (ValueKind.SESSIONS.value,) for name in ("status", "renew", "commit", "abort")},
    ("session changes", "session"): (ValueKind.SESSIONS.value,),
    ("serve-session", "session"): (ValueKind.SESSIONS.value,),
}
#: By option, in whatever command.
_OF_ALL: Mapping[str, Values] = {
    "--host": (ValueKind.HOSTS.value,),
    **dict.fromkeys(("--job", "--job-id"), _FREE),  # a director's
    "--repository": (*DIRECTORIES, ValueKind.REPOSITORIES.value),
    "--tracker": (ValueKind.TRACKERS.value,),
}
#: Options that argparse lets repeat, and vbackup does not.
_SINGLE = frozenset(("session changes --disk",))
#: How a help text begins that says first when the option counts.
_CONDITION = re.compile(r"(only )?with -|in |instead")
#: Arguments of several words of different kinds, by their metavar.
WORDS: Mapping[str, tuple[Values, ...]] = {
    "DOMAIN [ID] DIR": (RECORDED_DOMAINS, BACKUPS + DIRECTORIES, DIRECTORIES),
    "DOMAIN [WHERE:]/PATH": (RECORDED_DOMAINS,),
    "DOMAIN [[WHERE:]/PATH]": (RECORDED_DOMAINS,),
    "DOMAIN [WHERE:]/PATH... TARGET": (RECORDED_DOMAINS, FILES),
    "[DOMAIN] A [B]": (RECORDED_DOMAINS + BACKUPS, BACKUPS, BACKUPS),
    "[DOMAIN] ID TEXT": (RECORDED_DOMAINS + BACKUPS, BACKUPS),
    "[DOMAIN] ID...": (RECORDED_DOMAINS + BACKUPS, BACKUPS),
    "[JOB ...]": (JOBS,),
    "[NAME ...]": (NOTIFIERS,),
    "[WHERE:]PATTERN DOMAIN...": (_FREE, RECORDED_DOMAINS),
}


def read(parser: Parser) -> list[Command]:
    """Return the commands of a complete parser, each before those below it."""
    return list(_commands(parser, ()))


def _commands(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[Command]:
    below: dict[str, argparse.ArgumentParser] = {}
    purposes: dict[str, str] = {}
    options: list[Option] = []
    arguments: list[Values] = []
    repeats = False
    of_hosts = _is_of_hosts(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below.update(action.choices)
            purposes.update((choice.dest, choice.help or "") for choice in action._choices_actions)
        elif action.option_strings:
            options.append(_option(action, words, of_hosts=of_hosts))
        else:
            of_words = WORDS.get(str(action.metavar))
            arguments += of_words or (_values(action, words),)
            repeats = action.nargs in ("*", "+") and (of_words is None or "..." in str(action.metavar))
    groups = tuple(_groups(parser, words))
    yield Command(words, purposes, tuple(options), tuple(arguments), repeats, groups)
    for name, one in below.items():
        yield from _commands(one, (*words, name))


def _is_of_hosts(parser: argparse.ArgumentParser) -> bool:
    """Return True if -c can be given for several hosts (vbackup.cli.arguments.add_common)."""
    connects = parser.get_default("connects")
    return connects is not None and bool(connects.of_hosts)


def _option(action: argparse.Action, words: tuple[str, ...], *, of_hosts: bool) -> Option:
    return Option(
        tuple(action.option_strings),
        {0: Takes.NONE, None: Takes.ONE, "?": Takes.MAYBE}.get(action.nargs, Takes.MANY),
        () if action.nargs == 0 else _values(action, words),
        short(action.help or ""),
        is_offered=action.help != argparse.SUPPRESS,
        repeats=_repeats(action, words, of_hosts=of_hosts),
    )


def _repeats(action: argparse.Action, words: tuple[str, ...], *, of_hosts: bool) -> bool:
    name = " ".join((*words, action.option_strings[-1]))
    if name in _SINGLE or (action.dest == "connect" and not of_hosts):
        return False
    return isinstance(action, (argparse._AppendAction, argparse._ExtendAction)) or action.nargs == "+"


def _values(action: argparse.Action, words: tuple[str, ...]) -> Values:
    """Return what a word of an argument can be. Raises LookupError for a metavar that VALUES does not have."""
    if action.choices is not None:
        return tuple(f"={choice}" for choice in action.choices)
    name = action.option_strings[-1] if action.option_strings else action.dest
    special = _SPECIAL.get((" ".join(words), name), _OF_ALL.get(name))
    if special is not None:
        return special
    if action.metavar not in VALUES:
        raise LookupError(f"{name} of {' '.join(words)}: say in VALUES or _SPECIAL what {action.metavar} can be.")
    found = VALUES[str(action.metavar)]
    if found == RECORDED_DOMAINS and words[0] in OF_LIBVIRT | _OF_SESSIONS:
        return DOMAINS
    if found == RECORDED_DISKS and words[0] in OF_LIBVIRT:
        return DISKS
    return found


def _groups(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield names of options that exclude each other: those of one option, and those of options of one group."""
    grouped: set[str] = set()
    of_hosts = _is_of_hosts(parser)
    for group in parser._mutually_exclusive_groups:
        names = tuple(name for action in group._group_actions for name in action.option_strings)
        grouped.update(names)
        yield names
    for action in parser._actions:
        names = tuple(action.option_strings)
        if len(names) > 1 and grouped.isdisjoint(names) and not _repeats(action, words, of_hosts=of_hosts):
            yield names


def short(text: str) -> str:
    """Return the first statement of a help text, which fits beside a name."""
    if re.match(r"\w+ \(default\): ", text):  # what the values mean: there is nothing before them
        return text.partition("; ")[0]
    condition, colon, rest = text.partition(": ")
    if not colon or not _CONDITION.match(condition):
        condition, colon, rest = "", "", text
    return condition + colon + re.split(r"; | \(|: ", rest, maxsplit=1)[0]


def taken(commands: Sequence[Command]) -> dict[tuple[str, str], tuple[Takes, Values]]:
    """Return what each option that takes words takes, by its command and its name.

    The command is "*" for what an option takes wherever nothing else is said: most options are of many commands.
    """
    of_name: dict[str, dict[str, tuple[Takes, Values]]] = {}
    for command in commands:
        for option in command.options:
            for name in option.names:
                of_name.setdefault(name, {})[" ".join(command.words)] = (option.takes, option.values)
    found: dict[tuple[str, str], tuple[Takes, Values]] = {}
    for name, of_command in of_name.items():
        kinds = list(of_command.values())
        usual = max(dict.fromkeys(kinds), key=kinds.count)
        found.update(((words, name), kind) for words, kind in of_command.items() if kind != usual)
        if usual[0] is not Takes.NONE:
            found["*", name] = usual
    return found
