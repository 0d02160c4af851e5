"""The configurations in a repository, so that they are there on the day on which a machine is not.

REPO/config-HOST-XXXXXXXX.toml    what holds for a machine, as one file, 0600; secrets only as where they are

HOST is its name, and X... tells two machines of one name apart, by their machine ids. Of two names with one id, as
clones have, each is a host. Earlier versions had one file for all, config.toml, which is read, too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from vbackup import names
from vbackup.config import loading, writing
from vbackup.config.model import Config
from vbackup.errors import ConfigError, StorageError, UsageError
from vbackup.files import read_regular, replace_text, storage_errors
from vbackup.model import HostIdentity

#: What earlier versions wrote, whatever the host.
OLD_FILE = "config.toml"
_FILE = re.compile(r"config-(.+?)(-[0-9a-f]{8})?\.toml")
_MAX_BYTES = 1024 * 1024
_HEADER = """\
# The configuration of vbackup on {host}, as it was when a run used it ({time}).
# 'vbackup config recover -r REPOSITORY' prints it. Secrets are not in it, only where they were.

"""
_FIRST_LINE = re.compile(r"# The configuration of vbackup on (.+), as it was when a run used it \(([0-9TZ:-]+)\)\.")


@dataclass(frozen=True)
class KeptConfig:
    """A configuration in a repository."""

    host: str  #: name of the host that it is of
    time: datetime | None  #: when it was written; None if the file does not say so
    path: Path


def keep(repository: Path, config: Config, *, host: HostIdentity, now: datetime | None = None) -> bool:
    """Write the configuration of a host into a repository, unless it is there; return True if it was written.

    Raises StorageError.
    """
    text = writing.toml(config)
    path = repository / _name(host)
    try:
        if _without_header(_read(path)) == text:
            return False
    except (OSError, UnicodeDecodeError):
        pass  # there is none, or none that vbackup writes: it is written now
    moment = (now or datetime.now(timezone.utc)).astimezone(timezone.utc)
    name = _one_line(host.name)
    header = _HEADER.format(host=name, time=f"{moment:%Y-%m-%dT%H:%M:%SZ}")
    with storage_errors(f"keep the configuration in {path}"):
        replace_text(path, header + text)
        old = repository / OLD_FILE
        if _described(old).host == name:
            old.unlink(missing_ok=True)
    return True


def all_kept(repository: Path) -> tuple[KeptConfig, ...]:
    """Return the configurations that are kept in a repository, by host, of machines of one name the oldest first.

    Raises StorageError if the directory cannot be read.
    """
    oldest = datetime.min.replace(tzinfo=timezone.utc)
    return tuple(sorted(_all(repository), key=lambda one: (one.host, one.time or oldest, one.path)))


def kept(repository: Path, host: str | None = None, *, here: HostIdentity | None = None) -> str:
    """Return the text of a configuration that is kept in a repository, with the comment in front.

    ``host``: of which host, by its name, or by that of the file without .toml; None: the only one there, or that of
    ``here``, this host. Raises UsageError if that leaves several, or the host has none, StorageError if there is none
    at all, or it is not one that vbackup has written.
    """
    path = _chosen(all_kept(repository), repository, host, here).path
    try:
        text = _read(path)
    except OSError as err:
        raise StorageError(f"The configuration {path} cannot be read: {err.strerror or err}.") from err
    except UnicodeDecodeError as err:
        raise StorageError(f"The configuration {path} is damaged: it is not UTF-8.") from err
    faults = loading.parsed(path, text).faults
    if faults:
        raise StorageError(f"The configuration in the repository is damaged: {faults[0]}")
    return text


def _chosen(found: Sequence[KeptConfig], repository: Path, host: str | None, here: HostIdentity | None) -> KeptConfig:
    """Return the one that is wanted; UsageError and StorageError are those of ``kept``."""
    if not found:
        raise StorageError(f"{repository} has no configuration: no run of 'vbackup run' has kept one there.")
    if host is not None:
        wanted = [one for one in found if host in (one.host, one.path.stem)]
    else:
        # That of this very machine; otherwise that of its name, as after it was installed again.
        ours = [one for one in found if here is not None and one.path.name == _name(here)]
        wanted = ours or [one for one in found if here is not None and one.host == _one_line(here.name)] or [*found]
    if not wanted:
        known = tuple(dict.fromkeys(one.host for one in found))
        hint = names.closest(host or "", known) or f"; there are those of: {', '.join(known)}"
        raise UsageError(f"The repository has no configuration of host {host!r}{hint}.")
    if len(wanted) > 1:
        hosts = [one.host for one in wanted]
        words = [one.host if hosts.count(one.host) == 1 else one.path.stem for one in wanted]
        raise UsageError(
            f"The repository has configurations of {len(wanted)} hosts: {', '.join(words)}. Say with --host which one."
        )
    return wanted[0]


def _name(host: HostIdentity) -> str:
    """Return the name of a host's file. The machine id itself is not for others (machine-id(5))."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", host.name)[:64].lstrip(".") or "host"
    return f"config-{name}{_suffix(host)}.toml"


def _suffix(host: HostIdentity) -> str:
    return "" if host.machine_id is None else f"-{hashlib.sha256(host.machine_id.encode()).hexdigest()[:8]}"


def _all(repository: Path) -> Iterator[KeptConfig]:
    with storage_errors(f"read {repository}"):
        paths = sorted(repository.iterdir())
    for path in paths:
        if path.name == OLD_FILE or _FILE.fullmatch(path.name):
            yield _described(path)


def _described(path: Path) -> KeptConfig:
    """Return whose configuration a file is; what it does not say is taken from its name."""
    match = _FILE.fullmatch(path.name)
    host = match[1] if match else "unknown"
    with suppress(OSError, ValueError):
        found = _FIRST_LINE.fullmatch(_read(path).partition("\n")[0])
        if found is not None:
            return KeptConfig(found[1], datetime.fromisoformat(found[2].replace("Z", "+00:00")), path)
    return KeptConfig(host, None, path)


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
