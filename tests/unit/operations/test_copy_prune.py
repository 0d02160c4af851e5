"""In which order points at a target are removed, and what stays: also if the clock of the host was set back.

tests/end_to_end/test_copy.py has the rest, with real images.
"""

from __future__ import annotations

import io
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.fake_store import FakeStore
from tests.unit.builders import NOON, UUID, Recorder, backup, image
from vbackup import names
from vbackup.copies import point as points
from vbackup.copies.ledger import Known, Ledger
from vbackup.copies.point import ObjectRecord, Point
from vbackup.copies.target import Target
from vbackup.errors import NeededError
from vbackup.model import Backup, Level
from vbackup.operations import copy_prune
from vbackup.operations.copy_prune import CopiesPruned, CopyPruneRequest
from vbackup.repository.retention import Rules
from vbackup.stop import Stop


def made(sequence: int, hour: int, base: Backup | None = None) -> Backup:
    """A backup that was made with this number, at an hour of the host's clock."""
    level = Level.FULL if base is None else Level.INCREMENTAL
    time = NOON + timedelta(hours=hour)
    disk = image(level=level, base=None if base is None else base.id)
    return backup(sequence, disk, level=level, id=names.backup_id(time, level), time=time)


#: The clock was set back by ten hours between the second one and the third.
FULL = made(1, 11)
SECOND = made(2, 12, FULL)
THIRD = made(3, 2, SECOND)
NEWEST = made(4, 13)


def put(store: FakeStore, one: Backup, text: str | None = None) -> None:
    record = ObjectRecord(1, "sha256:" + "0" * 64)
    whole = Point(one, dict.fromkeys(points.names_of(one), record))
    prefix = f"{UUID}/{one.id}"
    for name in points.names_of(one):
        store.put_new(f"{prefix}/{name}", io.BytesIO(b"x"), 1)
    data = (points.dump(whole) if text is None else text).encode()
    store.put_new(f"{prefix}/manifest.json", io.BytesIO(data), len(data))


def run(store: FakeStore, tmp_path: Path, *remove: str, last: int = 1, said: Recorder | None = None) -> CopiesPruned:
    known = Known(Target(store, "0123456789ab", "0123456789ab"), Ledger(tmp_path))
    request = CopyPruneRequest(UUID, Rules(last=last), remove)
    return copy_prune.run(request, known=known, reporter=said or Recorder(), stop=Stop())


def test_images_that_others_need_stay_although_their_manifest_is_lost(tmp_path: Path) -> None:
    store, said = FakeStore(), Recorder()
    for one in (FULL, SECOND):
        put(store, one)
    store.objects.pop(f"{UUID}/{FULL.id}/manifest.json")
    before = set(store.objects)
    done = run(store, tmp_path, last=5, said=said)
    assert set(store.objects) == before
    assert done.rests == 0
    [warning] = said.warnings
    assert warning.startswith(f"Backup {FULL.id} has no manifest at ")


@pytest.mark.parametrize("is_readable", [True, False])
def test_rests_of_a_removal_go_unless_a_manifest_cannot_be_read(tmp_path: Path, *, is_readable: bool) -> None:
    store = FakeStore()
    for one in (FULL, SECOND, NEWEST):
        put(store, one, None if is_readable or one is not SECOND else "{")
    store.objects.pop(f"{UUID}/{FULL.id}/manifest.json")
    if is_readable:
        store.objects.pop(f"{UUID}/{SECOND.id}/manifest.json")
    done = run(store, tmp_path, last=5)
    assert bool(done.rests) is is_readable
    assert bool([key for key in store.objects if FULL.id in key]) is not is_readable


def test_heir_goes_before_what_it_depends_on_whatever_the_clock_said(tmp_path: Path) -> None:
    store = FakeStore()
    for one in (FULL, SECOND, THIRD, NEWEST):
        put(store, one)
    run(store, tmp_path)
    gone = [key.split("/")[1] for what, key in store.calls if what == "delete" and key.endswith("/manifest.json")]
    assert gone == [THIRD.id, SECOND.id, FULL.id]


def test_heir_that_is_locked_keeps_what_it_depends_on(tmp_path: Path) -> None:
    store = FakeStore()
    for one in (FULL, SECOND, THIRD, NEWEST):
        put(store, one)

    def lock(what: str, key: str) -> None:
        store.days = 30 if THIRD.id in key else None

    store.before = lock
    done = run(store, tmp_path)
    assert done.removed == ()
    assert {f"{UUID}/{one.id}/manifest.json" for one in (FULL, SECOND, THIRD, NEWEST)} <= store.objects.keys()


def test_what_an_unreadable_point_may_depend_on_stays_whatever_the_clock_said(tmp_path: Path) -> None:
    store = FakeStore()
    for one in (FULL, SECOND):
        put(store, one)
    put(store, THIRD, "damaged")
    put(store, NEWEST)
    for hours, one in enumerate((FULL, SECOND, THIRD, NEWEST)):
        for key, (data, _) in list(store.objects.items()):
            if one.id in key:
                store.objects[key] = (data, datetime.now(tz=timezone.utc) - timedelta(hours=9 - hours))
    assert run(store, tmp_path).removed == ()
    with pytest.raises(NeededError, match="cannot be read"):
        run(store, tmp_path, SECOND.id)


def test_unreadable_point_goes_between_its_heirs_and_others(tmp_path: Path) -> None:
    store = FakeStore()
    put(store, FULL, "damaged")
    put(store, SECOND)
    put(store, NEWEST)
    run(store, tmp_path, FULL.id, SECOND.id)
    gone = [key.split("/")[1] for what, key in store.calls if what == "delete" and key.endswith("/manifest.json")]
    assert gone == [SECOND.id, FULL.id]


def test_manifest_that_is_too_large_hides_no_other(tmp_path: Path) -> None:
    store = FakeStore()
    put(store, FULL, " " * (16 * 1024 * 1024 + 1))
    put(store, NEWEST)
    assert [(line.id, line.is_kept) for line in run(store, tmp_path).lines] == [(FULL.id, True), (NEWEST.id, True)]
