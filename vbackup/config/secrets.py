"""Read a secret that the configuration names. It is never logged, and no message has anything of it."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

from vbackup import files
from vbackup.config import values
from vbackup.config.model import Secret
from vbackup.errors import SecretError
from vbackup.process import refuse_lost_ends

#: Longer than any URL or password.
MAX_BYTES = 64 * 1024
#: Where systemd puts what LoadCredential= names (systemd.exec(5)).
CREDENTIALS = "CREDENTIALS_DIRECTORY"


def read(secret: Secret, timeout_s: float, *, environ: Mapping[str, str] | None = None) -> str:
    """Return the secret: the first line of a file, or of what a command prints within the time.

    Raises SecretError.
    """
    source = describe(secret)
    if secret.command is not None:
        data = _printed(source, secret.command, timeout_s)
    elif secret.credential is not None:
        data = _content(
            source, _credential(source, secret.credential, os.environ if environ is None else environ), 0o007
        )
    else:
        assert secret.file is not None
        data = _content(source, secret.file, 0o077)
    line = data.partition(b"\n")[0].rstrip(b"\r")
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        raise SecretError(source, "its first line is not UTF-8") from None
    if not text or not text.isprintable():
        raise SecretError(source, "its first line is empty" if not text else "its first line cannot be printed")
    return text


def describe(secret: Secret) -> str:
    """Return where the secret is, in words. A command is named without its arguments, which may say too much."""
    if secret.file is not None:
        return f"file {secret.file}"
    if secret.credential is not None:
        return f"credential {secret.credential!r}"
    return f"command {(secret.command or ('',))[0]!r}"


def _credential(source: str, name: str, environ: Mapping[str, str]) -> Path:
    directory = environ.get(CREDENTIALS)
    try:
        values.credential_name(name)
    except ValueError as err:
        raise SecretError(source, f"this cannot be the name of a credential: {err}") from None
    if not directory:
        raise SecretError(source, f"{CREDENTIALS} is not set: only a service with LoadCredential={name}:FILE has it")
    return Path(directory) / name


def _content(source: str, path: Path, denied: int) -> bytes:
    """Return the beginning of a file that only this user and root can read.

    ``denied``: bits that its mode may not have. Those of the group are the mask of the access list, where systemd lets
    the user of a service read a credential.
    """
    try:
        # Symbolic links are followed: systemd and configuration management put some there.
        fd = files.open_regular(path.resolve(strict=True))
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if status.st_uid not in (0, os.geteuid()):
                raise SecretError(
                    source, f"it belongs to {files.user_name(status.st_uid)}, so it is no secret of yours"
                )
            if stat.S_IMODE(status.st_mode) & denied:
                raise SecretError(
                    source, f"others can read it: run 'chmod 600 {shlex.quote(str(path))}', and make a new secret"
                )
            return file.read(MAX_BYTES)
    except (OSError, ValueError, RuntimeError) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        raise SecretError(source, f"it cannot be read ({why or err})") from err


def _printed(source: str, command: tuple[str, ...], timeout_s: float) -> bytes:
    """Return the beginning of what the command prints; its messages go where this process' go."""
    refuse_lost_ends()
    deadline = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/", start_new_session=True
        )
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        raise SecretError(source, f"it cannot be run ({why or err})") from err
    with process:
        try:
            data = _until(process, deadline)
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise SecretError(source, f"it did not end within {timeout_s:g} s, and was ended") from None
        finally:
            _end(process)
    if status != 0:
        raise SecretError(source, f"it failed with status {status}")
    return data


def _until(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Return what the command prints until it closes its output. Raises TimeoutExpired at the deadline."""
    assert process.stdout is not None
    data = b""
    with DefaultSelector() as selector:
        selector.register(process.stdout, EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise subprocess.TimeoutExpired("", 0)
            piece = os.read(process.stdout.fileno(), MAX_BYTES)
            if not piece:
                return data
            if len(data) < MAX_BYTES:
                data += piece


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command, and what it has started, if it still runs."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
    if process.stdout is not None:
        process.stdout.close()
