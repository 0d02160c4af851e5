"""Make the script with which a shell completes vbackup's command line: tables of the grammar, and how to read them.

The options and commands of the parsers are in the script, so that most words need no process. shells/engine.SHELL finds
what a word can be, and asks ``vbackup completion values`` for the names that only the repository or libvirt know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import vbackup
from vbackup.cli import grammar, parser
from vbackup.cli.grammar import Command, Option

_ENGINES = Path(__file__).with_name("shells")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


def make(shell: str) -> str:
    """Return the script for bash, zsh or fish."""
    commands = grammar.read(parser.build())
    tables = _tables_of_fish(commands) if shell == "fish" else _tables(commands, with_purposes=shell == "zsh")
    first = "#compdef vbackup\n" if shell == "zsh" else ""
    title = f"# Completion of vbackup {vbackup.__version__} for {shell}, made by 'vbackup completion {shell}'."
    engine = (_ENGINES / f"engine.{shell}").read_text()
    return f"{first}{title}\n\n{tables}\n{engine}"


def _tables(commands: Sequence[Command], *, with_purposes: bool) -> str:
    """Return the tables as functions of bash or zsh.

    With purposes, options and commands are NAME:PURPOSE, as zsh's _describe reads them.
    """

    def described(name: str, purpose: str) -> str:
        return f"{name}:{purpose}" if with_purposes else name

    lines = ["# Set what a command has; $1: its words.", "_vbackup_command() {", '    case "$1" in']
    for command in commands:
        below = [described(name, purpose) for name, purpose in command.commands.items()]
        options = [described(name, option.purpose) for option, name in _offered(command)]
        lines += [
            f"        {_word(' '.join(command.words))})",
            f"            below=({_words(below)})",
            f"            switches=({_words(options)})",
            f"            arguments=({_words([' '.join(values) for values in command.arguments])})",
            f"            groups=({_words([f' {one} ' for one in map(' '.join, command.groups)])})",
            f"            repeats={'1' if command.repeats else ''} repeated={_word(_repeated(command))}",
            "            ;;",
        ]
    lines += ["        *) return 1 ;;", "    esac", "}", ""]
    lines += ["# Set how many words an option takes, and what they are; $1: the command, $2: the option."]
    lines += ["_vbackup_takes() {", '    case "$1:$2" in']
    for pattern, takes, values in _taken(commands, _word):
        lines.append(f"        {pattern}) takes={takes} values={_word(values)} ;;")
    lines += ["        *) takes='' values='' ;;", "    esac", "}", ""]
    return "\n".join(lines)


def _tables_of_fish(commands: Sequence[Command]) -> str:
    """Return the tables as functions of fish; options and commands are NAME, a tab, PURPOSE."""
    lines = [
        "# Set what a command has; $argv[1]: its words.",
        "function __vbackup_command --no-scope-shadowing",
        "    switch $argv[1]",
    ]
    for command in commands:
        below = [f"{name}\t{purpose}" for name, purpose in command.commands.items()]
        options = [f"{name}\t{option.purpose}" for option, name in _offered(command)]
        lines += [
            f"        case {_fish(' '.join(command.words))}",
            f"            set below {_fish_words(below)}".rstrip(),
            f"            set switches {_fish_words(options)}".rstrip(),
            f"            set arguments {_fish_words([' '.join(values) for values in command.arguments])}".rstrip(),
            f"            set groups {_fish_words([f' {one} ' for one in map(' '.join, command.groups)])}".rstrip(),
            f"            set repeats {'1' if command.repeats else ''}".rstrip(),
            f"            set repeated {_fish(_repeated(command))}",
        ]
    lines += ["        case '*'", "            return 1", "    end", "    return 0", "end", ""]
    lines += ["# Set how many words an option takes, and what they are; $argv: the command, the option."]
    lines += ["function __vbackup_takes --no-scope-shadowing", '    switch "$argv[1]:$argv[2]"']
    for pattern, takes, values in _taken(commands, _fish):
        lines.append(f"        case {pattern}")
        lines.append(f"            set takes {takes}".rstrip())
        lines.append(f"            set values {_fish(values)}")
    lines += ["        case '*'", "            set takes", "            set values", "    end", "end", ""]
    return "\n".join(lines)


def _offered(command: Command) -> list[tuple[Option, str]]:
    return [(option, name) for option in command.options if option.is_offered for name in option.names]


def _repeated(command: Command) -> str:
    names = [name for option in command.options if option.repeats for name in option.names]
    return f" {' '.join(names)} "


def _taken(commands: Sequence[Command], quote: Callable[[str], str]) -> list[tuple[str, str, str]]:
    """Return the rows of what options take, in the order in which they are tried: those of one command come first.

    Each is a pattern for COMMAND:OPTION, how many words, and which.
    """
    taken = grammar.taken(commands)
    rows = sorted(taken.items(), key=lambda row: row[0][0] == "*")
    return [
        # fish has patterns in quotes, too
        (
            f"*:{option}" if command == "*" and quote is _word else quote(f"{command}:{option}"),
            takes.value,
            " ".join(values),
        )
        for (command, option), (takes, values) in rows
    ]


def _word(text: str) -> str:
    """Return the text as a word of bash and zsh; zsh takes a "=" before a word for more than shlex.quote knows."""
    return text if _PLAIN.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"


def _words(texts: Sequence[str]) -> str:
    return " ".join(map(_word, texts))


def _fish(text: str) -> str:
    """Return the text as a word of fish, where a tab is taken as it is in quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_words(texts: Sequence[str]) -> str:
    return " ".join(map(_fish, texts))
