"""The manifests that this machine keeps of a target."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.builders import NOON, UUID
from vbackup.copies.ledger import Ledger
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
