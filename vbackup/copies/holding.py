"""Points in a directory that cannot be removed for days after they were copied: the immutable flag of their files.

Only points that exist get it, never what is unfinished. A run that was killed before it could do that is made up for by
the next one, as all points that are not that old are looked at.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from vbackup.copies.target import MANIFEST, UPLOAD, Listing, Target
from vbackup.errors import UsageError
from vbackup.stores.directory import DirectoryStore
from vbackup.stores.store import Store, StoredObject


def refuse_impossible(store: Store) -> DirectoryStore:
    """Return the directory in which files can be made immutable.

    Raises UsageError if it is no directory, StorageError if its filesystem or this user cannot do that.
    """
    if not isinstance(store, DirectoryStore):
        raise UsageError(
            f"--immutable is for directories. Let {store.name} itself lock objects: with Object Lock and a default"
            " retention, for example."
        )
    store.refuse_unholdable()
    return store


def hold(listed: Listing, days: int, *, target: Target, directory: DirectoryStore) -> int:
    """Make the objects of a domain's points immutable until so many days after they were stored; count them.

    Raises StorageError.
    """
    now = datetime.now(timezone.utc)
    count = 0
    for objects in listed.points.values():
        manifest = objects[MANIFEST]
        until = manifest.modified + timedelta(days=days)
        others = [each for name, each in sorted(objects.items()) if name != MANIFEST and not name.startswith(UPLOAD)]
        if until > now:
            count += sum(_hold(each, until, target, directory) for each in [*others, manifest])
    return count


def _hold(each: StoredObject, until: datetime, target: Target, directory: DirectoryStore) -> bool:
    key = each.key if target.sealed is None else target.sealed.inner_key(each.key)
    return directory.hold(key, until)
