"""``vbackup tracker``: what is listed, and what forgetting one says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit import builders
from tests.unit.builders import TRACKER, UUID, session_checkpoint
from vbackup.operations import tracker
from vbackup.sessions.store import Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tracker:
    monkeypatch.setenv("VBACKUP_SESSIONS", str(tmp_path))
    made = Tracker(TRACKER, "web", UUID).with_committed(session_checkpoint(1, "vda"))
    with Store(tmp_path).locked(UUID, stop=Stop()) as domain:
        domain.write_tracker(made)
    return made


def test_list_has_the_base_of_each(command: Command, known: Tracker) -> None:
    document = command("tracker", "list", "--json").document
    base = known.checkpoints[0]
    assert document["trackers"] == [
        {
            "name": TRACKER,
            "domain": {"name": "web", "uuid": UUID},
            "base": base.id,
            "base_time": "2026-11-23T12:00:01.000000Z",
            "checkpoints": [base.id],
        }
    ]
    assert base.id in command("tracker", "list", "web").stdout
    assert command("tracker", "list", "other").stdout == "No trackers.\n"


def test_forgetting_says_what_comes_next(command: Command, known: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[object, ...]] = []

    def forget(*arguments: object, **_others: object) -> Tracker:
        got.append(arguments)
        return known

    builders.use_libvirt(monkeypatch, None)
    monkeypatch.setattr(tracker, "forget", forget)
    done = command("tracker", "forget", "web", "--tracker", TRACKER)
    assert got == [("web", TRACKER)]
    assert done.stdout == f"Tracker {TRACKER} of domain web is forgotten; its next session is full.\n"
    document = command("tracker", "forget", "web", "--tracker", TRACKER, "--json").document
    assert document["forgotten"] == TRACKER
    assert [one["name"] for one in document["trackers"]] == [TRACKER]  # it is only said to be forgotten here


def test_damaged_tracker_is_a_warning_and_the_others_are_listed(
    command: Command, known: Tracker, tmp_path: Path
) -> None:
    (tmp_path / UUID / "tracker-other.json").write_text("{")
    for arguments in (("tracker", "list"), ("checkpoint", "list", "web")):
        done = command(*arguments)
        assert TRACKER in done.stdout
        assert f"vbackup tracker forget {UUID} --tracker other" in done.stderr
        assert "other" not in command(*arguments, "--json").stdout
    assert not command("checkpoint", "list", "web", "--tracker", TRACKER).stderr
