"""The grammar of the command line: options before the command, and one module of vbackup.cli.commands per command."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, NoReturn

import vbackup
from vbackup.cli.arguments import ShownAsRequired, add_common, uris_of
from vbackup.errors import UsageError

#: The commands, with their help in ``vbackup --help``.
COMMANDS = {
    "run": "run jobs of the configuration",
    "config": "check, show and make the configuration",
    "schedule": "let jobs run by themselves",
    "notify": "list who is told, and send a test message",
    "init": "create a repository",
    "backup": "back up domains",
    "status": "tell whether everything is backed up",
    "list": "list the domains and backups in a repository",
    "show": "show the record of a backup",
    "verify": "compare the images of backups with their block lists",
    "diff": "show how much differs between two backups",
    "usage": "show where the room of a repository goes",
    "check": "look through a repository, and repair it",
    "audit": "check that changed-block tracking missed nothing",
    "restore": "restore disks from a backup",
    "replicate": "keep a standby at another host",
    "failover": "let a standby take over",
    "failback": "bring a domain back from its standby",
    "mount": "show the disks of a backup as files",
    "umount": "end a mount",
    "serve": "serve the disks of a backup by NBD",
    "serve-session": "serve the disks of a pull session over HTTPS",
    "ls": "list files of a guest in a backup",
    "cp": "copy files of a guest out of a backup",
    "cat": "print a file of a guest in a backup",
    "search": "find files of guests in all backups",
    "copy": "copy backups to another place",
    "fetch": "make a repository out of copies",
    "prune": "remove backups that no rule keeps",
    "consolidate": "make backups independent of older ones",
    "protect": "protect backups from being removed",
    "unprotect": "end the protection of backups",
    "note": "give a backup a note",
    "recover": "finish or undo interrupted backups",
    "speed": "change the speed of a running backup",
    "transaction": "check and send a QMP transaction",
    "bitmap": "list and change dirty bitmaps",
    "forget": "remove a repository's bitmaps from a domain",
    "stream": "back up and restore through a pipe",
    "engine": "work for a director such as Bacula",
    "session": "serve a moment of a domain's disks to other programs",
    "tracker": "list and forget the trackers of sessions",
    "checkpoint": "list and delete checkpoints of a tracker",
    "hooks": "install or remove libvirt's hook script",
    "metrics": "write metrics for Prometheus",
    "report": "write a page on all backups, for people",
    "schema": "print the JSON Schema of a document",
    "completion": "print the completion script of a shell",
}


class Formatter(argparse.HelpFormatter):
    """Shows DOMAIN as required where it is, although argparse has it as optional for the sake of --domain."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if isinstance(action, ShownAsRequired):
            return str(action.metavar)
        return super()._format_args(action, default_metavar)


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError instead of printing and exiting, and knows what was meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": Formatter, **settings})

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's message as a sentence."""
        greedy = (self.get_default("greedy") or "") if "arguments are required" in message else ""
        raise UsageError(f"{message[:1].upper()}{message[1:]}{greedy}.", help_of=self.prog)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = list(action.choices)
        if isinstance(action, argparse._SubParsersAction):
            hint = _closest(value, choices) or f"; the commands are: {', '.join(choices)}"
            raise UsageError(f"No command {value!r}{hint}.", help_of=self.prog)
        one_of = ", ".join(map(repr, choices))
        hint = _closest(value, choices)
        raise argparse.ArgumentError(action, f"invalid choice: {value!r} (choose from {one_of}){hint}")

    def unknown(self, words: Sequence[str]) -> UsageError:
        """Return the error for words that are no arguments of this command."""
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        what = " ".join(words)
        if not words[0].startswith("-"):
            return UsageError(
                f"Unrecognized arguments: {what}; the words that belong to no option stand together, as in the usage.",
                help_of=self.prog,
            )
        hint = _closest(words[0].partition("=")[0], options)
        return UsageError(f"Unrecognized arguments: {what}{hint}.", help_of=self.prog)


def _closest(word: str, known: Sequence[str]) -> str:
    from vbackup import names  # which --help does without

    return names.closest(word, known)


class _Commands:
    """argparse's subcommands, with the help from COMMANDS."""

    def __init__(self, parsers: Any) -> None:
        self._parsers = parsers

    def add_parser(self, name: str, **settings: Any) -> Any:
        return self._parsers.add_parser(name, help=COMMANDS[name], **settings)


def build(words: Collection[str] = COMMANDS.keys()) -> Parser:
    """Return the parser, complete by default, as the tests of the man page need it.

    Otherwise only the commands among ``words`` get their arguments. argparse accepts as a command only a whole word of
    the command line, so the modules of the others need not be imported.
    """
    parser = Parser(
        prog="vbackup",
        description="Make incremental image backups of libvirt/QEMU virtual machines, running or shut off.",
        epilog="Manual pages: vbackup(1), vbackup.toml(5), vbackup-run(8), vbackup-repository(5),"
        " vbackup-transaction(7), vbackup-recovery(7),"
        " vbackup-session(7), vbackup-copy(7), vbackup-engines(7), vbackup-remote(7), vbackup-scripts(7),"
        " vbackup-json(7),"
        " vbackup-api(7).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vbackup {vbackup.__version__}")
    add_common(parser, at_top=True)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command", parser_class=Parser
    )
    for name, purpose in COMMANDS.items():
        if name in words:
            import_module(f"vbackup.cli.commands.{name.replace('-', '_')}").add(_Commands(commands))
        else:
            _list_only(commands, name, purpose)
    return parser


def _list_only(commands: Any, name: str, purpose: str) -> None:
    """Let a command be listed by --help and known by its name, without a parser, which costs more than all the rest."""
    commands._choices_actions.append(commands._ChoicesPseudoAction(name, [], purpose))
    commands._name_parser_map[name] = None


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options. Raises UsageError; ``--help`` and ``--version`` print and raise SystemExit(0)."""
    parser = build(arguments)
    options, unknown = parser.parse_known_args(arguments)
    if getattr(options, "has_loose_words", False) and all(word == "-" or not word.startswith("-") for word in unknown):
        # argparse gives the words after an option to no argument once it has words before it.
        options.words = [*options.words, *unknown]
    elif unknown:
        raise _parser_of(parser, options).unknown(unknown)
    options.uris = uris_of(options)
    return options


def _parser_of(parser: Parser, options: argparse.Namespace) -> Parser:
    """Return the parser of the command that was given."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below: Parser = action.choices[getattr(options, action.dest)]
            return _parser_of(below, options)
    return parser
