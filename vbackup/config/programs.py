"""Refuse programs that the configuration names and that others can change, as ssh refuses files.

They are those that print a secret or an identity, and sendmail. One that does not exist is no fault here: ``vbackup
config check`` reports it, and so does who runs it.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vbackup import trusted
from vbackup.config import keys
from vbackup.config.documents import Document, dotted
from vbackup.config.model import Config
from vbackup.errors import ConfigError

#: How an identity that a program prints begins (vbackup.stores.key_files).
_COMMAND = "command:"
_Path = tuple[str, ...]


def refuse(config: Config, document: Document) -> tuple[Config, tuple[ConfigError, ...]]:
    """Return a fault, with the place of the key, for each program that somebody else can change.

    The configuration is without the notifiers that would run one: not even who only checks it, or tells of its faults,
    may do that.
    """
    seen: set[Path] = set()
    found: list[ConfigError] = []
    kept = dict(config.notifiers)
    for key, word in _programs(config, document):
        path = _path(word)
        doubt = None
        with suppress(OSError, ValueError):  # it is not there, or cannot be looked at: it is not run either
            doubt = None if path is None else trusted.doubt(path, seen)
        if doubt is None:
            continue
        place, advice = document.place(key), shlex.quote(os.fspath(doubt.path))
        fault = (
            f"{path}, the program of {dotted(key)!r}, is not run: {doubt.path} {doubt.reason}, so somebody else decides"
            f" what vbackup runs. Run 'chown root {advice}' and 'chmod go-w {advice}', or give another program."
        )
        found.append(ConfigError(os.fspath(place.path), place.line, fault))
        if key[0] == "notify":
            kept.pop(key[1], None)
    return replace(config, notifiers=kept) if found else config, tuple(found)


def _programs(config: Config, document: Document) -> Iterator[tuple[_Path, str]]:
    """Yield each key that names a program, and its name or path."""
    for name, notifier in config.notifiers.items():
        for way in _SECRETS:
            secret = getattr(notifier, way)
            if secret is not None and secret.command:
                program = secret.command[0]  # it is run in /
                yield (
                    ("notify", name, way, "command"),
                    f"/{program}" if "/" in program and program[0] != "/" else program,
                )
        if notifier.sendmail is not None:
            yield ("notify", name, "sendmail"), os.fspath(notifier.sendmail)
    for name, target in config.targets.items():
        for command, options in target.options.items():
            key = ("target", name, command, "identity")
            words = options.get("identity", ())
            if key not in document.places or not isinstance(words, tuple):  # another command has written it
                continue
            for word in words:
                with suppress(ValueError):
                    argv = shlex.split(word.removeprefix(_COMMAND)) if word.startswith(_COMMAND) else []
                    if argv:
                        yield key, argv[0]


_SECRETS = tuple(key.name for key in keys.NAMED["notify"] if key.kind is keys.Kind.SECRET)


def _path(word: str) -> Path | None:
    """Return where a program is; None: nowhere."""
    found = word if word.startswith("/") else shutil.which(word)
    return None if found is None else Path(found).absolute()
