"""When a job counts as having looked at everything; what it finds is in tests/end_to_end/test_huge_disks.py."""

from __future__ import annotations

import time

import pytest

from vbackup.engine import allocation_jobs
from vbackup.engine.allocation_jobs import MARGIN_BYTES
from vbackup.qemu.jobs import Job, JobStatus

GIB = 1 << 30


def job(done_bytes: int, total_bytes: int) -> Job:
    return Job("asks", "backup", JobStatus.RUNNING, done_bytes, total_bytes, None)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made.monotonic)
    return made


@pytest.mark.parametrize(
    ("done_bytes", "left_bytes", "steady_s"),
    [(65536, 2 * GIB + MARGIN_BYTES, 0.1), (65536, 100 * GIB, 2.0), (0, GIB, 600.0)],
    ids=["as much as its file has", "more than its file has", "hangs"],
)
def test_total_that_stays_the_same_is_the_end(clock: Clock, done_bytes: int, left_bytes: int, steady_s: float) -> None:
    has_looked = allocation_jobs._HasLooked(GIB)
    for total_bytes in (300 * GIB, 200 * GIB, left_bytes):
        clock.now += 1000
        assert not has_looked(job(done_bytes, total_bytes)), "it is still shrinking"
    clock.now += steady_s - 0.05
    assert not has_looked(job(done_bytes, left_bytes))
    clock.now += 0.1
    assert has_looked(job(done_bytes, left_bytes))
