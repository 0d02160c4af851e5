"""The manifests that this machine keeps of a target."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.builders import NOON, UUID
from vbackup.copies.ledger import Ledger, of_targets
from vbackup.stores.store import StoredObject

ID, OTHER = "20261123T120000Z-full", "20261124T120000Z-full"
LISTED = StoredObject("key", 7, NOON)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "copies")


def test_what_was_read_is_known_while_the_object_is_the_same(ledger: Ledger) -> None:
    assert ledger.get(UUID, ID, LISTED) is None
    ledger.put(UUID, ID, "text ä", LISTED)
    assert ledger.get(UUID, ID, LISTED) == "text ä"
    assert ledger.get(UUID, ID, StoredObject("key", 8, NOON)) is None
    assert ledger.get(UUID, ID, StoredObject("key", 7, NOON + timedelta(seconds=1))) is None


def test_what_was_stored_is_known_and_noted_when_it_is_first_listed(ledger: Ledger) -> None:
    ledger.put(UUID, ID, "text ä")
    assert ledger.get(UUID, ID, StoredObject("key", 6, NOON)) is None  # somebody else's
    assert ledger.get(UUID, ID, LISTED) == "text ä"
    assert ledger.get(UUID, ID, StoredObject("key", 8, NOON)) is None


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"manifest": 5}'])
def test_damaged_entry_is_read_again(ledger: Ledger, data: bytes) -> None:
    (ledger.directory_of(UUID) / f"{ID}.json").write_bytes(data)
    assert ledger.get(UUID, ID, LISTED) is None


def test_points_that_are_gone_are_forgotten(ledger: Ledger) -> None:
    ledger.put(UUID, ID, "text", LISTED)
    ledger.put(UUID, OTHER, "text", LISTED)
    ledger.keep_only(UUID, [OTHER])
    assert ledger.get(UUID, ID, LISTED) is None
    ledger.drop(UUID, OTHER)
    ledger.drop(UUID, OTHER)
    assert ledger.get(UUID, OTHER, LISTED) is None
    ledger.keep_only("f0000000-0000-4000-8000-000000000009", [])


def test_modes(ledger: Ledger) -> None:
    ledger.put(UUID, ID, "text", LISTED)
    assert ledger.directory_of(UUID).stat().st_mode & 0o777 == 0o700
    assert (ledger.directory_of(UUID) / f"{ID}.json").stat().st_mode & 0o777 == 0o600


def test_ids_are_known_without_reading_them(ledger: Ledger) -> None:
    assert ledger.ids(UUID) == frozenset()
    ledger.put(UUID, ID, "text")
    (ledger.directory / UUID / f"{OTHER}.partial").mkdir()
    (ledger.directory / UUID / "claim.json").write_text("{}")
    assert ledger.ids(UUID) == {ID}


def test_a_ledger_is_found_by_the_place_that_was_noted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "0123456789ab")
    Ledger(tmp_path / "ba9876543210").note_place("s3://other")
    ledger.note_place("s3://old")
    ledger.note_place("s3://bucket/web")
    found = of_targets(tmp_path, {"offsite": "s3://bucket/web/", "moved": "s3://old"})
    assert {name: one.directory for name, one in found.items()} == {"offsite": ledger.directory}
    assert of_targets(tmp_path / "nowhere", {"offsite": "s3://bucket/web"}) == {}


@pytest.mark.parametrize("url", ["{0}/disk", "file://{0}/disk", "{0}/link/", "{0}/x/../disk"])
def test_a_directory_is_found_by_its_marker_too_whatever_it_is_called(tmp_path: Path, url: str) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "disk" / "vbackup.json").write_text('{"id": "0123456789ab"}')
    (tmp_path / "copies" / "0123456789ab").mkdir(parents=True)
    found = of_targets(tmp_path / "copies", {"usb": url.format(tmp_path)})
    assert found["usb"].directory.name == "0123456789ab"
    (tmp_path / "disk" / "vbackup.json").unlink()
    assert of_targets(tmp_path / "copies", {"usb": url.format(tmp_path)}) == {}
    found["usb"].note_place(str((tmp_path / "disk").resolve()))
    assert of_targets(tmp_path / "copies", {"usb": url.format(tmp_path)}).keys() == {"usb"}
