"""A tracker's checkpoints are a history from which a start is chosen, and none of them depends on another."""

from __future__ import annotations

from tests.unit.builders import TRACKER, UUID, session_checkpoint
from vbackup.engine import session_history
from vbackup.model import Level
from vbackup.sessions.trackers import Tracker


def test_checkpoints_are_starts_with_their_bitmaps() -> None:
    tracker = Tracker(TRACKER, "web", UUID)
    full, later = session_checkpoint(1, "vda", "vdb"), session_checkpoint(2, "vda", level=Level.INCREMENTAL)
    history = session_history.of(tracker.with_committed(full).with_committed(later))
    newest, of_vdb = history.newest("vda"), history.newest("vdb")
    assert newest is not None
    assert of_vdb is not None
    assert (newest.id, of_vdb.id) == (later.id, full.id)
    (start,) = history.starts("vda", of_full=True, on_disk=())
    assert (start.backup.id, start.bitmap) == (full.id, full.disks["vda"].bitmap)
    assert [link.backup.id for link in history.links(later.id, "vda")] == [later.id]


def test_tracker_without_checkpoints_has_none() -> None:
    assert session_history.of(Tracker(TRACKER, "web", UUID)).newest("vda") is None
