"""The configuration in a repository, so that it is there on the day on which the machine is not.

REPO/config.toml    what holds for this machine, as one file, 0600; secrets only as where they are
"""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

from vbackup.config import loading, writing
from vbackup.config.model import Config
from vbackup.errors import ConfigError, StorageError
from vbackup.files import read_regular, replace_text, storage_errors

FILE = "config.toml"
_MAX_BYTES = 1024 * 1024
_HEADER = """\
# The configuration of vbackup on {host}, as it was when a run used it ({time}).
# 'vbackup config recover -r REPOSITORY' prints it. Secrets are not in it, only where they were.

"""


def keep(repository: Path, config: Config, *, host: str, now: datetime | None = None) -> bool:
    """Write the configuration into a repository, unless it is there; return True if it was written.

    Raises StorageError.
    """
    text = writing.toml(config)
    path = repository / FILE
    try:
        if _without_header(_read(path)) == text:
            return False
    except (OSError, UnicodeDecodeError):
        pass  # there is none, or none that vbackup writes: it is written now
    moment = (now or datetime.now(timezone.utc)).astimezone(timezone.utc)
    header = _HEADER.format(host=_one_line(host), time=f"{moment:%Y-%m-%dT%H:%M:%SZ}")
    with storage_errors(f"keep the configuration in {path}"):
        replace_text(path, header + text)
    return True


def kept(repository: Path) -> str:
    """Return the text of the configuration that is kept in a repository, with the comment in front.

    Raises StorageError if there is none, or it is not one that vbackup has written.
    """
    path = repository / FILE
    try:
        text = _read(path)
    except FileNotFoundError as err:
        raise StorageError(f"{repository} has no configuration: no run of 'vbackup run' has kept one there.") from err
    except OSError as err:
        raise StorageError(f"The configuration {path} cannot be read: {err.strerror or err}.") from err
    except UnicodeDecodeError as err:
        raise StorageError(f"The configuration {path} is damaged: it is not UTF-8.") from err
    faults = loading.parsed(path, text).faults
    if faults:
        raise StorageError(f"The configuration in the repository is damaged: {faults[0]}")
    return text


def write_new(path: Path, text: str) -> None:
    """Write a configuration to a file that does not exist yet, with mode 0600; its directory is made.

    Raises ConfigError if there is a file, StorageError.
    """
    with storage_errors(f"write {path}"):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise ConfigError(
                os.fspath(path), 0, "The file exists, and is never overwritten: move it away, or give another name."
            ) from None
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> str:
    return read_regular(path, max_bytes=_MAX_BYTES).decode()


def _without_header(text: str) -> str:
    lines = text.split("\n")
    while lines and (lines[0].startswith("#") or not lines[0]):
        lines.pop(0)
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)
