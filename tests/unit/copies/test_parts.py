"""What is fetched of an object, when, and how often; tests/end_to_end/test_copy.py has images and QEMU."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest

from tests.fake_store import FakeStore
from tests.unit.builders import NOON, Recorder
from vbackup.copies import parts
from vbackup.copies.download import Wanted
from vbackup.copies.parts import Parts, PartsFile
from vbackup.copies.point import ObjectRecord
from vbackup.errors import ChainError, InterruptedBySignalError, StorageError
from vbackup.qemu.nbd_address import NbdAddress

PART = 1000
DATA = os.urandom(20 * PART + 17)


class Store(FakeStore):
    """Remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__(objects={"a": (DATA, NOON)})
        self.ranges: list[tuple[int, int]] = []

    def get(self, key: str, offset: int = 0, length: int | None = None, *, mark: str | None = None):  # type: ignore[no-untyped-def]
        assert length is not None
        self.ranges.append((offset, length))
        return super().get(key, offset, length, mark=mark)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", PART)
    monkeypatch.setattr(parts, "MAX_BYTES", 4 * PART)


@pytest.fixture
def store() -> Store:
    return Store()


def opened(store: Store, tmp_path: Path, warnings: list[str] | None = None) -> PartsFile:
    return PartsFile(store, "a", tmp_path / "a", len(DATA), ([] if warnings is None else warnings).append)


def test_part_is_fetched_once(store: Store, tmp_path: Path) -> None:
    file = opened(store, tmp_path)
    assert file.read(5 * PART + 10, 20) == DATA[5 * PART + 10 : 5 * PART + 30]
    assert file.read(5 * PART, PART) == DATA[5 * PART : 6 * PART]
    assert store.ranges == [(5 * PART, PART)]
    assert file.fetched_bytes == PART
    assert file.read(3 * PART, 4 * PART) == DATA[3 * PART : 7 * PART]
    assert sorted(store.ranges) == [(3 * PART, 2 * PART), (5 * PART, PART), (6 * PART, 4 * PART)]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_who_reads_on_gets_more_at_a_time(store: Store, tmp_path: Path) -> None:
    file = opened(store, tmp_path)
    assert b"".join(file.read(at, min(PART, len(DATA) - at)) for at in range(0, len(DATA), PART)) == DATA
    assert store.ranges[:2] == [(0, PART), (PART, 4 * PART)]
    assert store.ranges[-1] == (17 * PART, 3 * PART + 17)
    assert file.fetched_bytes == len(DATA)


def test_readers_at_the_same_time_share_what_comes(store: Store, tmp_path: Path) -> None:
    file, barrier = opened(store, tmp_path), Barrier(4)

    def read(_: int) -> bytes:
        barrier.wait()
        return file.read(0, len(DATA))

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert set(pool.map(read, range(4))) == {DATA}
    assert sum(length for _, length in store.ranges) == len(DATA)


def test_part_that_did_not_come_is_fetched_again(store: Store, tmp_path: Path) -> None:
    warnings: list[str] = []
    file = opened(store, tmp_path, warnings)

    def gone(what: str, _: str) -> None:
        if what == "get":
            raise StorageError("The network is gone.")

    store.before = gone
    with pytest.raises(OSError, match="gone"):
        file.read(0, 10)
    assert warnings == ["The network is gone."]
    store.before = lambda what, key: None
    assert file.read(0, 10) == DATA[:10]


def test_object_that_is_cut_meanwhile(store: Store, tmp_path: Path) -> None:
    file = opened(store, tmp_path)
    store.objects["a"] = (DATA[: 3 * PART + 1], NOON)
    assert file.read(0, PART) == DATA[:PART]
    with pytest.raises(StorageError, match="ended a after 3001 of"):
        file.bring(3 * PART, 5)
    del store.objects["a"]
    with pytest.raises(ChainError, match="a is missing at memory"):
        file.bring(8 * PART, 5)


def test_first_part_is_there_from_the_start(store: Store, tmp_path: Path) -> None:
    served = Parts(store, tmp_path, reporter=Recorder())
    try:
        record = ObjectRecord(len(DATA), "sha256:" + "0" * 64)
        addresses: dict[Path, NbdAddress] = {}
        served.add([Wanted("a", record, "vda", tmp_path / "image")], addresses)
        [(path, address)] = addresses.items()
        assert (path, address.path, address.export) == (tmp_path / "image", tmp_path / "nbd", "a")
        assert path.read_bytes() == DATA[:PART] + bytes(len(DATA) - PART)
        assert served.fetched_bytes == PART
    finally:
        served.close()
    assert not (tmp_path / "nbd").exists()


@pytest.mark.parametrize(("key", "words"), [("a", f"has {len(DATA)} bytes instead of 7"), ("b", "is missing")])
def test_object_of_another_size_is_refused(store: Store, tmp_path: Path, key: str, words: str) -> None:
    served = Parts(store, tmp_path, reporter=Recorder())
    try:
        with pytest.raises(ChainError, match=f"{key} {words}"):
            served.add([Wanted(key, ObjectRecord(7, "sha256:" + "0" * 64), "vda", tmp_path / "image")], {})
    finally:
        served.close()


def test_stop_ends_it_before_anything_is_fetched(store: Store, tmp_path: Path) -> None:
    def check() -> None:
        raise InterruptedBySignalError(2)

    served = Parts(store, tmp_path, reporter=Recorder(), check=check)
    try:
        with pytest.raises(InterruptedBySignalError):
            served.add([Wanted("a", ObjectRecord(len(DATA), "sha256:" + "0" * 64), "vda", tmp_path / "image")], {})
    finally:
        served.close()
    assert store.ranges == []


def test_failure_leaves_no_file_that_looks_whole(store: Store, tmp_path: Path) -> None:
    """Of several images, one comes and another does not, in a thread or when the files get their names."""
    record, addresses = ObjectRecord(len(DATA), "sha256:" + "0" * 64), {tmp_path / "other": NbdAddress("other")}
    images = [Wanted("a", record, "vda", tmp_path / "a"), Wanted("b", record, "vdb", tmp_path / "b")]
    served = Parts(store, tmp_path, reporter=Recorder())
    try:
        with pytest.raises(ChainError, match="b is missing"):
            served.add(images, addresses)
        store.objects["b"] = (DATA, NOON)
        (tmp_path / "b").mkdir()
        with pytest.raises(StorageError, match=r"write .*/b"):
            served.add(images, addresses)
        (tmp_path / "b").rmdir()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["nbd"]
        assert list(addresses) == [tmp_path / "other"]
        served.add(images, addresses)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "nbd"]
        assert len(addresses) == 3
    finally:
        served.close()


@pytest.mark.parametrize(
    "replaced", [(DATA[::-1], NOON + timedelta(days=1)), (DATA + b"x", NOON)], ids=["same size", "another size"]
)
def test_parts_of_two_objects_are_never_mixed(store: Store, tmp_path: Path, replaced: tuple[bytes, datetime]) -> None:
    """A point was removed and copied again while it is read; what was fetched before stays what it was."""
    recorder = Recorder()
    served = Parts(store, tmp_path, reporter=recorder)
    try:
        record = ObjectRecord(len(DATA), "sha256:" + "0" * 64)
        served.add([Wanted("a", record, "vda", tmp_path / "image")], {})
        file = served._files["a"]
        store.objects["a"] = replaced
        assert file.read(0, PART) == DATA[:PART]
        for _ in range(2):
            with pytest.raises(OSError, match="another object than when reading began") as raised:
                file.read(5 * PART, 10)
            assert raised.value.errno == errno.EIO
        assert ["another object" in text for text in recorder.warnings] == [True]
    finally:
        served.close()
