"""A target of copies: a store with a marker, the format that it has, and the repository that its points are of.

    vbackup.json                            the marker: format, id, id of the repository
    <domain uuid>/<backup id>/manifest.json and the files that it names, as in a repository
    <domain uuid>/<backup id>/upload-<id>   while a point is being copied, or since that was interrupted
    <domain uuid>/claim-<id>                while a vbackup copies points of the domain, or removes some
    <domain uuid>/released-<id>             that claim has ended, and the store does not allow to delete it

A point exists when its manifest does: that is stored last, and deleted first. The marker names nobody and is the one
object that a store which encrypts leaves as it is. vbackup-copy(7) describes all of it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vbackup import names
from vbackup.errors import StorageError, UsageError
from vbackup.fields import Fields, parse_json
from vbackup.stores.sealed import Keys, SealedStore
from vbackup.stores.store import Store, StoredObject, is_key, read_small, refuse_too_many

MARKER = "vbackup.json"
SCHEMA = "vbackup.target/1"
VERSION = 1
MANIFEST = "manifest.json"
CLAIM, RELEASED, UPLOAD = "claim-", "released-", "upload-"
_AGE = "age"
_MAX_MARKER_BYTES = 64 * 1024
_TOKEN = re.compile(r"[0-9a-f]{12}")
_NO_KEYS = Keys()


@dataclass(frozen=True)
class Target:
    """A target whose marker has been read or written."""

    store: Store
    id: str
    repository_id: str  #: of the repository whose points it has

    @property
    def name(self) -> str:
        """How users call it."""
        return self.store.name

    @property
    def sealed(self) -> SealedStore | None:
        """The store, if all objects but the marker are age files."""
        return self.store if isinstance(self.store, SealedStore) else None

    def put_small(self, key: str, data: bytes) -> bool:
        """Store a small object unless the key is taken; return True if it was stored. Raises StorageError."""
        return self.store.put_new(key, io.BytesIO(data), len(data))


def opened(store: Store, keys: Keys = _NO_KEYS) -> Target:
    """Return the target in a store. Raises StorageError if there is none, or its format is not one of ours.

    ``keys``: of one that is encrypted; without an identity, nothing but names and sizes can be read. Raises
    MissingPackageError.
    """
    data = read_small(store, MARKER, max_bytes=_MAX_MARKER_BYTES)
    if data is None:
        raise StorageError(f"{store.name} is not a target of copies; 'vbackup copy --to' makes a new one.")
    fields = _fields(store, data)
    schema = fields.text("schema")
    if schema.startswith("vbackup.repository/"):
        raise StorageError(
            f"{store.name} is a repository and not a target of copies: give it with -r, or another place."
        )
    if not schema.startswith("vbackup.target/"):
        raise StorageError(f"{store.name} is not a target of copies: its {MARKER} is of {schema[:50]!r}.")
    version = fields.integer("version")
    if version == VERSION and schema != SCHEMA:  # one of them is wrong, and objects could be named in another way
        raise StorageError(
            f"{store.name} has target format {version} by the version in its {MARKER}, but {schema[:50]!r} by its"
            f" schema; this vbackup knows {SCHEMA!r}. Use the vbackup that made it."
        )
    if version != VERSION:
        which, remedy = ("newer", "a newer vbackup") if version > VERSION else ("older", "the vbackup that made it")
        raise StorageError(
            f"{store.name} has the {which} target format {version}, but this vbackup knows {VERSION}; use {remedy}."
        )
    found = (fields.text("id"), fields.text("repository"))
    for each in found:
        if not names.REPOSITORY_ID.fullmatch(each):
            raise StorageError(f"{store.name} has the id {each[:50]!r} in its {MARKER}, which vbackup never assigns.")
    encryption = fields.optional_text("encryption")
    if encryption not in (None, _AGE):
        raise StorageError(
            f"{store.name} is encrypted with {encryption[:50]!r}, which this vbackup does not know; use a newer one."
        )
    if encryption is not None:
        store = SealedStore(store, keys, plain=(MARKER,))
    return Target(store, *found)


def opened_for(store: Store, repository_ids: Iterable[str], *, create: bool, keys: Keys = _NO_KEYS) -> Target:
    """Return the target for the points of a repository, which has, or has had, these ids; the first is its own.

    ``create``: an empty store becomes one, encrypted if there are recipients. Raises StorageError, also if the target
    is another repository's, UsageError if it is encrypted and there is no recipient, or the other way round.
    """
    own, *former = repository_ids
    if create and store.size(MARKER) is None:
        _make(store, own, is_sealed=bool(keys.recipients))
    target = opened(store, keys)
    if target.sealed is not None and not keys.recipients:
        raise UsageError(f"{target.name} is encrypted: say with --recipient who is to read what is copied now.")
    if keys.recipients and target.sealed is None:
        raise UsageError(
            f"{target.name} was made without --recipient, and what is in it is not encrypted. Give another target, or"
            " no recipient."
        )
    if target.repository_id not in (own, *former):
        raise StorageError(
            f"{target.name} has the copies of another repository, {target.repository_id}; this one is {own}. Give each"
            " repository a target."
        )
    return target


def refuse_other(store: Store) -> None:
    """Raise StorageError if a store without a marker is not empty: it is not for copies."""
    other = next(iter(store.list("")), None)
    if other is not None and other.key != MARKER:  # which another copier may have put meanwhile
        raise StorageError(
            f"{store.name} is not a target of copies, and not empty: it has {other.key[:100]!r}. Give a new or"
            " empty place."
        )


def _make(store: Store, repository_id: str, *, is_sealed: bool) -> None:
    refuse_other(store)
    marker: dict[str, object] = {
        "schema": SCHEMA,
        "version": VERSION,
        "id": names.new_repository_id(),
        "repository": repository_id,
    }
    if is_sealed:
        marker["encryption"] = _AGE
    data = (json.dumps(marker, indent=2) + "\n").encode()
    store.put_new(MARKER, io.BytesIO(data), len(data))


def _fields(store: Store, data: bytes) -> Fields:
    try:
        return Fields(parse_json(data.decode()), f"{MARKER} in {store.name}", StorageError)
    except (ValueError, RecursionError) as err:
        raise StorageError(f"{MARKER} in {store.name} is damaged ({err}), or that is not a target of copies.") from err


@dataclass(frozen=True)
class Listing:
    """What a target has of one domain, by the names of the objects alone."""

    uuid: str
    points: dict[str, dict[str, StoredObject]]  #: objects by name, of each backup id that has a manifest
    unfinished: dict[str, dict[str, StoredObject]]  #: the same of ids without a manifest
    claims: tuple[StoredObject, ...]  #: of those who copy or remove points, or were killed meanwhile
    released: tuple[StoredObject, ...] = ()  #: claims that have ended, and the objects that say so


def listing(target: Target, uuid: str) -> Listing:
    """Return what the target has of a domain. Raises StorageError."""
    return _listing(uuid, _objects(target, f"{uuid}/"))


def listings(target: Target) -> dict[str, Listing]:
    """Return what the target has of each domain, by UUID, in their order. Raises StorageError."""
    found: dict[str, list[StoredObject]] = {}
    for each in _objects(target, ""):
        uuid = each.key.partition("/")[0]
        if names.UUID.fullmatch(uuid):
            found.setdefault(uuid, []).append(each)
    return {uuid: _listing(uuid, objects) for uuid, objects in found.items()}


def _objects(target: Target, prefix: str) -> Iterator[StoredObject]:
    for count, each in enumerate(target.store.list(prefix), start=1):
        refuse_too_many(count, target.name)
        yield each


def _listing(uuid: str, objects: Iterable[StoredObject]) -> Listing:
    found: dict[str, dict[str, StoredObject]] = {}
    claims: dict[str, StoredObject] = {}
    released: dict[str, StoredObject] = {}
    for each in objects:
        _, _, rest = each.key.partition("/")
        backup_id, is_below, name = rest.partition("/")
        if not is_key(each.key):  # somebody else's file, in a directory
            continue
        if is_below and names.BACKUP_ID.fullmatch(backup_id) and "/" not in name:
            found.setdefault(backup_id, {})[name] = each
        elif not is_below:
            for prefix, tokens in ((CLAIM, claims), (RELEASED, released)):
                if rest.startswith(prefix) and _TOKEN.fullmatch(rest[len(prefix) :]):
                    tokens[rest[len(prefix) :]] = each
    return Listing(
        uuid,
        {backup_id: each for backup_id, each in found.items() if MANIFEST in each},
        {backup_id: each for backup_id, each in found.items() if MANIFEST not in each},
        tuple(each for token, each in claims.items() if token not in released),
        (*(each for token, each in claims.items() if token in released), *released.values()),
    )
