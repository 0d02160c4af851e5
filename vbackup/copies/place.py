"""A target as its user names it, and the directory of this machine for what is read from targets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vbackup.stores import opening
from vbackup.stores.sealed import Keys
from vbackup.stores.store import Store

#: The cache of root, which backs up and restores.
_OF_ROOT = Path("/var/cache/vbackup")


@dataclass(frozen=True)
class TargetPlace:
    """Where a target is, and what opens it."""

    url: str  #: or a path
    keys: Keys = field(default_factory=Keys, repr=False)  #: of an encrypted target
    config: Path | None = None  #: a file with keys and endpoint of a bucket (default: the environment has them)

    @contextmanager
    def opened(self, *, create: bool = False, is_dry_run: bool = False) -> Iterator[Store]:
        """Yield its store; ``create``: a directory that does not exist is made, or with ``is_dry_run`` counts as empty.

        Raises StorageError, also if the one above it does not exist.
        """
        store = opening.opened(self.url, create=create, is_dry_run=is_dry_run, config=self.config)
        try:
            yield store
        finally:
            store.close()


def default_cache() -> Path:
    """Return the directory for what is read from targets, which may not exist yet."""
    if os.geteuid() == 0:
        return _OF_ROOT
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "vbackup"
