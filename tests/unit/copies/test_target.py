"""The marker of a target, and what the names of its objects say."""

from __future__ import annotations

import io
import json
from datetime import datetime, timezone

import pytest

from tests.fake_store import FakeStore
from tests.unit.builders import UUID
from vbackup.copies import target
from vbackup.errors import StorageError
from vbackup.stores import store as stores

OWN, OTHER = "0123456789ab", "ba9876543210"
ID = "20261123T120000Z-full"


def put(store: FakeStore, key: str, data: bytes = b"x") -> None:
    store.put_new(key, io.BytesIO(data), len(data))


def marked(**changes: object) -> FakeStore:
    store = FakeStore()
    members = {"schema": "vbackup.target/1", "version": 1, "id": OTHER, "repository": OWN, **changes}
    put(store, target.MARKER, json.dumps(members).encode())
    return store


def test_empty_place_becomes_a_target_once() -> None:
    store = FakeStore()
    made = target.opened_for(store, [OWN], create=True)
    assert made.repository_id == OWN
    assert target.opened_for(store, [OWN], create=True) == made
    assert target.opened(store).id == made.id


def test_place_with_anything_else_is_refused() -> None:
    store = FakeStore()
    put(store, "holiday.jpg")
    with pytest.raises(StorageError, match=r"not empty: it has 'holiday\.jpg'"):
        target.opened_for(store, [OWN], create=True)


def test_nothing_is_made_where_one_only_looks() -> None:
    store = FakeStore()
    with pytest.raises(StorageError, match="is not a target of copies"):
        target.opened_for(store, [OWN], create=False)
    assert store.objects == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "newer target format 2"),
        ({"version": 0}, "older target format 0"),
        ({"schema": "vbackup.repository/1"}, "is a repository and not a target"),
        ({"schema": "vbackup.target/2"}, "'vbackup.target/2' by its schema"),
        ({"schema": "other/1"}, "is not a target"),
        ({"id": "../../etc"}, "never assigns"),
        ({"repository": 5}, "should be a string"),
        ({"encryption": "rot13"}, "does not know"),
    ],
)
def test_other_formats_are_refused_with_status_7(changes: dict[str, object], words: str) -> None:
    with pytest.raises(StorageError, match=words) as caught:
        target.opened(marked(**changes))
    assert int(caught.value.status) == 7


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{", b"x" * 70000])
def test_damaged_marker(data: bytes) -> None:
    store = FakeStore()
    put(store, target.MARKER, data)
    with pytest.raises(StorageError):
        target.opened(store)


def test_target_of_a_former_id_is_the_same_repository() -> None:
    assert target.opened_for(marked(), [OTHER, OWN], create=True).repository_id == OWN
    with pytest.raises(StorageError, match="another repository"):
        target.opened_for(marked(), [OTHER], create=True)


def test_listing_tells_points_from_what_is_unfinished() -> None:
    store = marked()
    later = "20261124T120000Z-incremental"
    for key in (
        f"{UUID}/{ID}/manifest.json",
        f"{UUID}/{ID}/vda.qcow2",
        f"{UUID}/{later}/upload-0123456789ab",
        f"{UUID}/{later}/vda.qcow2",
        f"{UUID}/claim-0123456789ab",
        f"{UUID}/claim-ba9876543210",
        f"{UUID}/released-ba9876543210",
        f"{UUID}/claim-other",
        f"{UUID}/notes.txt",
        f"{UUID}/{ID}/deep/manifest.json",
        f"{UUID}/{ID}/Copy of vda.qcow2",
        "elsewhere/manifest.json",
    ):
        store.objects[key] = (b"x", datetime.now(tz=timezone.utc))  # also what is no key, as in a directory
    found = target.listings(target.opened(store))
    assert found.keys() == {UUID}
    assert found[UUID] == target.listing(target.opened(store), UUID)
    assert {one: sorted(objects) for one, objects in found[UUID].points.items()} == {ID: ["manifest.json", "vda.qcow2"]}
    assert found[UUID].unfinished.keys() == {later}
    assert [each.key for each in found[UUID].claims] == [f"{UUID}/claim-0123456789ab"]
    assert [each.key for each in found[UUID].released] == [
        f"{UUID}/claim-ba9876543210",
        f"{UUID}/released-ba9876543210",
    ]


def test_place_that_lists_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_OBJECTS", 10)
    place = marked()
    for number in range(11):
        put(place, f"{UUID}/{ID}/{number}.qcow2")
    opened = target.opened(place)
    with pytest.raises(StorageError, match="lists more than 10 objects"):
        target.listing(opened, UUID)
    with pytest.raises(StorageError, match="a directory or bucket for itself"):
        target.listings(opened)
