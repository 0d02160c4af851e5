"""The data of an age file: pieces of 64 KiB, each sealed with its number and with whether it is the last.

Each piece can be read without the others, so a mount or a verify fetches only what it needs. A file that was cut has no
last piece, and one whose pieces were exchanged has wrong numbers: both are found.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vbackup.stores.age_header import derived
from vbackup.stores.store import Source, wrong_size

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

PIECE_BYTES = 64 * 1024
TAG_BYTES = 16
NONCE_BYTES = 16
SEALED_BYTES = PIECE_BYTES + TAG_BYTES


class DamagedDataError(ValueError):
    """A piece was changed, or the file was cut."""


def sealed_size(size_bytes: int) -> int:
    """Return how many bytes follow the header of a file with so many bytes of content."""
    return NONCE_BYTES + size_bytes + TAG_BYTES * max(1, -(-size_bytes // PIECE_BYTES))


def plain_size(sealed_bytes: int) -> int:
    """Return the size of the content, from the number of bytes behind the header. Raises DamagedDataError."""
    data = sealed_bytes - NONCE_BYTES
    size = data - TAG_BYTES * -(-data // SEALED_BYTES)
    if size < 0 or sealed_size(size) != sealed_bytes:
        raise DamagedDataError("it was cut")
    return size


class Key:
    """What seals and opens the pieces of one file."""

    def __init__(self, file_key: bytes, nonce: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self._cipher: ChaCha20Poly1305 = ChaCha20Poly1305(derived(file_key, salt=nonce, info=b"payload"))

    def seal(self, piece: bytes, number: int, *, is_last: bool) -> bytes:
        """Return the piece, sealed."""
        return self._cipher.encrypt(number.to_bytes(11, "big") + bytes((is_last,)), piece, None)

    def open(self, sealed: bytes, number: int, *, is_last: bool) -> bytes:
        """Return the content of a sealed piece. Raises DamagedDataError."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(number.to_bytes(11, "big") + bytes((is_last,)), sealed, None)
        except InvalidTag:
            raise DamagedDataError(f"bytes {number * PIECE_BYTES} and following were changed") from None


class Sealing:
    """The age file of a source, made while it is read: itself a source (vbackup.stores.store.Source).

    It can be read again from any place, as an upload that is repeated needs it: the same bytes come out, since the keys
    are the same.
    """

    def __init__(self, source: Source, key: str, size_bytes: int, *, header: bytes, file_key: bytes) -> None:
        """``key``: what the source will be stored as, for messages. ``size_bytes``: its size."""
        self._source = source
        self._name = key
        self._size_bytes = size_bytes
        nonce = os.urandom(NONCE_BYTES)
        self._prelude = header + nonce
        self._key = Key(file_key, nonce)
        self._last = max(0, -(-size_bytes // PIECE_BYTES) - 1)
        self._number = 0
        self._rest = memoryview(self._prelude)

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes of the age file, fewer only at the end.

        Raises StorageError if the source has not the size that was promised.
        """
        pieces, wanted = [], size
        while wanted > 0:
            rest = self._rest or memoryview(self._next())
            if not rest:
                break
            pieces.append(rest[:wanted])
            self._rest = rest[wanted:]
            wanted -= len(pieces[-1])
        return b"".join(pieces)

    def seek(self, offset: int, /) -> int:
        """Continue at ``offset`` bytes of the age file."""
        self._rest = memoryview(self._prelude)[offset:]
        self._number, skipped = divmod(max(0, offset - len(self._prelude)), SEALED_BYTES)
        self._source.seek(min(self._number * PIECE_BYTES, self._size_bytes))
        if skipped:
            self._rest = memoryview(self._next())[skipped:]
        return offset

    def _next(self) -> bytes:
        """Return the next piece, sealed; nothing after the last."""
        if self._number > self._last:
            return b""
        start = self._number * PIECE_BYTES
        self._number += 1
        is_last = self._number > self._last
        # One byte more than the last has to have shows a source that has grown.
        wanted = self._size_bytes - start + 1 if is_last else PIECE_BYTES
        piece = self._source.read(wanted)
        if len(piece) != wanted - is_last:
            raise wrong_size(self._name, self._size_bytes, start + len(piece))
        return self._key.seal(piece, self._number - 1, is_last=is_last)
