"""The key of what is encrypted in a guest: from a file, or from the terminal. It is printed and recorded nowhere."""

from __future__ import annotations

import os
import select
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vbackup.api import Keys
from vbackup.errors import UnsuitableError, UsageError
from vbackup.files import storage_errors
from vbackup.stop import Stop

#: LUKS takes passphrases of up to 512 bytes interactively, and key files of up to 8 MiB, which are binary.
_MAX_BYTES = 8192
_ATTEMPTS = 3
_TERMINAL = Path("/dev/tty")


def of(key_file: Path | None, stop: Stop) -> Keys:
    """Return the keys of the file, which is read now, or what asks for them when one is needed.

    Raises UsageError, StorageError.
    """
    if key_file is not None:
        key = _read(key_file)
        return lambda _name, attempt: key if attempt == 0 else None
    known: dict[str, bytes] = {}

    def ask(name: str, attempt: int) -> bytes | None:
        if attempt == 0 and name in known:
            return known[name]
        if attempt == _ATTEMPTS:
            return None
        known[name] = _asked(f"Passphrase of {name} in the guest{', again' if attempt else ''}: ", name, stop)
        return known[name]

    return ask


def _read(path: Path) -> bytes:
    with storage_errors(f"read the key file {path}"), path.open("rb") as file:
        key = file.read(_MAX_BYTES + 1).removesuffix(b"\n")
    if len(key) > _MAX_BYTES or b"\n" in key or b"\0" in key:
        raise UsageError(
            f"The key file {path} has a line break or a NUL byte in it, or more than {_MAX_BYTES} bytes; it has to be a"
            " passphrase in one line."
        )
    if not key:
        raise UsageError(f"The key file {path} is empty.")
    return key


def _asked(prompt: str, name: str, stop: Stop) -> bytes:
    try:
        fd = os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as err:
        raise UnsuitableError(
            f"{name} in the guest is encrypted, and there is no terminal to ask for its passphrase: give --key-file."
        ) from err
    try:
        with _without_echo(fd), stop.descriptor() as stopping:
            os.write(fd, prompt.encode())
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.register(stopping, select.POLLIN)
            found = [number for number, _ in poll.poll()]
            stop.check()
            line = os.read(fd, _MAX_BYTES) if fd in found else b""  # a terminal gives a line at a time
            os.write(fd, b"\n")
    finally:
        os.close(fd)
    key = line.removesuffix(b"\n")
    if not key or b"\0" in key:
        raise UnsuitableError(f"No passphrase was given for {name}, which is encrypted.")
    return key


@contextmanager
def _without_echo(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(fd, termios.TCSAFLUSH, silent)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)
