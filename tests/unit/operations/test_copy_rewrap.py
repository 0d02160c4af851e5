"""Rewrap: new recipients can read all points, nothing of the data is touched, and it goes on where it was killed."""

from __future__ import annotations

import io

import pytest

from tests.fake_store import FakeStore
from tests.unit.builders import Recorder
from vbackup.copies import target as targets
from vbackup.errors import IdentityError, IdentityNeededError, StorageError, UsageError
from vbackup.operations import copy_rewrap
from vbackup.operations.copy_rewrap import Rewrapped
from vbackup.stop import Stop
from vbackup.stores.age_keys import Identity
from vbackup.stores.sealed import Keys, SealedStore

UUID = "f0000000-0000-4000-8000-000000000001"
POINTS = [f"{UUID}/2026112{day}T120000Z-full" for day in (3, 4)]
NAMES = ["domain.xml", "manifest.json", "vda.qcow2"]
ONE, TWO, THREE = (Identity(bytes([number]) * 32) for number in (1, 2, 3))


def sealed(store: FakeStore, to: Identity, *by: Identity) -> SealedStore:
    found = targets.opened_for(store, ["0123456789ab"], create=True, keys=Keys((to.recipient,), by)).sealed
    assert found is not None
    return found


@pytest.fixture
def store() -> FakeStore:
    """A target with two points and what an unfinished one has."""
    made = FakeStore()
    for key in [*(f"{point}/{name}" for point in POINTS for name in NAMES), f"{UUID}/20261125T120000Z-full/vda.qcow2"]:
        assert sealed(made, ONE).put_new(key, io.BytesIO(key.encode()), len(key))
    return made


def run(store: FakeStore, by: tuple[Identity, ...], *to: Identity, recorder: Recorder | None = None) -> Rewrapped:
    keys = Keys(tuple(each.recipient for each in to), by)
    return copy_rewrap.run(store, keys, reporter=recorder or Recorder(), stop=Stop())


def readable(store: FakeStore, identity: Identity) -> list[str]:
    opened = sealed(store, ONE, identity)
    found = []
    for each in opened.list(""):
        if each.key != targets.MARKER:
            try:
                assert b"".join(opened.get(each.key)) == each.key.encode()
            except IdentityError:
                continue
            found.append(each.key)
    return found


def test_new_recipients_read_all_points(store: FakeStore) -> None:
    before = dict(store.objects)
    assert run(store, (ONE,), TWO, THREE) == Rewrapped("memory", 2, 6)
    assert run(store, (ONE,), THREE, TWO) == Rewrapped("memory", 2, 0)
    assert store.objects.items() >= before.items()
    for identity in (TWO, THREE):
        assert readable(store, identity) == [f"{point}/{name}" for point in POINTS for name in NAMES]


@pytest.mark.parametrize("number", range(1, 7))
def test_killed_at_any_object_it_goes_on(store: FakeStore, number: int) -> None:
    puts = 0

    def dies(what: str, _key: str) -> None:
        nonlocal puts
        puts += what == "put_new"
        if what == "put_new" and puts == number:
            raise StorageError("gone")

    store.before = dies
    with pytest.raises(StorageError, match="gone"):
        run(store, (ONE,), TWO)
    store.before = lambda _what, _key: None
    run(store, (ONE,), TWO)
    assert len(readable(store, TWO)) == 6


def test_point_of_other_recipients_is_passed(store: FakeStore) -> None:
    other = f"{UUID}/20261126T120000Z-full/manifest.json"
    sealed(store, THREE).put_new(other, io.BytesIO(b"x"), 1)
    recorder = Recorder()
    assert run(store, (ONE,), TWO, recorder=recorder) == Rewrapped("memory", 2, 6, (other.rpartition("/")[0],))
    assert len(readable(store, TWO)) == 6
    assert any("other recipients" in text for text in recorder.warnings)


def test_what_is_refused(store: FakeStore) -> None:
    before = dict(store.objects)
    with pytest.raises(UsageError, match="--recipient"):
        run(store, (ONE,))
    with pytest.raises(IdentityNeededError):
        run(store, (), TWO)
    with pytest.raises(IdentityError, match="other recipients"):
        run(store, (THREE,), TWO)
    assert store.objects == before
    plain = FakeStore()
    targets.opened_for(plain, ["0123456789ab"], create=True)
    with pytest.raises(UsageError, match="not encrypted"):
        run(plain, (ONE,), TWO)
