"""A store in memory, for tests: it promises what tests/contract/test_stores.py says, and can fail or end on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone

from vbackup.stores.store import (
    PIECE_BYTES,
    Deletion,
    Seen,
    Source,
    StoredObject,
    refuse_key,
    refuse_prefix,
    refuse_replaced,
    wrong_size,
)


@dataclass
class FakeStore:
    """Objects in a dictionary. ``before`` is called with what is about to be done, and may raise."""

    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    before: Callable[[str, str], None] = lambda what, key: None
    days: int | None = None  #: for which every object is locked
    calls: list[tuple[str, str]] = field(default_factory=list)
    name: str = "memory"
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _called(self, what: str, key: str) -> None:
        self.before(what, key)
        with self._lock:
            self.calls.append((what, key))

    def put_new(self, key: str, source: Source, size_bytes: int) -> bool:
        refuse_key(key)
        self._called("put_new", key)
        data = b""
        while piece := source.read(PIECE_BYTES):
            data += piece
        if len(data) != size_bytes:
            raise wrong_size(key, size_bytes, len(data))
        with self._lock:
            if key in self.objects:
                return False
            self.objects[key] = (data, datetime.now(tz=timezone.utc))
            return True

    def get(self, key: str, offset: int = 0, length: int | None = None, *, mark: str | None = None) -> Iterator[bytes]:
        refuse_key(key)
        self._called("get", key)
        if key not in self.objects:
            raise FileNotFoundError(key)
        refuse_replaced(self.name, key, mark, _mark(*self.objects[key]))
        data = self.objects[key][0][offset:]
        data = data if length is None else data[:length]
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]

    def size(self, key: str) -> int | None:
        refuse_key(key)
        self._called("size", key)
        return len(self.objects[key][0]) if key in self.objects else None

    def look(self, key: str) -> Seen | None:
        refuse_key(key)
        self._called("look", key)
        if key not in self.objects:
            return None
        return Seen(len(self.objects[key][0]), _mark(*self.objects[key]))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        refuse_prefix(prefix)
        self._called("list", prefix)
        with self._lock:
            found = sorted((key, each) for key, each in self.objects.items() if key.startswith(prefix))
        for key, (data, modified) in found:
            yield StoredObject(key, len(data), modified)

    def delete(self, key: str) -> Deletion:
        refuse_key(key)
        self._called("delete", key)
        if self.days is not None:
            return Deletion.KEPT
        with self._lock:
            return Deletion.DELETED if self.objects.pop(key, None) is not None else Deletion.ABSENT

    def lock_days(self) -> int | None:
        return self.days

    def close(self) -> None:
        pass


def _mark(data: bytes, modified: datetime) -> str:
    return f"{len(data)} {modified.isoformat()}"
