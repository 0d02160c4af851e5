"""The log of events as vbackup reads it: every complete event is returned, whatever else the log contains."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.builders import UUID
from vbackup.hooks import events
from vbackup.hooks.events import Event, Operation

BOOT = "b681ee5a-5b6c-4563-8c6c-ecfc118d18f1"


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(events, "DIRECTORY", tmp_path)
    return tmp_path / f"{UUID}.log"


def members(time: float, operation: str = "started", **changed: Any) -> dict[str, Any]:
    """As the hook script writes them."""
    made = {"time": time, "operation": operation, "sub": "begin", "extra": "-", "name": "web", "boot_id": BOOT}
    return {**made, "refused": False, **changed}


def line(time: float, operation: str = "started", **changed: Any) -> bytes:
    return json.dumps(members(time, operation, **changed)).encode() + b"\n"


def test_without_a_log_there_are_no_events() -> None:
    assert events.events(UUID) == ()


def test_log_that_cannot_be_read_is_no_failure(log: Path) -> None:
    log.mkdir()
    assert events.events(UUID) == ()


def test_event_is_typed(log: Path) -> None:
    log.write_bytes(line(1764021600.25, "prepare", refused=True, future=[1]))
    moment = datetime(2025, 11, 24, 22, 0, 0, 250000, timezone.utc)
    assert events.events(UUID) == (Event(moment, Operation.PREPARE, "begin", "-", "web", BOOT, refused=True),)


def test_oldest_event_comes_first(log: Path) -> None:
    log.write_bytes(line(100, "started") + line(200, "stopped") + line(300, "prepare"))
    expected = [Operation.STARTED, Operation.STOPPED, Operation.PREPARE]
    assert [event.operation for event in events.events(UUID)] == expected


GARBAGE = [
    line(2)[:30],
    b"\xff\xfe",
    b"null",
    b"[]",
    b"[" * 20000,
    line(2, "teleport"),
    line(-1),
    line(1e300),
    line(float("nan")),
    json.dumps({**members(2), "time": "now"}).encode(),
    line(2, refused="no"),
    line(2, name=None),
    json.dumps({**members(2), "operation": ["started"]}).encode(),
    b"{}",
    b"",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: ascii(garbage[:20]))
def test_garbage_is_passed_over(log: Path, garbage: bytes) -> None:
    log.write_bytes(garbage + b"\n" + line(3, "stopped") + garbage + b"\n" + line(4, "release") + garbage)
    assert [event.operation for event in events.events(UUID)] == [Operation.STOPPED, Operation.RELEASE]


@given(before=st.binary(max_size=200), after=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_around_leave_the_event(log: Path, before: bytes, after: bytes) -> None:
    log.write_bytes(before + b"\n" + line(3, "stopped") + after)
    assert Operation.STOPPED in [event.operation for event in events.events(UUID)]


def test_only_the_end_of_a_huge_log_is_read(log: Path) -> None:
    log.write_bytes(line(1) * (events.LIMIT_BYTES // len(line(1)) * 4) + line(2, "stopped"))
    found = events.events(UUID)
    assert found[-1].operation is Operation.STOPPED
    assert len(found) <= events.LIMIT_BYTES // len(line(1)) + 1
