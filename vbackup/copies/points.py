"""Read the manifests of a target: those that are not in the ledger yet, several at a time."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vbackup.copies import point as points
from vbackup.copies.ledger import Known
from vbackup.copies.point import Point
from vbackup.copies.target import MANIFEST, Listing, Target
from vbackup.errors import ChainError, VbackupError
from vbackup.repository import manifest
from vbackup.stop import Stop
from vbackup.stores.store import StoredObject, read_small

#: Manifests that are read at a time: the time of each is that of a request.
MAX_REQUESTS = 8


@dataclass(frozen=True)
class There:
    """The points that a target has of a domain."""

    points: Mapping[str, Point]  #: by id, in the order of their sequence
    unreadable: Mapping[str, VbackupError]  #: why the manifests of others could not be read, by id

    @property
    def ids(self) -> frozenset[str]:
        """The ids of all."""
        return frozenset((*self.points, *self.unreadable))


def read(known: Known, listed: Listing, *, stop: Stop) -> There:
    """Return the points of a domain. Raises StorageError if the target cannot be read, InterruptedBySignalError."""
    target, ledger = known.target, known.ledger
    ledger.keep_only(listed.uuid, listed.points.keys())

    def one(backup_id: str) -> Point | VbackupError:
        stop.check()
        stored = listed.points[backup_id][MANIFEST]
        kept = ledger.get(listed.uuid, backup_id, stored)
        try:
            text = _fetched(target, stored) if kept is None else kept
            found = points.load(text, backup_id=backup_id, uuid=listed.uuid)
        except ChainError as err:
            return err
        if kept is None:
            ledger.put(listed.uuid, backup_id, text, stored)
        return found

    with ThreadPoolExecutor(max_workers=MAX_REQUESTS) as pool:
        found = dict(zip(listed.points, pool.map(one, listed.points)))
    readable = {backup_id: each for backup_id, each in found.items() if isinstance(each, Point)}
    return There(
        dict(sorted(readable.items(), key=lambda entry: entry[1].backup.sequence)),
        {backup_id: each for backup_id, each in found.items() if not isinstance(each, Point)},
    )


def _fetched(target: Target, listed: StoredObject) -> str:
    key = listed.key
    if listed.size_bytes > manifest.MAX_SIZE_BYTES:  # one that is damaged must not hide all others
        raise ChainError(f"{key} in {target.name} is larger than any manifest.")
    data = read_small(target.store, key, max_bytes=manifest.MAX_SIZE_BYTES)
    if data is None:
        raise ChainError(f"{key} in {target.name} was removed meanwhile.")
    try:
        return data.decode()
    except ValueError as err:
        raise ChainError(f"{key} in {target.name} is not a manifest: {err}.") from err
