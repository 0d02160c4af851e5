"""The configuration of daily operation: check it, show it, make a first one, and get it back from a repository."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vbackup.config.keeping import KeptConfig
    from vbackup.config.model import Config
    from vbackup.config.showing import Shown
    from vbackup.operations.config_check import CheckedConfig
    from vbackup.stop import Stop


def check_config(
    path: str | os.PathLike[str] | None = None, *, is_offline: bool = False, stop: Stop | None = None
) -> CheckedConfig:
    """Return all that is wrong with the configuration of a file; None: that of this user.

    libvirt, repositories, targets, secrets and files that it names are looked at, and nothing is changed.
    ``is_offline``: only what the files say. Raises NoConfigError, ConfigError if it cannot be seen which files there
    are, InterruptedBySignalError.
    """
    from vbackup.config import loading
    from vbackup.operations import config_check

    loaded = loading.load(None if path is None else [Path(path)])
    return config_check.check(loaded, is_offline=is_offline, stop=stop)


def effective_config(config: Config) -> tuple[Shown, ...]:
    """Return each key that holds, with its place or its default."""
    from vbackup.config import showing

    return showing.effective(config)


def config_text(shown: Sequence[Shown], *, with_origin: bool = False) -> str:
    """Return keys as TOML, with defaults as comments; ``with_origin``: with the place of each."""
    from vbackup.config import showing

    return showing.text(shown, with_origin=with_origin)


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of vbackup.toml, for editors."""
    from vbackup.config import schema

    return schema.schema()


def propose_config(uris: Sequence[str] = (), *, repository: str | os.PathLike[str] | None = None) -> str:
    """Return the text of a first configuration, with comments, for the domains of these hosts.

    ``uris``: none: those of libvirt's default. ``repository``: its directory. Raises HostUnreachableError.
    """
    from vbackup.operations import config_init

    return config_init.propose(uris, repository=None if repository is None else Path(repository))


def write_config(path: str | os.PathLike[str], text: str) -> None:
    """Write a configuration to a file that does not exist yet. Raises ConfigError if there is one, StorageError."""
    from vbackup.config import keeping

    keeping.write_new(Path(path), text)


def keep_config(repository: str | os.PathLike[str], config: Config) -> bool:
    """Keep this host's configuration in a repository, unless it is there; return True if it was not.

    Raises StorageError.
    """
    from vbackup.config import keeping
    from vbackup.machine import this_host

    return keeping.keep(Path(repository), config, host=this_host())


def kept_config(repository: str | os.PathLike[str], host: str | None = None) -> str:
    """Return the text of the configuration of a host that was kept in a repository.

    ``host``: its name, or that of the file without .toml, if two hosts have the name; None: the only one there is, or
    that of this host. Raises UsageError if that leaves several, or none,
    StorageError.
    """
    from vbackup.config import keeping
    from vbackup.machine import this_host
    from vbackup.repository.repository import Repository

    return keeping.kept(Repository.open(Path(repository)).path, host, here=this_host())


def kept_configs(repository: str | os.PathLike[str]) -> tuple[KeptConfig, ...]:
    """Return which hosts' configurations are kept in a repository. Raises StorageError."""
    from vbackup.config import keeping
    from vbackup.repository.repository import Repository

    return keeping.all_kept(Repository.open(Path(repository)).path)
