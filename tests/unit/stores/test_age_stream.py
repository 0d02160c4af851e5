"""The data of age files: made while it is read, from any place on; sizes; and that changes are found."""

from __future__ import annotations

import io
import os

import pytest

from vbackup.errors import StorageError
from vbackup.stores import age_stream
from vbackup.stores.age_stream import NONCE_BYTES, PIECE_BYTES, SEALED_BYTES, DamagedDataError, Key, Sealing

HEADER = b"header\n"
SIZES = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, 3 * PIECE_BYTES + 5]


def sealing(data: bytes, size_bytes: int | None = None) -> Sealing:
    size = len(data) if size_bytes is None else size_bytes
    return Sealing(io.BytesIO(data), "vda.qcow2", size, header=HEADER, file_key=bytes(16))


@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_content(size: int) -> None:
    data = os.urandom(size)
    stored = sealing(data).read(1 << 30)
    assert len(stored) == len(HEADER) + age_stream.sealed_size(size)
    assert age_stream.plain_size(len(stored) - len(HEADER)) == size
    key = Key(bytes(16), stored[len(HEADER) :][:NONCE_BYTES])
    pieces = stored[len(HEADER) + NONCE_BYTES :]
    parts = [pieces[at : at + SEALED_BYTES] for at in range(0, len(pieces), SEALED_BYTES)]
    opened = [key.open(part, number, is_last=number == len(parts) - 1) for number, part in enumerate(parts)]
    assert b"".join(opened) == data


@pytest.mark.parametrize("size", SIZES)
def test_is_read_again_from_any_place(size: int) -> None:
    source = sealing(os.urandom(size))
    stored = source.read(1 << 30)
    for place in {0, 3, len(HEADER), 23, 24, 23 + SEALED_BYTES, 40 + SEALED_BYTES, len(stored) - 1, len(stored)}:
        if place <= len(stored):
            source.seek(place)
            assert b"".join(iter(lambda: source.read(1000), b"")) == stored[place:]


@pytest.mark.parametrize("wrong", [-1, 1, PIECE_BYTES])
@pytest.mark.parametrize("size", SIZES[1:])
def test_source_of_another_size_is_refused(size: int, wrong: int) -> None:
    with pytest.raises(StorageError, match="instead of"):
        sealing(bytes(size), max(0, size - wrong)).read(1 << 30)


@pytest.mark.parametrize("size", [0, 15, 31, NONCE_BYTES + SEALED_BYTES + 5])
def test_size_that_cannot_be(size: int) -> None:
    with pytest.raises(DamagedDataError):
        age_stream.plain_size(size)


def test_pieces_do_not_open_as_others() -> None:
    key = Key(bytes(16), bytes(16))
    sealed = key.seal(b"content", 1, is_last=False)
    assert key.open(sealed, 1, is_last=False) == b"content"
    for number, is_last, data in ((0, False, sealed), (1, True, sealed), (1, False, sealed[:-1]), (1, False, b"")):
        with pytest.raises(DamagedDataError):
            key.open(data, number, is_last=is_last)
