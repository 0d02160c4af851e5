"""S3 beyond what all stores promise: parts, Object Lock, and a network and a server that fail.

The server is SeaweedFS. After each fault either the object is there as it was sent, or there is an error and no object.
vbackup.stores.cloud_kinds, s3, s3_requests and s3_upload are tested here.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from tests import certificates
from tests.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.weed import SECRET, Weed
from vbackup.errors import StorageError, StoreUnreachableError, UsageError
from vbackup.stores import s3_requests, s3_upload
from vbackup.stores.opening import opened
from vbackup.stores.s3 import S3Store
from vbackup.stores.store import Deletion

MIB = 1024 * 1024
#: The smallest parts that S3 allows.
PART_BYTES = 5 * MIB
KEY = "0e2f4a7c-5b1d-4c3e-9f60-718293a4b5c6/20261128T101500Z-full/vda.qcow2"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_requests, "PAUSE_S", 0.01)


@pytest.fixture(name="proxy")
def faults(weed: Weed) -> Iterator[FaultProxy]:
    with fault_proxy(weed.endpoint) as started:
        yield started


@pytest.fixture(name="store")
def through_proxy(weed: Weed, proxy: FaultProxy) -> Iterator[S3Store]:
    opened_store = weed.store(endpoint=proxy.endpoint, part_bytes=PART_BYTES)
    yield opened_store
    opened_store.close()


def put(store: S3Store, key: str, data: bytes) -> bool:
    return store.put_new(key, io.BytesIO(data), len(data))


def content(store: S3Store, key: str) -> bytes:
    return b"".join(store.get(key))


def prefix_of(store: S3Store) -> str:
    return store.name.partition("://")[2].partition("/")[2]


@pytest.fixture(name="large", scope="module")
def large_content() -> bytes:
    return os.urandom(2 * PART_BYTES + 17)


def test_parts(store: S3Store, weed: Weed, large: bytes) -> None:
    assert put(store, KEY, large)
    assert content(store, KEY) == large
    assert b"".join(store.get(KEY, PART_BYTES - 1, 2)) == large[PART_BYTES - 1 : PART_BYTES + 1]
    assert not put(store, KEY, large)
    assert weed.unfinished(prefix_of(store)) == []


def test_of_several_uploads_in_parts_one_wins(store: S3Store, weed: Weed) -> None:
    contents = [bytes([number]) * (PART_BYTES + 1) for number in range(4)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        won = list(pool.map(lambda data: put(store, KEY, data), contents))
    # SeaweedFS, unlike Amazon, can let two that end within the same milliseconds succeed; the last one is the object.
    assert content(store, KEY) in [data for data, is_new in zip(contents, won) if is_new]
    assert weed.unfinished(prefix_of(store)) == []


@pytest.mark.parametrize("size_bytes", [PART_BYTES + 1, 2 * PART_BYTES + 16, 2 * PART_BYTES + 18])
def test_source_of_another_size_leaves_nothing(store: S3Store, weed: Weed, large: bytes, size_bytes: int) -> None:
    with pytest.raises(StorageError, match="instead of"):
        store.put_new(KEY, io.BytesIO(large), size_bytes)
    assert store.size(KEY) is None
    assert weed.unfinished(prefix_of(store)) == []


class _KilledError(BaseException):
    """Stands for SIGKILL: nothing of the store's own may run afterwards."""


def test_upload_of_a_killed_copy_is_continued(
    store: S3Store, weed: Weed, proxy: FaultProxy, large: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= 2 * PART_BYTES:
                raise _KilledError
            return super().read(size)

    with monkeypatch.context() as killed:
        killed.setattr(s3_upload._Upload, "_abort", lambda self, upload: None)
        with pytest.raises(_KilledError):
            store.put_new(KEY, Killed(large), len(large))
    assert weed.unfinished(prefix_of(store)) == [f"{prefix_of(store)}/{KEY}"]
    assert store.size(KEY) is None
    monkeypatch.setattr(s3_upload, "QUIET", timedelta(seconds=-5))
    # Of the second part the content is another one by now.
    changed = large[: PART_BYTES + 9] + b"\0" + large[PART_BYTES + 10 :]
    before = len(proxy.seen)
    assert put(store, KEY, changed)
    sent = [request.path for request in proxy.seen[before:] if "partNumber" in request.path]
    assert sorted(path.partition("partNumber=")[2][0] for path in sent) == ["2", "3"]
    assert content(store, KEY) == changed
    assert weed.unfinished(prefix_of(store)) == []


def test_uploads_of_dead_copies_are_removed(
    store: S3Store, weed: Weed, large: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with weed.requests(weed.shared) as requests:
        requests.send("POST", f"{prefix_of(store)}/other", query={"uploads": ""})
    assert weed.unfinished(prefix_of(store)) == [f"{prefix_of(store)}/other"]
    monkeypatch.setattr(s3_upload, "ABANDONED", timedelta(seconds=-5))
    assert put(store, KEY, large)
    assert weed.unfinished(prefix_of(store)) == []


# faults


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize(
    ("method", "of"),
    [
        pytest.param("PUT", "small", id="one request"),
        pytest.param("POST", "uploads=", id="begin"),
        pytest.param("PUT", "partNumber=2", id="part"),
        pytest.param("POST", "uploadId=", id="end"),
    ],
)
def test_put_after_faults_is_right(
    store: S3Store, proxy: FaultProxy, weed: Weed, large: bytes, fault: Fault, method: str, of: str
) -> None:
    key, data = ("small", b"manifest") if of == "small" else (KEY, large[: PART_BYTES + 17])
    proxy.times(fault, 2, method=method, of=of)
    stored = put(store, key, data)
    proxy.choose = lambda request: None
    assert stored
    assert content(store, key) == data
    if fault not in (Fault.LOST, Fault.TRUNCATED):  # the server began one that nobody knows: the next day removes it
        assert weed.unfinished(prefix_of(store)) == []


@pytest.mark.parametrize("fault", [Fault.ERROR_500, Fault.ERROR_503, Fault.DROPPED, Fault.SLOW, Fault.TRUNCATED])
@pytest.mark.parametrize("read", ["get", "size", "list"])
def test_read_after_faults_is_right(store: S3Store, proxy: FaultProxy, large: bytes, fault: Fault, read: str) -> None:
    large = large[: 3 * MIB]
    put(store, KEY, large)
    method = "HEAD" if read == "size" else "GET"
    proxy.times(fault, 2, method=method)
    reads: dict[str, Callable[[], object]] = {
        "get": lambda: content(store, KEY) == large,
        "size": lambda: store.size(KEY) == len(large),
        "list": lambda: [each.size_bytes for each in store.list("")] == [len(large)],
    }
    assert reads[read]()


def test_damaged_answer_of_a_small_object_is_an_error(store: S3Store, proxy: FaultProxy) -> None:
    put(store, "manifest.json", b"the content of a manifest")
    proxy.times(Fault.CHANGED_ANSWER, 1, method="GET", of="manifest.json")
    with pytest.raises(StorageError, match="damaged"):
        content(store, "manifest.json")
    assert content(store, "manifest.json") == b"the content of a manifest"


@pytest.mark.parametrize("fault", [Fault.ERROR_500, Fault.ERROR_503, Fault.DROPPED, Fault.CHANGED_REQUEST])
@pytest.mark.parametrize("of", ["small", "partNumber=2", "uploadId="])
def test_put_that_fails_until_the_deadline_stores_nothing(
    weed: Weed, proxy: FaultProxy, large: bytes, fault: Fault, of: str
) -> None:
    store = weed.store(endpoint=proxy.endpoint, part_bytes=PART_BYTES, retry_s=0.3)
    key, data = ("small", b"manifest") if of == "small" else (KEY, large[: PART_BYTES + 17])
    proxy.times(fault, 1000, method="POST" if of == "uploadId=" else "PUT", of=of)
    with pytest.raises(StorageError) as raised:
        put(store, key, data)
    assert ("Cannot reach" if fault is Fault.DROPPED else "failed for") in str(raised.value)
    assert list(store.list("")) == []
    assert weed.unfinished(prefix_of(store)) == []
    store.close()


def test_read_that_fails_until_the_deadline(weed: Weed, proxy: FaultProxy) -> None:
    store = weed.store(endpoint=proxy.endpoint, retry_s=0.5)
    put(store, KEY, b"x" * 1000)
    proxy.times(Fault.ERROR_503, 1000, method="GET")
    with pytest.raises(StorageError, match=r"Cannot read .*503"):
        content(store, KEY)
    proxy.times(Fault.TRUNCATED, 1000, method="GET")
    with pytest.raises(StorageError):
        content(store, KEY)


# Object Lock


def test_locked_object_is_kept_and_stays_visible(weed: Weed) -> None:
    bucket = weed.bucket(lock_days=30)
    store = S3Store(bucket, "", weed.settings(), retry_s=20, part_bytes=PART_BYTES)
    assert store.lock_days() == 30
    data = os.urandom(PART_BYTES + 1)
    assert put(store, KEY, data)
    assert put(store, "vbackup.json", b"{}")
    for key in (KEY, "vbackup.json"):
        assert store.delete(key) is Deletion.KEPT
    assert content(store, KEY) == data
    assert len(list(store.list(""))) == 2
    assert not put(store, KEY, data)


def test_delete_in_a_bucket_with_versions_removes_for_good(weed: Weed) -> None:
    bucket = weed.bucket(lock_days=1)
    store = S3Store(bucket, "", weed.settings(), retry_s=20)
    with weed.requests(bucket) as requests:
        no_rule = b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>"
        assert requests.send("PUT", query={"object-lock": ""}, body=no_rule).is_done
        assert store.lock_days() is None
        assert put(store, KEY, b"x")
        assert store.delete(KEY) is Deletion.DELETED
        assert requests.send("GET", query={"versions": ""}).elements("Key") == []
        # An older version does not come back.
        for data in (b"one", b"two"):
            assert requests.send("PUT", KEY, body=data).is_done
        assert store.delete(KEY) is Deletion.DELETED
        assert store.size(KEY) is None
        assert store.delete(KEY) is Deletion.ABSENT


def test_bucket_without_lock(weed: Weed) -> None:
    assert weed.store().lock_days() is None


# what is wrong from the beginning


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, StorageError, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "NOBODY"}, StorageError, "InvalidAccessKeyId"),
        ({"AWS_ACCESS_KEY_ID": ""}, StorageError, "There are no keys for S3"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, StoreUnreachableError, "Connection refused"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1"}, UsageError, "should be like https://"),
    ],
)
def test_what_is_wrong_is_said_at_once(weed: Weed, change: dict[str, str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        S3Store(weed.shared, "copies", {**weed.settings(), **change}, retry_s=0.3)
    assert SECRET not in str(raised.value)


def test_endpoint_with_tls_needs_a_certificate_of_a_trusted_authority(weed: Weed, tmp_path: Path) -> None:
    made = certificates.make(tmp_path / "certificates")
    with fault_proxy(weed.endpoint, certificates=made) as proxy:
        settings = {**weed.settings(proxy.endpoint), "AWS_CA_BUNDLE": os.fspath(made / "ca-cert.pem")}
        store = S3Store(weed.shared, "tls", settings, retry_s=5)
        assert put(store, KEY, b"x")
        assert content(store, KEY) == b"x"
        store.close()
        (tmp_path / "other.pem").write_text(certificates.other_ca(tmp_path / "other"))
        with pytest.raises(StoreUnreachableError, match="its certificate is not valid"):
            S3Store(weed.shared, "tls", {**settings, "AWS_CA_BUNDLE": os.fspath(tmp_path / "other.pem")}, retry_s=5)
    (tmp_path / "empty").touch()
    with pytest.raises(StorageError, match="has no certificates"):
        S3Store(weed.shared, "tls", {**settings, "AWS_CA_BUNDLE": os.fspath(tmp_path / "empty")}, retry_s=5)


def test_missing_bucket(weed: Weed) -> None:
    with pytest.raises(StorageError, match="There is no bucket nothing-here"):
        S3Store("nothing-here", "copies", weed.settings(), retry_s=1)


def test_keys_from_a_file_that_only_its_owner_reads(
    weed: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "offsite"
    config.write_text("".join(f"{name}={value}\n" for name, value in weed.settings().items()))
    config.chmod(0o640)
    with pytest.raises(StorageError, match="chmod 600"):
        opened(f"s3://{weed.shared}/by-file", config=config)
    config.chmod(0o600)
    store = opened(f"s3://{weed.shared}/by-file", config=config)
    assert store.name == f"s3://{weed.shared}/by-file"
    assert put(store, KEY, b"x")  # type: ignore[arg-type]


def test_no_secret_in_what_is_logged(weed: Weed, proxy: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    store = weed.store(endpoint=proxy.endpoint)
    proxy.times(Fault.ERROR_503, 1, method="PUT")
    assert put(store, KEY, b"x")
    assert "again in" in caplog.text
    assert SECRET not in caplog.text


def test_threads_end_with_the_store(weed: Weed, large: bytes) -> None:
    store = weed.store(part_bytes=PART_BYTES)
    assert put(store, KEY, large)
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("s3")]
