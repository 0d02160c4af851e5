"""vbackup's handle on the watchdog process, here with a process that does what the test wants."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.builders import UUID
from vbackup.domain import freeze_turn, watchdog
from vbackup.domain.freeze_turn import FreezeTurn
from vbackup.domain.watchdog import Watchdog

LONG_S = 60.0
#: Gets ready, and ends when somebody opens the FIFO: until then it is thawing.
PROGRAM = """
import pathlib
input()
print("ready", flush=True)
pathlib.Path({fifo!r}).read_bytes()
"""


@pytest.fixture
def fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(fifo=os.fspath(path)))
    monkeypatch.setattr(watchdog, "PROGRAM", program)
    monkeypatch.setattr(freeze_turn, "directory", lambda: tmp_path / "run" / "freeze")
    return path


def test_turn_lasts_until_a_process_that_may_be_thawing_has_ended(fifo: Path) -> None:
    """It would thaw what the next vbackup has frozen."""
    guard, other = Watchdog(uri="test:///", uuid=UUID, limit_s=1, is_blind=False), FreezeTurn(UUID)
    assert guard.reason_not_to_freeze() is None
    guard.freezing()
    guard.thawed()
    assert not other.may_be_left_frozen()
    assert not other.take(0.1)
    guard.let_go()
    assert not other.take(0.1)
    fifo.write_bytes(b"")
    assert other.take(LONG_S)
    guard.close()
    other.close()


def test_turn_ends_at_once_if_nothing_was_frozen(fifo: Path) -> None:
    guard, other = Watchdog(uri="test:///", uuid=UUID, limit_s=1, is_blind=False), FreezeTurn(UUID)
    assert guard.reason_not_to_freeze() is None
    guard.let_go()
    assert other.take(0)
    fifo.write_bytes(b"")
    guard.close()
    other.close()
