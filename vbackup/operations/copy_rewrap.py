"""Let other recipients read what a target has: seal the file key of each object to them, without its data.

Each object of a point gets a header more, its manifest last (vbackup.stores.sealed). Those who could read a point
before still can: what they have, or had, cannot be taken from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vbackup.copies import target as targets
from vbackup.copies.target import MANIFEST
from vbackup.errors import IdentityError, IdentityNeededError, StorageError, UsageError
from vbackup.report import Reporter
from vbackup.stop import Stop
from vbackup.stores.sealed import Keys, SealedStore
from vbackup.stores.store import Store, StoredObject

#: Objects that get their header at a time: the time of each is that of some requests.
MAX_REQUESTS = 8


@dataclass(frozen=True)
class Rewrapped:
    """What the recipients can read now that they may not have been able to read before."""

    target: str
    points: int  #: at the target, without those that were passed
    objects: int  #: that got a header
    passed: tuple[str, ...] = ()  #: points that the identity does not open, as UUID/id


def run(store: Store, keys: Keys, *, reporter: Reporter, stop: Stop) -> Rewrapped:
    """Seal all points of a target to the recipients of ``keys`` too; its identities open them now.

    A point that they do not open is passed, with a warning. Raises UsageError without recipients, or if the target is
    not encrypted; IdentityError if there is no identity, or if it opens nothing at all, SealedError, StorageError,
    InterruptedBySignalError: the same call goes on.
    """
    if not keys.recipients:
        raise UsageError("Say with --recipient who is to read the copies.")
    target = targets.opened(store, keys)
    sealed = target.sealed
    if sealed is None:
        raise UsageError(f"What is in {target.name} is not encrypted, so there is nothing to seal to other recipients.")
    if not keys.identities:
        raise IdentityNeededError(target.name)
    points = [
        (f"{uuid}/{backup_id}", objects)
        for uuid, listed in targets.listings(target).items()
        for backup_id, objects in listed.points.items()
    ]
    objects = 0
    passed: dict[str, IdentityError] = {}
    with ThreadPoolExecutor(max_workers=MAX_REQUESTS) as pool:
        for name, found in points:
            stop.check()
            try:
                objects += _point(found, sealed, keys, pool)
            except IdentityError as err:
                passed[name] = err
    if passed and len(passed) == len(points):
        raise next(iter(passed.values()))
    for name, why in passed.items():
        reporter.warning(f"Backup {name} stays as it was: {why}")
    return Rewrapped(target.name, len(points) - len(passed), objects, tuple(passed))


def _point(found: dict[str, StoredObject], sealed: SealedStore, keys: Keys, pool: ThreadPoolExecutor) -> int:
    """Seal the objects of a point, and return how many got a header now."""

    def one(each: StoredObject) -> bool:
        try:
            return sealed.rewrap(each.key, keys.recipients)
        except FileNotFoundError:
            raise StorageError(
                f"{each.key} in {sealed.name} was removed meanwhile; run the same command again."
            ) from None

    sealed.check_identity(found[MANIFEST].key)
    others: Sequence[StoredObject] = [each for name, each in found.items() if name != MANIFEST]
    return sum(pool.map(one, others)) + one(found[MANIFEST])
