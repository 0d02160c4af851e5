"""Azure and Google Cloud beyond what all stores promise: what goes in parts, what is left, and what is forbidden.

The servers are those of tests.azure and tests.gcs. vbackup.stores.cloud_kinds is tested here, too.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import obstore
import pytest

from tests.azure import AZURITE, Azure
from tests.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.gcs import Google
from vbackup.errors import StorageError, StoreUnreachableError
from vbackup.stores import cloud, cloud_kinds
from vbackup.stores.cloud import CloudStore
from vbackup.stores.settings import Settings
from vbackup.stores.store import Deletion, Store

KEY = "0e2f4a7c-5b1d-4c3e-9f60-718293a4b5c6/20261128T101500Z-full/vda.qcow2"
#: Parts are of 5 MiB at least, to obstore.
LARGE = os.urandom(5 * 1024 * 1024 + 17)


@pytest.fixture(autouse=True)
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "_WHOLE_BYTES", 5 * 1024 * 1024)
    monkeypatch.setattr(cloud, "_PAUSE_S", 0.01)


@pytest.fixture(params=["gs", "az"])
def server(request: pytest.FixtureRequest) -> Google | Azure:
    name = {"gs": "google", "az": "azure"}[request.param]
    started: Google | Azure = request.getfixturevalue(name)
    return started


@pytest.fixture
def store(server: Google | Azure) -> Iterator[CloudStore]:
    opened = server.store()
    assert isinstance(opened, CloudStore)
    yield opened
    opened.close()


def put(store: Store, key: str, data: bytes) -> bool:
    return store.put_new(key, io.BytesIO(data), len(data))


def content(store: Store, key: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join(store.get(key, offset, length))


def everything(store: CloudStore) -> list[str]:
    """Return the paths of all objects, below the prefix, also of those that the store does not list."""
    listed = [each["path"] for chunk in obstore.list(store._objects, store._prefix) for each in chunk]
    return sorted(path[len(store._prefix) :] for path in listed)


def test_large_object_goes_in_parts_and_leaves_nothing_beside(store: CloudStore) -> None:
    assert put(store, KEY, LARGE)
    assert content(store, KEY) == LARGE
    assert content(store, KEY, len(LARGE) - 20, 30) == LARGE[-20:]
    assert not put(store, KEY, LARGE[::-1])
    assert content(store, KEY) == LARGE
    assert everything(store) == [KEY]


def test_of_several_large_objects_at_once_one_wins(store: CloudStore) -> None:
    contents = [bytes([number]) + LARGE for number in range(3)]
    with ThreadPoolExecutor(max_workers=3) as pool:
        won = list(pool.map(lambda data: put(store, KEY, data), contents))
    assert won.count(True) == 1
    assert content(store, KEY) == contents[won.index(True)]
    assert everything(store) == [KEY]


class _KilledError(BaseException):
    """Stands for SIGKILL: nothing of the store's own may run afterwards."""


def test_killed_upload_is_run_again_and_what_it_left_goes(store: CloudStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise _KilledError

    with monkeypatch.context() as dying:
        for name in ("copy", "delete"):
            dying.setattr(obstore, name, killed)
        with pytest.raises(_KilledError):
            put(store, KEY, LARGE)
    [left] = everything(store)
    assert left.startswith(".incoming/")
    assert list(store.list("")) == []
    assert put(store, KEY, LARGE)
    assert content(store, KEY) == LARGE
    assert everything(store) == [left, KEY]  # it can be a live copy's
    monkeypatch.setattr(cloud, "ABANDONED", timedelta(seconds=-5))
    later = CloudStore(store.name, store._objects, store._prefix.rstrip("/"))
    assert put(later, "other", LARGE)
    assert everything(store) == [KEY, "other"]


@pytest.mark.parametrize("size_bytes", [len(LARGE) - 1, len(LARGE) + 1])
def test_source_of_another_size_leaves_nothing(store: CloudStore, size_bytes: int) -> None:
    with pytest.raises(StorageError, match="instead of"):
        store.put_new(KEY, io.BytesIO(LARGE), size_bytes)
    assert everything(store) == []


def test_many_objects_are_listed_page_after_page(store: CloudStore) -> None:
    keys = sorted(f"{name}/{number}" for name in ("a", "a-b", "a.b") for number in range(3))
    for key in keys:
        put(store, key, b"x")
    assert [each.key for each in store.list("")] == keys
    assert [each.key for each in store.list("a/")] == ["a/0", "a/1", "a/2"]


@pytest.mark.skipif(AZURITE is not None, reason="Azurite has no policies")
def test_object_that_must_not_be_deleted_is_kept(store: CloudStore, server: Google | Azure) -> None:
    put(store, KEY, b"x")
    put(store, "large", LARGE)
    server.retains = True
    assert store.delete(KEY) is Deletion.KEPT
    assert put(store, "large2", LARGE)
    server.retains = False
    assert store.delete(KEY) is Deletion.DELETED


@pytest.mark.skipif(AZURITE is not None, reason="Azurite copies at once")
def test_copy_that_is_not_done_at_once_is_awaited(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    store = azure.store()
    assert isinstance(store, CloudStore)
    azure.copies_after = 3
    assert put(store, KEY, LARGE)
    assert content(store, KEY) == LARGE
    assert everything(store) == [KEY]
    azure.copies_after = 1000
    monkeypatch.setattr(cloud, "COPY_S", 0.1)
    with pytest.raises(StorageError, match=f"0 bytes instead of {len(LARGE)}"):
        put(store, "late", LARGE)
    assert len([path for path in everything(store) if path.startswith(".incoming/")]) == 1


@pytest.fixture(name="proxy")
def faults(server: Google | Azure) -> Iterator[FaultProxy]:
    with fault_proxy(server.endpoint) as started:
        server.endpoint = started.endpoint
        yield started


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.DROPPED, Fault.ERROR_503])
@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
def test_request_that_creates_and_whose_answer_is_lost(
    proxy: FaultProxy, server: Google | Azure, fault: Fault, data: bytes
) -> None:
    """It is sent again, and what is there then is one's own."""
    store = server.store()
    proxy.times(fault, 1, method="PUT", of="qcow2")  # obstore quotes the rest for Google
    assert put(store, KEY, data)
    sent = [request for request in proxy.seen if request.method == "PUT" and "qcow2" in request.path]
    assert len(sent) == 2
    assert content(store, KEY) == data
    assert not put(store, KEY, data)


def test_bucket_that_does_not_exist(server: Google | Azure) -> None:
    scheme = "gs" if isinstance(server, Google) else "az"
    with pytest.raises(StorageError, match=f"There is no bucket or container for {scheme}://missing/x"):
        cloud_kinds.opened(scheme, "missing", "x", Settings(server.settings(), {}))


@pytest.mark.parametrize("name", ["GOOGLE_BEARER_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY"])
def test_keys_that_are_refused(request: pytest.FixtureRequest, name: str) -> None:
    started = request.getfixturevalue("google" if name.startswith("GOOGLE") else "azure")
    scheme, bucket = ("gs", started.bucket) if isinstance(started, Google) else ("az", started.container)
    settings = {**started.settings(), name: "d3Jvbmc="}
    with pytest.raises(StorageError, match="Cannot list what is there") as raised:
        cloud_kinds.opened(scheme, bucket, "x", Settings(settings, {}))
    assert "d3Jvbmc" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"AZURE_STORAGE_SAS_TOKEN": "sv=2021-12-02&sig=the%2Dsecret"}, StoreUnreachableError),
        # What cannot be parsed is refused before anything is sent, with the words of obstore.
        ({"AZURE_STORAGE_ENDPOINT": "http://[::1?sv=2021-12-02&sig=the%2Dsecret"}, StorageError),
        ({"AZURE_STORAGE_ENDPOINT": "127.0.0.1?sv=2021-12-02&sig=the%2Dsecret"}, StorageError),
        ({"AZURE_STORAGE_ENDPOINT": "the server?sig=the%2Dsecret"}, StorageError),
        ({"AZURE_STORAGE_SAS_TOKEN": "sig=the%2Dsecret%zz;the%2Dsecret"}, StorageError),
        ({"AZURE_STORAGE_SAS_TOKEN": "the%2Dsecret"}, StorageError),
    ],
)
def test_signature_is_in_no_message(given: dict[str, str], error: type[StorageError]) -> None:
    settings = {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1", **given}
    with pytest.raises(error) as raised:
        cloud_kinds.opened("az", "box", "x", Settings(settings, {}), retry_s=0)
    shown: BaseException | None = raised.value
    while shown is not None:
        assert "secret" not in f"{shown} {shown!r}"
        shown = shown.__cause__
