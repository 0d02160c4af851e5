"""What obstore's stores do not do by themselves; the promises of all stores are in tests/contract/test_stores.py."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import obstore
import pytest
from obstore.store import MemoryStore

from vbackup.errors import StorageError, StoreUnreachableError
from vbackup.stores import cloud, cloud_kinds
from vbackup.stores.cloud import CloudStore


@pytest.fixture(name="bucket")
def in_memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(name="store")
def in_bucket(bucket: MemoryStore) -> CloudStore:
    return CloudStore("az://box/copies", bucket, "copies")  # type: ignore[arg-type]


def test_large_object_leaves_nothing_beside(
    store: CloudStore, bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "_WHOLE_BYTES", 1000)
    assert store.put_new("a/b", io.BytesIO(bytes(5000)), 5000)
    assert not store.put_new("a/b", io.BytesIO(bytes(5000)), 5000)
    with pytest.raises(StorageError, match="instead of"):
        store.put_new("a/c", io.BytesIO(bytes(4000)), 5000)
    assert [each["path"] for chunk in obstore.list(bucket) for each in chunk] == ["copies/a/b"]


def test_what_killed_copies_have_left_is_removed_later(
    store: CloudStore, bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "_WHOLE_BYTES", 1000)
    left = {f"copies/.incoming/{'0' * 32}", "copies/.incoming/somebody-else's", f"other/.incoming/{'0' * 32}"}
    for path in left:
        obstore.put(bucket, path, b"x")
    assert store.put_new("small", io.BytesIO(b"x"), 1)
    assert store.put_new("a", io.BytesIO(bytes(5000)), 5000)
    listed = {each["path"] for chunk in obstore.list(bucket) for each in chunk}
    assert listed == {*left, "copies/small", "copies/a"}
    monkeypatch.setattr(cloud, "ABANDONED", timedelta(seconds=-5))
    another = CloudStore("az://box/copies", bucket, "copies")  # type: ignore[arg-type]
    assert another.put_new("b", io.BytesIO(bytes(5000)), 5000)
    listed = {each["path"] for chunk in obstore.list(bucket) for each in chunk}
    assert listed == {*sorted(left)[1:], "copies/small", "copies/a", "copies/b"}


def test_large_object_has_as_many_parts_as_clouds_take(store: CloudStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, int]] = []

    def put(*_: object, chunk_size: int, max_concurrency: int, **__: object) -> None:
        asked.append({"part": chunk_size, "parallel": max_concurrency})
        raise obstore.exceptions.GenericError("enough")

    monkeypatch.setattr(obstore, "put", put)
    for size_bytes in (9 * 2**20, 78 * 2**30, 1000 * 2**30):
        with pytest.raises(StorageError, match="enough"):
            store.put_new("a", io.BytesIO(), size_bytes)
        assert size_bytes / asked[-1]["part"] <= 10_000
        assert asked[-1]["part"] * asked[-1]["parallel"] <= max(asked[-1]["part"], 96 * 2**20)
    assert asked[0] == {"part": 8 * 2**20, "parallel": 12}


def test_azure_takes_more_parts(bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def put(*_: object, chunk_size: int, **__: object) -> None:
        asked.append(chunk_size)
        raise obstore.exceptions.GenericError("enough")

    monkeypatch.setattr(obstore, "put", put)
    for scheme, max_parts in (("az", 50_000), ("gs", 10_000)):
        assert cloud_kinds._KINDS[scheme][2] == max_parts
        store = CloudStore(f"{scheme}://x", bucket, "x", max_parts=max_parts)  # type: ignore[arg-type]
        with pytest.raises(StorageError, match="enough"):
            store.put_new("a", io.BytesIO(), 10 * 10**12)
        assert asked[-1] == 10 * 10**12 // max_parts


def test_memory_of_all_uploads_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "_ALL_MEMORY_BYTES", 100)
    monkeypatch.setattr(cloud, "_MEMORY_BYTES", 60)
    memory, used, most, lock = cloud._Memory(), 0, 0, threading.Lock()

    def send(part_bytes: int) -> None:
        nonlocal used, most
        with memory.parts(part_bytes) as count:
            with lock:
                used += count * part_bytes
                assert used <= 100 or used == part_bytes, "a part that is larger is sent alone"
                most = max(most, used)
            threading.Event().wait(0.002)
            with lock:
                used -= count * part_bytes

    with ThreadPoolExecutor(max_workers=12) as pool:
        list(pool.map(send, [5, 30, 70, 500, 5, 99, 8, 40] * 6))
    assert (used, most) == (0, 500)
    with memory.parts(5) as first, memory.parts(5) as second:
        assert (first, second) == (12, 8)


def test_large_object_is_read_in_ranges(store: CloudStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 20
    store.put_new("a", io.BytesIO(data), len(data))
    monkeypatch.setattr(cloud, "_READ_BYTES", 1000)
    assert b"".join(store.get("a")) == data
    assert b"".join(store.get("a", 500, 3000)) == data[500:3500]


def test_object_that_was_changed_is_damaged(store: CloudStore, bucket: MemoryStore) -> None:
    store.put_new("a", io.BytesIO(b"content"), 7)
    attributes = obstore.get(bucket, "copies/a").attributes
    obstore.put(bucket, "copies/a", b"Content", attributes=attributes)
    with pytest.raises(StorageError, match="damaged"):
        list(store.get("a"))


def test_missing_container(store: CloudStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("x")

    monkeypatch.setattr(obstore, "list", missing)
    monkeypatch.setattr(obstore, "put", missing)
    with pytest.raises(StorageError, match="There is no bucket or container for az://box/copies"):
        list(store.list(""))
    with pytest.raises(StorageError, match="There is no bucket or container"):
        store.put_new("a", io.BytesIO(b"x"), 1)


def test_what_others_have_put_there_is_not_listed(store: CloudStore, bucket: MemoryStore) -> None:
    for path in ("copies/.incoming/x", "copies/ä", "copies/a", "other/a"):
        obstore.put(bucket, path, b"x")
    assert [each.key for each in store.list("")] == ["a"]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("x\n<Error><Code>AccessDenied</Code><Message>No.</Message></Error>\n", StorageError, "AccessDenied: No"),
        ("Server returned non-2xx status code: 503 Service Unavailable", StorageError, "status 503"),
        ("HTTP error: error sending request", StoreUnreachableError, "error sending request"),
        ("Generic: first\nthe last line.\n\nDebug source:\nGeneric {", StorageError, "the last line"),
    ],
)
def test_errors_are_sentences(store: CloudStore, text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as raised, store._errors("do that"):
        raise obstore.exceptions.GenericError(text)
    assert "Debug" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "cannot get https://a.example/box?sv=1&sig=hidden",
        "the address account.blob.core.windows.net/?sig=hidden is none",
        "https?x=hidden",
        'SAS "sv=1&sig=hidden" has no value',
        "x-amz-signature=hidden and Sig%3Dhidden",
    ],
)
def test_signature_is_taken_out(text: str) -> None:
    assert "hidden" not in cloud.without_secrets(text)
