"""Open the store that a target's name stands for."""

from __future__ import annotations

import re
from pathlib import Path

from vbackup.errors import StorageError
from vbackup.files import storage_errors
from vbackup.stores.directory import DirectoryStore
from vbackup.stores.store import Store

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")


def opened(target: str, *, create: bool = False) -> Store:
    """Return the store of a target: a path, or a URL.

    ``create``: a directory that does not exist is made, with mode 0700. Raises StorageError.
    """
    url = _URL.match(target)
    if url is not None and url[1] != "file":
        raise StorageError(f"A target cannot be a {url[1]}:// URL. Give a directory.")
    path = Path(target[len("file://") :] if url is not None else target)
    with storage_errors(f"{'create' if create else 'read'} {path}"):
        if create:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.is_dir():
            raise StorageError(f"There is no directory {path}; is the disk mounted?")
        return DirectoryStore(path.resolve())
