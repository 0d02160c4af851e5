"""What every store promises: an object appears once and as a whole, is listed at once, and is read in ranges.

A new kind of store is one more entry of ``STORES``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from tests.fake_store import FakeStore
from tests.weed import Weed
from vbackup.errors import StorageError, StoreUnreachableError
from vbackup.stores import ssh
from vbackup.stores.age_keys import Identity
from vbackup.stores.cloud import CloudStore
from vbackup.stores.directory import DirectoryStore
from vbackup.stores.sealed import Keys, SealedStore
from vbackup.stores.ssh import SshStore
from vbackup.stores.store import PIECE_BYTES, Deletion, Store, read_small

KEY = "0e2f4a7c-5b1d-4c3e-9f60-718293a4b5c6/20261128T101500Z-full/vda.qcow2"
SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")
OTHER = "0e2f4a7c-5b1d-4c3e-9f60-718293a4b5c6/20261128T101500Z-full/manifest.json"


def directory_store(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "target").mkdir()
    return DirectoryStore(tmp_path / "target")


def ssh_store(tmp_path: Path) -> Store:
    """OpenSSH's server for SFTP without the connection; tests/end_to_end has that, too."""
    if not SFTP_SERVER.exists():
        pytest.skip("openssh-sftp-server is not installed")
    return SshStore(f"ssh://host{tmp_path}/target", create=True, command=lambda place: [str(SFTP_SERVER)])


def s3_store(request: pytest.FixtureRequest) -> Store:
    weed: Weed = request.getfixturevalue("weed")
    return weed.store()


def sealed(store: Store) -> SealedStore:
    identity = Identity(bytes(range(32)))
    return SealedStore(store, Keys((identity.recipient,), (identity,)))


STORES: dict[str, Callable[[pytest.FixtureRequest, Path], Store]] = {
    "memory": lambda request, tmp_path: FakeStore(),
    "directory": lambda request, tmp_path: directory_store(tmp_path),
    "ssh": lambda request, tmp_path: ssh_store(tmp_path),
    "s3": lambda request, tmp_path: s3_store(request),
    "gs": lambda request, tmp_path: request.getfixturevalue("google").store(),
    "az": lambda request, tmp_path: request.getfixturevalue("azure").store(),
    # As for Azure and Google Cloud, without a server.
    "obstore": lambda request, tmp_path: CloudStore("mem://x", MemoryStore(), "copies/here"),  # type: ignore[arg-type]
    "sealed in memory": lambda request, tmp_path: sealed(FakeStore()),
    "sealed in a directory": lambda request, tmp_path: sealed(directory_store(tmp_path)),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = STORES[request.param](request, tmp_path)
    yield opened
    opened.close()


def put(store: Store, key: str, data: bytes) -> bool:
    return store.put_new(key, io.BytesIO(data), len(data))


def content(store: Store, key: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join(store.get(key, offset, length))


def test_what_was_put_is_there_and_listed(store: Store) -> None:
    data = os.urandom(PIECE_BYTES * 2 + 17)
    assert put(store, KEY, data)
    assert store.size(KEY) == len(data)
    assert content(store, KEY) == data
    [listed] = store.list("")
    assert (listed.key, listed.size_bytes) == (KEY, len(data))
    assert abs(listed.modified - datetime.now(tz=timezone.utc)) < timedelta(minutes=5)


def test_empty_object(store: Store) -> None:
    assert put(store, KEY, b"")
    assert (store.size(KEY), content(store, KEY)) == (0, b"")


def test_second_put_is_refused_and_changes_nothing(store: Store) -> None:
    assert put(store, KEY, b"first")
    assert not put(store, KEY, b"second")
    assert content(store, KEY) == b"first"


def test_of_several_puts_at_once_one_wins(store: Store) -> None:
    contents = [bytes([number]) * (PIECE_BYTES + 1) for number in range(6)]
    with ThreadPoolExecutor(max_workers=6) as pool:
        won = list(pool.map(lambda data: put(store, KEY, data), contents))
    assert won.count(True) == 1
    assert content(store, KEY) == contents[won.index(True)]


@pytest.mark.parametrize(("offset", "length"), [(0, 3), (5, 10), (PIECE_BYTES - 1, 2), (PIECE_BYTES, None), (7, 0)])
def test_ranges(store: Store, offset: int, length: int | None) -> None:
    data = os.urandom(PIECE_BYTES + 5)
    put(store, KEY, data)
    end = len(data) if length is None else offset + length
    assert content(store, KEY, offset, length) == data[offset:end]


def test_another_object_with_the_key_is_not_read_for_the_first(store: Store) -> None:
    assert store.look(KEY) is None
    put(store, KEY, b"0123456789" * 20_000)
    seen = store.look(KEY)
    assert seen is not None
    assert seen.size_bytes == 200_000
    assert b"".join(store.get(KEY, 150_003, 4, mark=seen.mark)) == b"3456"
    assert b"".join(store.get(KEY, mark=seen.mark)) == b"0123456789" * 20_000
    assert store.look(KEY) == seen
    store.delete(KEY)
    put(store, KEY, b"9876543210" * 30_000)
    with pytest.raises(StorageError, match="another object than when reading began"):
        list(store.get(KEY, 150_003, 4, mark=seen.mark))
    assert content(store, KEY, 1, 2) == b"87"


def test_range_ends_with_the_object(store: Store) -> None:
    put(store, KEY, b"0123456789")
    assert content(store, KEY, 8, 100) == b"89"


def test_what_is_not_there(store: Store) -> None:
    assert store.size(KEY) is None
    with pytest.raises(FileNotFoundError):
        next(store.get(KEY))
    assert store.delete(KEY) is Deletion.ABSENT
    assert list(store.list("")) == []
    assert list(store.list("0e2f4a7c-5b1d-4c3e-9f60-718293a4b5c6/")) == []


def test_list_is_sorted_and_has_only_the_prefix(store: Store) -> None:
    keys = ["a/b/c", "a/b-c", "a/b/a", "ab/c", "vbackup.json"]
    for key in keys:
        put(store, key, b"x")
    assert [each.key for each in store.list("")] == sorted(keys)
    assert [each.key for each in store.list("a/b/")] == ["a/b/a", "a/b/c"]


def test_deleted_is_gone_and_can_be_put_again(store: Store) -> None:
    put(store, KEY, b"first")
    put(store, OTHER, b"manifest")
    assert store.delete(KEY) is Deletion.DELETED
    assert store.size(KEY) is None
    assert [each.key for each in store.list("")] == [OTHER]
    assert put(store, KEY, b"second")
    assert content(store, KEY) == b"second"


@pytest.mark.parametrize("size_bytes", [9, 11])
def test_source_of_another_size_stores_nothing(store: Store, size_bytes: int) -> None:
    with pytest.raises(StorageError, match="instead of"):
        store.put_new(KEY, io.BytesIO(b"0123456789"), size_bytes)
    assert store.size(KEY) is None
    assert list(store.list("")) == []


class Broken(io.BytesIO):
    """A source that raises after its first piece, as one does whose copy is stopped."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise InterruptedError("stopped")
        return super().read(size)


def test_what_the_source_raises_is_passed_on_and_nothing_stored(store: Store) -> None:
    data = bytes(PIECE_BYTES * 2)
    with pytest.raises((InterruptedError, StorageError)):
        store.put_new(KEY, Broken(data), len(data))
    assert store.size(KEY) is None
    assert put(store, KEY, b"again")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../b", "a//b", ".hidden", "a/.b", "a b", "a/", "ä"])
def test_bad_keys_are_refused(store: Store, key: str) -> None:
    with pytest.raises(StorageError, match="not a key"):
        put(store, key, b"x")
    with pytest.raises(StorageError, match="not a key"):
        next(store.get(key))


def test_get_can_be_ended_early(store: Store) -> None:
    put(store, KEY, bytes(PIECE_BYTES * 3))
    pieces = store.get(KEY)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert store.size(KEY) == PIECE_BYTES * 3


def test_small_objects_are_read_whole(store: Store) -> None:
    put(store, KEY, b"0123456789")
    assert read_small(store, KEY, max_bytes=10) == b"0123456789"
    assert read_small(store, OTHER, max_bytes=10) is None
    with pytest.raises(StorageError, match="larger"):
        read_small(store, KEY, max_bytes=9)


def test_ssh_makes_no_more_than_the_last_directory(tmp_path: Path) -> None:
    ssh_store(tmp_path).close()

    def at(path: str, *, is_dry_run: bool) -> SshStore:
        return SshStore(
            f"ssh://host{tmp_path}/{path}",
            create=True,
            is_dry_run=is_dry_run,
            command=lambda _place: [str(SFTP_SERVER)],
        )

    for is_dry_run in (True, False):
        with pytest.raises(StorageError, match=f"no directory {tmp_path}/disk on host in which copies could be made"):
            at("disk/copies", is_dry_run=is_dry_run)
    assert not (tmp_path / "disk").exists()
    (tmp_path / "disk").mkdir()
    store = at("disk/copies", is_dry_run=True)
    assert (store.size(KEY), list(store.list(""))) == (None, [])
    store.close()
    assert list((tmp_path / "disk").iterdir()) == []
    at("disk/copies", is_dry_run=False).close()
    assert (tmp_path / "disk" / "copies").is_dir()


def lose(opened: SshStore) -> None:
    """Let the server die, and wait until that is known."""
    opened._sftp._process.kill()
    opened._sftp._process.wait()
    opened._sftp._reader.join(10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshStore]:
    opened = ssh_store(tmp_path)
    assert isinstance(opened, SshStore)
    yield opened
    opened.close()


def test_read_over_ssh_connects_again(server: SshStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(3 * PIECE_BYTES)
    put(server, KEY, data)
    monkeypatch.setattr(ssh, "_PAUSE_S", 0.0)
    lose(server)
    assert content(server, KEY) == data
    lose(server)
    assert server.size(KEY) == len(data)
    lose(server)
    with ThreadPoolExecutor(max_workers=6) as pool:
        assert set(pool.map(lambda _: content(server, KEY, 5, 7), range(6))) == {data[5:12]}
    pieces = server.get(KEY)
    begun = next(pieces)
    lose(server)
    assert begun + b"".join(pieces) == data


def test_object_that_changes_while_a_connection_is_lost_is_not_mixed(
    server: SshStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_PAUSE_S", 0.0)
    put(server, KEY, bytes(20 * PIECE_BYTES))
    pieces = server.get(KEY)
    next(pieces)
    lose(server)
    path = tmp_path / "target" / KEY
    path.unlink()
    path.write_bytes(b"x" * 21 * PIECE_BYTES)
    with pytest.raises(StorageError, match="another object than when reading began"):
        list(pieces)


def test_lost_connection_is_not_made_again_at_every_read(server: SshStore) -> None:
    put(server, KEY, b"x")
    lose(server)
    server._argv = ["false"]
    tried = server._next_s
    with pytest.raises(StoreUnreachableError):
        server.size(KEY)
    assert server._next_s > tried
    server._argv = [str(SFTP_SERVER)]
    with pytest.raises(StoreUnreachableError):
        content(server, KEY)
    server._next_s = 0.0
    assert content(server, KEY) == b"x"
    lose(server)
    server._next_s = 0.0
    server.close()
    with pytest.raises(StoreUnreachableError):
        server.size(KEY)
