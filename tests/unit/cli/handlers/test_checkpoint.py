"""``vbackup checkpoint``: what is listed, and what deleting leaves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit import builders
from tests.unit.builders import TRACKER, UUID, session_checkpoint
from vbackup.model import Level
from vbackup.operations import checkpoint
from vbackup.sessions.store import Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command

FULL, LATER = session_checkpoint(1, "vda", "vdb"), session_checkpoint(2, "vda", level=Level.INCREMENTAL)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tracker:
    monkeypatch.setenv("VBACKUP_SESSIONS", str(tmp_path))
    made = Tracker(TRACKER, "web", UUID).with_committed(FULL).with_committed(LATER)
    with Store(tmp_path).locked(UUID, stop=Stop()) as domain:
        domain.write_tracker(made)
    return made


def test_list_says_which_one_is_the_base(command: Command, known: Tracker) -> None:
    listed = command("checkpoint", "list", "web", "--json").document["checkpoints"]
    assert [(one["id"], one["is_base"]) for one in listed] == [(FULL.id, False), (LATER.id, True)]
    assert [disk["dev"] for disk in listed[0]["disks"]] == ["vda", "vdb"]
    lines = command("checkpoint", "list", UUID, "--tracker", TRACKER).stdout.splitlines()
    assert lines[0].split() == ["CHECKPOINT", "TRACKER", "TIME", "LEVEL", "DISKS"]
    assert lines[1].split()[0] == FULL.id
    assert command("checkpoint", "list", "other").stdout == "No checkpoints.\n"


def test_unknown_tracker_is_status_six(command: Command, known: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handle:
        name, uuid = "web", UUID

    class OneHost:
        def domain(self, _name: str) -> Handle:
            return Handle()

    builders.use_libvirt(monkeypatch, OneHost())
    error = command("checkpoint", "list", "web", "--tracker", "other", "--json", status=6).document
    assert error["evidence"] == {"tracker": "other", "known": [TRACKER]}


def test_deleting_says_where_the_next_session_starts(
    command: Command, known: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[tuple[object, ...]] = []

    def delete(*arguments: object, **_others: object) -> Tracker:
        got.append(arguments)
        return known.without([LATER.id])

    builders.use_libvirt(monkeypatch, None)
    monkeypatch.setattr(checkpoint, "delete", delete)
    arguments = ("checkpoint", "delete", "web", "--tracker", TRACKER, "--checkpoint", LATER.id)
    done = command(*arguments)
    assert got == [("web", TRACKER, [LATER.id])]
    assert done.stdout == f"Deleted {LATER.id} of tracker {TRACKER}; the next session starts from {FULL.id}.\n"
    assert [one["id"] for one in command(*arguments, "--json").document["checkpoints"]] == [FULL.id]
