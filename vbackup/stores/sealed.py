"""A store whose objects are age files: names and sizes are all that whoever holds the place sees.

An object KEY is kept as KEY.age. Without an identity, objects can be stored, listed and deleted, but not read: the
machine that makes copies does not need one. Each piece of 64 KiB is read alone, so a range costs what it has.

``rewrap`` seals the file key of an object to other recipients, in a second header beside the object
(KEY.age.header-OBJECT-SET), which has the length of the object's: places for copies keep objects as they were written,
some because nobody may change them, and an object is neither fetched nor stored again. OBJECT is a digest of the
object's own header, so a header that is left of an object that was removed is never taken for that of the next one.
"""

from __future__ import annotations

import builtins
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vbackup.errors import IdentityError, IdentityNeededError, MissingPackageError, SealedError
from vbackup.stores import age_header, age_stream
from vbackup.stores.age_header import DamagedHeaderError, NotForThisIdentityError
from vbackup.stores.age_keys import Identity, Recipient
from vbackup.stores.age_stream import NONCE_BYTES, PIECE_BYTES, SEALED_BYTES, DamagedDataError, Key, Sealing
from vbackup.stores.store import Deletion, Seen, Source, Store, StoredObject

SUFFIX = ".age"
_HEADER = ".header-"
_START = age_header.BYTES + NONCE_BYTES
#: Of so many objects the keys are kept, as a mount reads from all images of a backing chain in turn.
_MAX_KEYS = 1024


@dataclass(frozen=True)
class Keys:
    """What a store is sealed and read with."""

    recipients: tuple[Recipient, ...] = ()
    identities: tuple[Identity, ...] = ()


class SealedStore:
    """A Store in another one."""

    def __init__(
        self,
        inner: Store,
        keys: Keys,
        *,
        plain: Sequence[str] = (),
    ) -> None:
        """``keys``: recipients, to store objects, and identities, to read them.

        ``plain``: keys of objects that are not sealed, such as the one that says that the others are. Raises
        MissingPackageError.
        """
        _refuse_without_cryptography()
        self._inner = inner
        self._recipients = keys.recipients
        self._identities = keys.identities
        self._plain = frozenset(plain)
        self._keys: OrderedDict[str, Key] = OrderedDict()
        #: Names of the headers that ``rewrap`` has stored, by the key of the object.
        self._listed: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """As Store."""
        return self._inner.name

    @property
    def can_read(self) -> bool:
        """Whether there is an identity."""
        return bool(self._identities)

    def put_new(self, key: str, source: Source, size_bytes: int) -> bool:
        """As Store.

        Without a recipient it is sealed to the identities, or to nobody: a claim is there to be seen, not to be read.
        """
        if key in self._plain:
            return self._inner.put_new(key, source, size_bytes)
        file_key = age_header.new_key()
        header = age_header.make(file_key, self._recipients or [each.recipient for each in self._identities])
        sealing = Sealing(source, key, size_bytes, header=header, file_key=file_key)
        return self._inner.put_new(key + SUFFIX, sealing, age_header.BYTES + age_stream.sealed_size(size_bytes))

    def get(self, key: str, offset: int = 0, length: int | None = None, *, mark: str | None = None) -> Iterator[bytes]:
        """As Store.

        Raises IdentityError before anything but the header is fetched, SealedError if the object was changed or cut.
        """
        if key in self._plain:
            yield from self._inner.get(key, offset, length, mark=mark)
            return
        if not self._identities:
            raise IdentityNeededError(self.name)
        try:
            yield from self._pieces(key, offset, length, mark)
        except (DamagedHeaderError, DamagedDataError) as err:
            raise SealedError(self.name, key + SUFFIX, str(err)) from err

    def size(self, key: str) -> int | None:
        """As Store."""
        if key in self._plain:
            return self._inner.size(key)
        stored_bytes = self._inner.size(key + SUFFIX)
        return None if stored_bytes is None else _plain_size(stored_bytes)

    def look(self, key: str) -> Seen | None:
        """As Store: the mark is that of the age file."""
        if key in self._plain:
            return self._inner.look(key)
        stored = self._inner.look(key + SUFFIX)
        return None if stored is None else Seen(_plain_size(stored.size_bytes), stored.mark)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """As Store."""
        found, headers = {}, []
        for each in self._inner.list(prefix):
            if each.key in self._plain:
                found[each.key] = each
            elif each.key.endswith(SUFFIX):
                key = each.key.removesuffix(SUFFIX)
                found[key] = StoredObject(key, _plain_size(each.size_bytes), each.modified)
            elif (SUFFIX + _HEADER) in each.key:
                headers.append(each)
        for each in headers:
            key = each.key.partition(SUFFIX + _HEADER)[0]
            with self._lock:
                self._listed.setdefault(key, set()).add(each.key)
            if key not in found:  # a removal was killed; under its own name, it can be removed
                found[each.key] = each
        yield from sorted(found.values(), key=lambda each: each.key)

    def delete(self, key: str) -> Deletion:
        """As Store. The headers that ``rewrap`` has stored go too, if they were listed."""
        if key in self._plain or (SUFFIX + _HEADER) in key:
            return self._inner.delete(key)
        deleted = self._inner.delete(key + SUFFIX)
        if deleted is not Deletion.KEPT:
            with self._lock:
                self._keys.pop(key, None)
                headers = self._listed.pop(key, set())
            for header in headers:
                self._inner.delete(header)
        return deleted

    def lock_days(self) -> int | None:
        """As Store."""
        return self._inner.lock_days()

    def close(self) -> None:
        """As Store."""
        self._inner.close()

    @property
    def sealed_to(self) -> str:
        """A name for the set of recipients of what is stored now."""
        return _set_of(self._recipients)

    def inner_key(self, key: str) -> str:
        """Return the key that an object has in the store around which this one is."""
        return key if key in self._plain else key + SUFFIX

    def check_identity(self, key: str) -> None:
        """Raise IdentityError unless an identity opens the object; only its header is fetched.

        Raises SealedError, and StorageError, also if there is no such object.
        """
        for _ in self.get(key, 0, 0):
            pass

    def rewrap(self, key: str, recipients: Sequence[Recipient]) -> bool:
        """Let others read an object too; return False if they could already.

        An identity that opens it is needed. Raises IdentityError, SealedError, StorageError, FileNotFoundError.
        """
        if not self._identities:
            raise IdentityNeededError(self.name)
        own = _joined(self._inner.get(key + SUFFIX, 0, age_header.BYTES))
        name = _headers_of(key, own) + _set_of(recipients)
        if self._inner.size(name) is not None:
            return False
        try:
            file_key = self._file_key(key, own)
        except DamagedHeaderError as err:
            raise SealedError(self.name, key + SUFFIX, str(err)) from err
        header = age_header.make(file_key, recipients)
        return self._inner.put_new(name, io.BytesIO(header), len(header))

    def _pieces(self, key: str, offset: int, length: int | None, mark: str | None) -> Iterator[bytes]:
        first, skipped = divmod(offset, PIECE_BYTES)
        end = None if length is None else offset + length
        cipher = self._known(key)
        if cipher is None and first:
            cipher = self._open(key, _joined(self._inner.get(key + SUFFIX, 0, _START, mark=mark)))
        # One byte more than the pieces shows whether there is another one behind them.
        start = 0 if cipher is None else _START + first * SEALED_BYTES
        stop = None if end is None else _START + -(-end // PIECE_BYTES) * SEALED_BYTES + 1
        left = None if stop is None else stop - start
        stored = _Pieces(self._inner.get(key + SUFFIX, start, left, mark=mark))
        if cipher is None:
            cipher = self._open(key, stored.read(_START))
        number = first
        while end is None or number * PIECE_BYTES < end:
            sealed = stored.read(SEALED_BYTES)
            if number == first and number and not sealed and (size := self.size(key) or 0) <= offset:
                # Raises unless what ends there is the last piece.
                for _ in self._pieces(key, max(0, size - 1), None, mark):
                    pass
                return
            piece = cipher.open(sealed, number, is_last=stored.is_at_end())
            keep = None if end is None else end - number * PIECE_BYTES
            if wanted := piece[skipped if number == first else 0 : keep]:
                yield wanted
            if stored.is_at_end():
                return
            number += 1

    def _known(self, key: str) -> Key | None:
        with self._lock:
            if key in self._keys:
                self._keys.move_to_end(key)
            return self._keys.get(key)

    def _open(self, key: str, head: bytes) -> Key:
        """Return what opens the pieces of an object that begins with ``head``."""
        if len(head) < _START:
            raise DamagedHeaderError("it was cut")
        cipher = Key(self._file_key(key, head[: age_header.BYTES]), head[age_header.BYTES :])
        with self._lock:
            self._keys[key] = cipher
            if len(self._keys) > _MAX_KEYS:
                self._keys.popitem(last=False)
        return cipher

    def _file_key(self, key: str, header: bytes) -> bytes:
        parsed = age_header.parse(header)
        if len(parsed.data) != age_header.BYTES:
            raise DamagedHeaderError("it was not sealed by vbackup")
        try:
            return age_header.unwrap(parsed, self._identities)
        except NotForThisIdentityError:
            pass
        for name in self._headers(key, header):
            try:
                return age_header.unwrap(
                    age_header.parse(_joined(self._inner.get(name, 0, age_header.BYTES))), self._identities
                )
            except (NotForThisIdentityError, FileNotFoundError):
                continue
        raise IdentityError(
            f"No identity that was given opens {key}{SUFFIX} in {self.name}: it is sealed to other recipients. Give the"
            " identity of one of them; with it, 'vbackup copy --rewrap' lets others read it too. Nothing was fetched."
        )

    def _headers(self, key: str, own: bytes) -> builtins.list[str]:
        """Return the names of the other headers of the object that has this one."""
        parent = key.rpartition("/")[0]
        start = _headers_of(key, own)
        return [each.key for each in self._inner.list(f"{parent}/" if parent else "") if each.key.startswith(start)]


class _Pieces:
    """What a store yields, in pieces of the sizes that are wanted."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = bytearray()

    def read(self, size_bytes: int) -> bytes:
        """Return so many bytes, fewer only at the end."""
        while len(self._held) < size_bytes and (more := next(self._pieces, b"")):
            self._held += more
        with memoryview(self._held) as view:
            wanted = bytes(view[:size_bytes])
        del self._held[:size_bytes]
        return wanted

    def is_at_end(self) -> bool:
        """Return whether nothing follows."""
        if not self._held:
            self._held += next(self._pieces, b"")
        return not self._held


def _joined(pieces: Iterator[bytes]) -> bytes:
    return b"".join(pieces)


def _plain_size(stored_bytes: int) -> int:
    """Return the size of an object; that of one that was cut is at most what is left of it."""
    try:
        return age_stream.plain_size(stored_bytes - age_header.BYTES)
    except DamagedDataError:
        return max(0, stored_bytes - _START)


def _headers_of(key: str, own: bytes) -> str:
    """Return what the names of an object's other headers begin with; ``own``: its own header."""
    return f"{key}{SUFFIX}{_HEADER}{hashlib.sha256(own).hexdigest()[:16]}-"


def _set_of(recipients: Sequence[Recipient]) -> str:
    """Return a name for a set of recipients."""
    return hashlib.sha256(b"".join(sorted(each.key for each in recipients))).hexdigest()[:16]


def _refuse_without_cryptography() -> None:
    try:
        import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] != "cryptography":
            raise
        raise MissingPackageError(
            "cryptography", "The copy is encrypted", debian="python3-cryptography", purpose="seal or open it"
        ) from err
