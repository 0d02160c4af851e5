"""What a place for copies can do: keep objects under keys, each written once and as a whole.

vbackup.stores.directory, and a module for each other kind of place, have the classes. tests/contract/test_stores.py
says what all of them promise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol

from vbackup.errors import StorageError

#: How much is read from a source, and yielded by ``get``, at a time.
PIECE_BYTES = 1024 * 1024
#: So many directories below each other are listed: no key of a copy has more than three parts, and whoever prepares a
#: place can make any number.
MAX_DEPTH = 16
#: So many objects are listed at most: ten times what 1,000 domains with 100 backups each have. They are in memory, and
#: a place that is not honest can list without end.
MAX_OBJECTS = 5_000_000
#: Parts of a key begin with a letter or a digit: what begins with a dot is the store's own, and ".." leads out of it.
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class StoredObject:
    """An object that a store has."""

    key: str
    size_bytes: int
    modified: datetime  #: when the store got it, by the store's clock; with a time zone


@dataclass(frozen=True)
class Seen:
    """What an object is at a moment."""

    size_bytes: int
    mark: str  #: of this store; another one that gets the key later has another mark


class Deletion(Enum):
    """What became of an object that was to be deleted."""

    DELETED = "deleted"
    ABSENT = "absent"  #: there was none with this key
    KEPT = "kept"  #: the store does not allow it: a lock, or a right that these credentials do not have


class Source(Protocol):
    """What an object is made from; a binary file, such as io.BytesIO, is one."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, fewer only at the end. Whoever stops a copy raises an error here."""

    def seek(self, offset: int, /) -> object:
        """Continue at ``offset`` bytes, for a store that has to send a part again."""


class Store(Protocol):
    """A place that keeps objects. One store can be used from several threads."""

    @property
    def name(self) -> str:
        """How users call the place, for messages and documents: a path or a URL, never with a secret."""

    def put_new(self, key: str, source: Source, size_bytes: int) -> bool:
        """Store an object of ``size_bytes`` unless the key is taken; return True if it was stored.

        It appears as a whole or not at all, on storage that outlives a crash, and of several that put one key at the
        same time exactly one gets True. If False is returned, the source may have been read. A source with less or more
        than ``size_bytes`` is a StorageError, as is what the place cannot do; what the source raises is passed on.
        """

    def get(self, key: str, offset: int = 0, length: int | None = None, *, mark: str | None = None) -> Iterator[bytes]:
        """Yield the content in pieces, from ``offset`` on, up to ``length`` bytes or the end, if that comes first.

        ``mark``: of the object that is meant (``look``). Raises FileNotFoundError before the first piece if there is no
        such object, StorageError otherwise, also if another one has the key now. Closing the iterator early ends the
        transfer.
        """

    def look(self, key: str) -> Seen | None:
        """Return what an object is, for reads of parts of it at different times; None: there is none.

        Raises StorageError.
        """

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, None if there is none. Raises StorageError."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects whose key begins with ``prefix``, sorted by key. What was stored is listed at once.

        A prefix is empty or ends with "/". Raises StorageError.
        """

    def delete(self, key: str) -> Deletion:
        """Remove an object. That the place does not allow it is no error. Raises StorageError."""

    def lock_days(self) -> int | None:
        """Return for how many days the place keeps a new object whatever is asked of it; None: it does not.

        Raises StorageError.
        """

    def close(self) -> None:
        """Release connections. Nothing else may be called afterwards."""


def is_key(text: str) -> bool:
    """Return True if this can be a key."""
    return _KEY.fullmatch(text) is not None


def refuse_key(key: str) -> None:
    """Raise StorageError unless this can be a key."""
    if not is_key(key):
        raise StorageError(f"{key[:100]!r} is not a key of an object.")


def refuse_prefix(prefix: str) -> None:
    """Raise StorageError unless this can be a prefix for ``Store.list``."""
    if prefix and not (prefix.endswith("/") and _KEY.fullmatch(prefix[:-1])):
        raise StorageError(f"{prefix[:100]!r} is not a prefix of keys: it should end with '/'.")


def refuse_too_many(count: int, name: str) -> None:
    """Raise StorageError if a place lists more objects than a target of copies has."""
    if count > MAX_OBJECTS:
        raise StorageError(
            f"{name} lists more than {MAX_OBJECTS} objects, which no target of copies has: give it a directory or"
            " bucket for itself."
        )


def refuse_replaced(name: str, key: str, mark: str | None, found: str) -> None:
    """Raise StorageError unless the object is the one that is meant; None: whichever has the key."""
    if mark not in (None, found):
        raise StorageError(
            f"{key} at {name} is another object than when reading began: it was replaced or changed, so no more is read"
            " of it. Run the command again to read what is there now."
        )


def wrong_size(key: str, size_bytes: int, read_bytes: int) -> StorageError:
    """Return the error for a source that had ``read_bytes`` so far, and not the bytes that it should have."""
    return StorageError(
        f"What was to be stored as {key} has {'more' if read_bytes > size_bytes else 'only'}"
        f" {read_bytes if read_bytes < size_bytes else 'than ' + str(size_bytes)} bytes instead of {size_bytes}: it was"
        " changed meanwhile. Nothing was stored."
    )


def read_small(store: Store, key: str, *, max_bytes: int) -> bytes | None:
    """Return the content of a small object, None if there is none. Raises StorageError, also if it is larger."""
    data = bytearray()
    try:
        for piece in store.get(key, 0, max_bytes + 1):
            data += piece
    except FileNotFoundError:
        return None
    if len(data) > max_bytes:
        raise StorageError(f"{key} in {store.name} is larger than anything that vbackup stores there.")
    return bytes(data)
