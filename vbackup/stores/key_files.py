"""Where the user's keys come from: recipients from words and files, identities from a file or a program.

An identity is a secret: it is never an argument, and no message has anything of it.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from vbackup import files
from vbackup.errors import IdentityError, UsageError
from vbackup.process import refuse_lost_ends
from vbackup.stores import age_header, age_keys
from vbackup.stores.age_keys import Identity, Recipient

#: What a word begins with that is a command line, and no path.
COMMAND = "command:"
_MAX_BYTES = 64 * 1024
_ENCRYPTED = (b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE-----")

_Key = TypeVar("_Key", Recipient, Identity)


def recipients(words: Sequence[str], paths: Sequence[Path]) -> tuple[Recipient, ...]:
    """Return the recipients that are given as words, and as lines of files. None is there twice.

    Raises UsageError.
    """
    found: dict[Recipient, None] = {}
    for word in words:
        try:
            found[age_keys.recipient(word)] = None
        except ValueError as err:
            shown = "..." if word.upper().startswith("AGE-SECRET-KEY-") else repr(word[:80])
            raise UsageError(f"--recipient {shown} cannot be used: {err}.") from None
    for path in paths:
        try:
            with os.fdopen(files.open_regular(path), "rb") as file:
                data = file.read(_MAX_BYTES + 1)
            found.update(dict.fromkeys(_lines(data, age_keys.recipient)))
        except (OSError, ValueError) as err:
            why = err.strerror if isinstance(err, OSError) else str(err)
            raise UsageError(f"The recipients file {path} cannot be used: {why}.") from None
    if len(found) > age_header.MAX_RECIPIENTS:
        raise UsageError(
            f"{len(found)} recipients are more than the {age_header.MAX_RECIPIENTS} that a copy can be sealed to."
        )
    return tuple(found)


def identities(words: Iterable[str]) -> tuple[Identity, ...]:
    """Return the identities of files, or of what commands print (``command:age -d key.age``, which no shell reads).

    Raises IdentityError.
    """
    found: dict[Identity, None] = {}
    for word in words:
        is_command = word.startswith(COMMAND)
        data = _printed(word.removeprefix(COMMAND)) if is_command else _content(Path(word))
        what = f"What {word.removeprefix(COMMAND)!r} printed" if is_command else f"The identity file {word}"
        if data.startswith(_ENCRYPTED):
            raise IdentityError(
                f"{what} is encrypted itself: let age open it, with --identity"
                f" {shlex.quote(f'{COMMAND}age -d {shlex.quote(word)}')}, which asks for its passphrase."
            )
        try:
            found.update(dict.fromkeys(_lines(data, age_keys.identity)))
        except ValueError as err:
            raise IdentityError(f"{what} cannot be used: {err}.") from None
    return tuple(found)


def _lines(data: bytes, read: Callable[[str], _Key]) -> list[_Key]:
    """Return the keys of a file, one a line. Raises ValueError, with the number of the line and not its text."""
    if len(data) > _MAX_BYTES:
        raise ValueError("it is larger than any file with keys")
    found = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            found.append(read(text))
        except ValueError as err:
            raise ValueError(f"line {number}: {err}") from None
    if not found:
        raise ValueError("it has no key")
    return found


def _content(path: Path) -> bytes:
    try:
        with os.fdopen(files.open_regular(path), "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid not in (os.geteuid(), 0):
                raise IdentityError(
                    f"Others can read the identity file {path}, or it is somebody else's: make it yours, with mode 0600"
                    f" ('chmod 600 {shlex.quote(str(path))}'). If others may have read it, make a new one and use"
                    " 'vbackup copy --rewrap'."
                )
            return file.read(_MAX_BYTES + 1)
    except OSError as err:
        raise IdentityError(f"The identity file {path} cannot be read: {err.strerror or err}.") from err


def _printed(command: str) -> bytes:
    """Return what a program prints. It has the terminal, so it can ask for a passphrase."""
    refuse_lost_ends()
    try:
        argv = shlex.split(command)
    except ValueError as err:
        raise IdentityError(f"The command {command!r} of --identity is not valid: {err}.") from None
    if not argv:
        raise IdentityError(f"--identity {COMMAND} has no command behind it.")
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    except OSError as err:
        raise IdentityError(f"The command {argv[0]} of --identity cannot be run: {err.strerror or err}.") from err
    if done.returncode != 0:
        raise IdentityError(
            f"The command {argv[0]} of --identity failed with status {done.returncode}; see what it printed above."
        )
    return done.stdout
