"""Open the store that a target's name stands for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

from vbackup.errors import MissingPackageError, StorageError, UsageError
from vbackup.files import storage_errors
from vbackup.stores import settings
from vbackup.stores.directory import DirectoryStore
from vbackup.stores.ssh import SshStore
from vbackup.stores.store import Store, is_key

#: Schemes for which obstore is needed.
CLOUDS = ("s3", "az", "gs")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")


def opened(target: str, *, create: bool = False, is_dry_run: bool = False, config: Path | None = None) -> Store:
    """Return the store of a target: a path, or a URL.

    ``create``: a directory that does not exist is made, with mode 0700, in one that does: what is missing above it can
    be a disk that is not mounted, and everything would go to the one below. ``is_dry_run``: it is not made, and counts
    as empty. ``config``: a file with keys and an endpoint (vbackup-copy(7)).

    Raises StorageError, StoreUnreachableError, UsageError (no such URL) and MissingPackageError.
    """
    url = _URL.match(target)
    scheme = url[1] if url is not None else "file"
    if scheme == "ssh":
        return SshStore(target, create=create, is_dry_run=is_dry_run)
    if scheme in CLOUDS:
        return _in_cloud(target, settings.read(config))
    if scheme != "file":
        raise StorageError(
            f"A target cannot be a {scheme}:// URL. Give a directory, ssh://HOST/DIRECTORY, s3://BUCKET/PREFIX,"
            " az://CONTAINER/PREFIX or gs://BUCKET/PREFIX."
        )
    path = Path(target[len("file://") :] if url is not None else target)
    with storage_errors(f"{'create' if create else 'read'} {path}"):
        if create and not path.is_dir():
            if not path.parent.is_dir():
                raise StorageError(
                    f"There is no directory {path.parent} in which {path.name} could be made; is the disk mounted? If"
                    f" it should be there, run 'mkdir -p {shlex.quote(str(path.parent))}'."
                )
            if not is_dry_run:
                path.mkdir(mode=0o700, exist_ok=True)
        if not path.is_dir() and not (create and is_dry_run):
            raise StorageError(f"There is no directory {path}; is the disk mounted?")
        return DirectoryStore(path.resolve())


def _in_cloud(target: str, found: settings.Settings) -> Store:
    parts = urlsplit(target)
    prefix = parts.path.strip("/")
    if "@" in parts.netloc:  # nothing of the address is shown then
        raise UsageError("An address must have no keys, which every user of this host could read: see --target-config.")
    if not _BUCKET.fullmatch(parts.netloc) or parts.query or parts.fragment or (prefix and not is_key(prefix)):
        raise UsageError(f"{target!r} is not an address: it should be like s3://my-bucket/copies.")
    try:
        # Here, so that all else works without obstore and starts without loading it.
        from vbackup.stores import cloud_kinds
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] != "obstore":
            raise
        why = f"Copies go to {parts.scheme}:// by obstore"
        raise MissingPackageError("obstore", why, debian=None, purpose="do that") from err
    return cloud_kinds.opened(parts.scheme, parts.netloc, prefix, found)
