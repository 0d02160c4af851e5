"""Sealed stores: what a thief sees, what is fetched, who can read, and that stock age opens it."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from tests import age
from tests.fake_store import FakeStore
from vbackup.errors import IdentityError, IdentityNeededError, MissingPackageError, SealedError
from vbackup.stores import age_header, key_files
from vbackup.stores.age_keys import Identity
from vbackup.stores.age_stream import PIECE_BYTES, SEALED_BYTES
from vbackup.stores.sealed import Keys, SealedStore
from vbackup.stores.store import Deletion

KEY = "0e2f4a7c-5b1d-4c3e-9f60-718293a4b5c6/20261128T101500Z-full/vda.qcow2"
ONE, TWO, THREE = (Identity(bytes([number]) * 32) for number in (1, 2, 3))


def store(inner: FakeStore, *, to: tuple[Identity, ...] = (ONE,), by: tuple[Identity, ...] = (ONE,)) -> SealedStore:
    return SealedStore(inner, Keys(tuple(each.recipient for each in to), by), plain=["vbackup.json"])


def put(sealed: SealedStore, data: bytes, key: str = KEY) -> None:
    assert sealed.put_new(key, io.BytesIO(data), len(data))


def content(sealed: SealedStore, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join(sealed.get(KEY, offset, length))


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 3 * PIECE_BYTES, 3 * PIECE_BYTES + 1])
def test_stock_age_opens_it(tmp_path: Path, size: int) -> None:
    first, second = age.key_pair(tmp_path), age.key_pair(tmp_path, "other.txt")
    inner, data = FakeStore(), os.urandom(size)
    put(SealedStore(inner, Keys(key_files.recipients([first.recipient, second.recipient], []))), data)
    [stored] = inner.objects.values()
    assert age.opened(stored[0], first) == age.opened(stored[0], second) == data


def test_names_and_sizes_are_all_that_is_seen() -> None:
    inner = FakeStore()
    put(store(inner), b"plaintext" * 1000)
    put(store(inner), b"marker", "vbackup.json")
    assert {key: b"plaintext" in data for key, (data, _) in inner.objects.items()} == {
        f"{KEY}.age": False,
        "vbackup.json": False,
    }
    assert inner.objects["vbackup.json"][0] == b"marker"
    writer = store(inner, by=())
    assert [(each.key, each.size_bytes) for each in writer.list("")] == [(KEY, 9000), ("vbackup.json", 6)]
    assert writer.size(KEY) == 9000
    assert not writer.can_read


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 10), (PIECE_BYTES - 1, 2), (PIECE_BYTES, PIECE_BYTES), (200_000, None), (300_000, 9), (2 * PIECE_BYTES, 1)],
)
@pytest.mark.parametrize("size", [4 * PIECE_BYTES, 4 * PIECE_BYTES + 1, 250_000])
def test_range_fetches_only_what_it_has(offset: int, length: int | None, size: int) -> None:
    inner, data = FakeStore(), os.urandom(size)
    put(store(inner), data)
    sealed = store(inner)
    fetched: list[int] = []
    get = inner.get

    def counted(key: str, offset: int = 0, length: int | None = None, *, mark: str | None = None):  # type: ignore[no-untyped-def]
        for piece in get(key, offset, length, mark=mark):
            fetched.append(len(piece))
            yield piece

    inner.get = counted  # type: ignore[method-assign]
    for _ in range(2):
        fetched.clear()
        assert content(sealed, offset, length) == data[offset : None if length is None else offset + length]
        if length is not None:
            pieces = (offset + length - 1) // PIECE_BYTES - offset // PIECE_BYTES + 1
            assert sum(fetched) <= age_header.BYTES + 17 + pieces * SEALED_BYTES


def test_without_identity_nothing_is_fetched() -> None:
    inner = FakeStore()
    put(store(inner), b"x")
    inner.calls.clear()
    with pytest.raises(IdentityNeededError) as raised:
        content(store(inner, by=()))
    assert raised.value.status == 6
    assert inner.calls == []


def test_with_the_wrong_identity_only_the_header_is_read() -> None:
    inner = FakeStore()
    put(store(inner), os.urandom(10 * PIECE_BYTES))
    inner.calls.clear()
    with pytest.raises(IdentityError, match="sealed to other recipients") as raised:
        store(inner, by=(TWO,)).check_identity(KEY)
    assert raised.value.status == 6
    assert inner.calls == [("get", f"{KEY}.age"), ("list", f"{KEY.rpartition('/')[0]}/")]
    store(inner, by=(TWO, ONE)).check_identity(KEY)


def test_rewrap_lets_others_read_and_leaves_the_object_alone(tmp_path: Path) -> None:
    pair = age.key_pair(tmp_path)
    [new] = key_files.identities([str(pair.path)])
    inner, data = FakeStore(), os.urandom(PIECE_BYTES + 3)
    put(store(inner), data)
    before = dict(inner.objects)
    assert store(inner).rewrap(KEY, [new.recipient, TWO.recipient])
    assert not store(inner).rewrap(KEY, [TWO.recipient, new.recipient])
    assert inner.objects.items() >= before.items()
    assert content(store(inner, by=(new,)), 5) == data[5:]
    assert content(store(inner, by=(TWO,))) == data
    with pytest.raises(IdentityError):
        content(store(inner, by=(THREE,)))
    assert store(inner, by=(new,)).rewrap(KEY, [THREE.recipient])
    assert content(store(inner, by=(THREE,))) == data
    again = store(inner)
    assert [each.key for each in again.list("")] == [KEY]
    # By hand: the new header, and the object behind its own.
    [header] = [each for key, (each, _) in inner.objects.items() if len(each) == 2048 and _opens(key, each, new)]
    assert age.opened(header + inner.objects[f"{KEY}.age"][0][2048:], pair) == data
    assert again.delete(KEY) is Deletion.DELETED
    assert inner.objects == {}


def test_header_that_is_left_of_a_removed_object_is_not_taken_for_the_next_one() -> None:
    """A removal was killed between the two: what is left can be seen and removed."""
    inner = FakeStore()
    put(store(inner), b"first")
    store(inner).rewrap(KEY, [TWO.recipient])
    del inner.objects[f"{KEY}.age"]
    [left] = store(inner).list("")
    assert left.key.startswith(f"{KEY}.age.header-")
    put(store(inner), b"second")
    assert content(store(inner)) == b"second"
    with pytest.raises(IdentityError):
        content(store(inner, by=(TWO,)))
    assert store(inner).rewrap(KEY, [TWO.recipient])
    assert content(store(inner, by=(TWO,))) == b"second"
    assert store(inner).delete(left.key) is Deletion.DELETED
    assert content(store(inner, by=(TWO,))) == b"second"


def _opens(key: str, data: bytes, identity: Identity) -> bool:
    try:
        age_header.unwrap(age_header.parse(data), [identity])
    except age_header.NotForThisIdentityError:
        return False
    return ".header-" in key


def test_rewrap_needs_an_identity_that_opens_it() -> None:
    inner = FakeStore()
    put(store(inner), b"x")
    with pytest.raises(IdentityNeededError):
        store(inner, by=()).rewrap(KEY, [TWO.recipient])
    with pytest.raises(IdentityError):
        store(inner, by=(TWO,)).rewrap(KEY, [TWO.recipient])
    assert len(inner.objects) == 1


def test_what_is_locked_keeps_its_headers() -> None:
    inner = FakeStore(days=3)
    put(store(inner), b"x")
    store(inner).rewrap(KEY, [TWO.recipient])
    assert store(inner).delete(KEY) is Deletion.KEPT
    assert len(inner.objects) == 2


@pytest.mark.parametrize("cut", [1, 15, 16, 17, PIECE_BYTES, SEALED_BYTES, 2 * SEALED_BYTES, 3 * SEALED_BYTES + 5])
def test_cut_object_is_refused(cut: int) -> None:
    inner, data = FakeStore(), os.urandom(3 * PIECE_BYTES)
    put(store(inner), data)
    stored, when = inner.objects[f"{KEY}.age"]
    inner.objects[f"{KEY}.age"] = (stored[:-cut], when)
    with pytest.raises(SealedError, match=r"vda\.qcow2\.age"):
        content(store(inner))
    with pytest.raises(SealedError):
        content(store(inner), 3 * PIECE_BYTES - 10)


def test_changed_or_foreign_object_is_refused(tmp_path: Path) -> None:
    inner = FakeStore()
    put(store(inner), bytes(3 * PIECE_BYTES))
    stored, when = inner.objects[f"{KEY}.age"]
    for place in (0, 100, 2047, 2050, 2064, 2064 + SEALED_BYTES, len(stored) - 1):
        changed = stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :]
        inner.objects[f"{KEY}.age"] = (changed, when)
        with pytest.raises((SealedError, IdentityError)):
            content(store(inner))
    pair = age.key_pair(tmp_path)
    inner.objects[f"{KEY}.age"] = (age.sealed(bytes(5000), pair), when)
    with pytest.raises(SealedError, match="not sealed by vbackup"):
        content(store(inner, by=key_files.identities([str(pair.path)])))


def test_absence_of_the_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingPackageError, match="python3-cryptography"):
        store(FakeStore())
