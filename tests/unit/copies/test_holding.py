"""Which objects of a target get the immutable flag: those of points that exist, and are not that old."""

from __future__ import annotations

import io
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_store import FakeStore
from vbackup import immutable
from vbackup.copies import holding
from vbackup.copies import target as targets
from vbackup.copies.target import Target
from vbackup.errors import StorageError, UsageError
from vbackup.stores.age_keys import Identity
from vbackup.stores.directory import DirectoryStore
from vbackup.stores.sealed import Keys
from vbackup.stores.store import Deletion

UUID = "f0000000-0000-4000-8000-000000000001"
OLD, NEW, UNFINISHED = (f"{UUID}/2026112{day}T120000Z-full" for day in (3, 4, 5))
DAY_S = 24 * 3600


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DirectoryStore]:
    try:
        immutable.refuse_impossible(tmp_path)
    except StorageError as err:
        pytest.skip(str(err))
    yield DirectoryStore(tmp_path)
    subprocess.run(["chattr", "-R", "-i", tmp_path], check=True)


def put(target: Target, *keys: str) -> None:
    for key in keys:
        assert target.store.put_new(key, io.BytesIO(b"x"), 1)


@pytest.mark.parametrize("identity", [None, Identity(bytes(range(32)))], ids=["plain", "sealed"])
def test_points_are_held_and_nothing_else(tmp_path: Path, directory: DirectoryStore, identity: Identity | None) -> None:
    keys = Keys() if identity is None else Keys((identity.recipient,))
    target = targets.opened_for(directory, ["0123456789ab"], create=True, keys=keys)
    for point in (OLD, NEW):
        put(target, f"{point}/manifest.json", f"{point}/vda.qcow2")
    put(target, f"{NEW}/upload-0123456789ab", f"{UNFINISHED}/vda.qcow2", f"{UUID}/claim-0123456789ab")
    for path in tmp_path.glob(f"{OLD}/*"):
        os.utime(path, (0, time.time() - 4 * DAY_S))
    assert holding.refuse_impossible(directory) is directory
    assert holding.hold(targets.listing(target, UUID), 3, target=target, directory=directory) == 2
    assert holding.hold(targets.listing(target, UUID), 3, target=target, directory=directory) == 0
    kept = [each.key for each in target.store.list("") if target.store.delete(each.key) is Deletion.KEPT]
    assert kept == [f"{NEW}/manifest.json", f"{NEW}/vda.qcow2"]


def test_other_places_are_refused() -> None:
    with pytest.raises(UsageError, match="Object Lock"):
        holding.refuse_impossible(FakeStore())
