"""Jobs are slowed down while the guest waits, and what others set counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_qemu import MIB, FakeDisk, FakeQemu, qcow2_header
from tests.unit.builders import Recorder
from vbackup.engine.latency_throttle import LatencyThrottle
from vbackup.errors import MalformedError
from vbackup.qemu import jobs

SIZE_BYTES = 1024 * MIB
LIMIT_MS = 20.0


class World:
    """A guest that waits as long as the test says, and a clock that goes on by one second a tick."""

    def __init__(self, qemu: FakeQemu, recorder: Recorder, *, ceiling: int | None = None) -> None:
        self.qemu, self.now = qemu, 100.0
        self.throttle = LatencyThrottle(
            qemu, limit_ms=LIMIT_MS, ceiling_bytes_s=ceiling, reporter=recorder, clock=lambda: self.now
        )

    def second(self, latency_ms: float = 0.0) -> int | None:
        """One second passes; returns the speed that the job then has."""
        self.now += 1.0
        io = self.qemu.guest_io["virtio-disk0"]
        io["wr_operations"] += 10
        io["wr_total_time_ns"] += int(10 * latency_ms * 1e6)
        self.throttle.on_tick(jobs.query(self.qemu))
        return self.speed

    @property
    def speed(self) -> int | None:
        return jobs.speeds(self.qemu)["j"]


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[FakeQemu]:
    with FakeQemu([FakeDisk("virtio-disk0", SIZE_BYTES)]) as made:
        path = tmp_path / "vda.qcow2"
        path.write_bytes(qcow2_header(SIZE_BYTES))
        file = {"driver": "file", "filename": str(path)}
        made.execute("blockdev-add", {"driver": "qcow2", "node-name": "target", "file": file})
        yield made


def start(qemu: FakeQemu, speed: int) -> None:
    data = {"job-id": "j", "device": qemu.top("virtio-disk0"), "target": "target", "sync": "full", "speed": speed}
    qemu.execute("transaction", {"actions": [{"type": "blockdev-backup", "data": data}]})


def test_guest_that_waits_makes_the_job_slower_and_one_that_does_not_faster_again(
    qemu: FakeQemu, recorder: Recorder
) -> None:
    start(qemu, 32 * MIB)
    world = World(qemu, recorder, ceiling=32 * MIB)
    assert [world.second(ms) for ms in (50, 5, 50, 50, 5, 5)] == [
        32 * MIB,  # nothing to compare with yet
        32 * MIB,
        16 * MIB,
        8 * MIB,
        9 * MIB,
        10 * MIB,
    ]
    assert [one for one in recorder.steps if "more than 20 ms: copying more slowly" in one] == recorder.steps
    assert len(recorder.steps) == 1


def test_less_than_a_second_is_not_measured(qemu: FakeQemu, recorder: Recorder) -> None:
    start(qemu, MIB)
    world = World(qemu, recorder, ceiling=MIB)
    world.second()
    sent = len(qemu.sent)
    world.now += 0.9
    world.throttle.on_tick(jobs.query(qemu))
    assert len(qemu.sent) == sent + 1  # the query of this test


def test_calm_guest_costs_no_change(qemu: FakeQemu, recorder: Recorder) -> None:
    start(qemu, 4 * MIB)
    world = World(qemu, recorder, ceiling=4 * MIB)
    for _ in range(5):
        world.second(1)
    assert "block-job-set-speed" not in [one.command for one in qemu.sent]
    assert recorder.steps == []


@pytest.mark.parametrize(("speed", "cut"), [(2 * MIB, MIB), (100 * MIB, 2 * MIB)])
def test_speed_that_somebody_else_sets_is_the_ceiling(qemu: FakeQemu, recorder: Recorder, speed: int, cut: int) -> None:
    start(qemu, 8 * MIB)
    world = World(qemu, recorder, ceiling=8 * MIB)
    world.second(1)
    world.second(50)
    assert world.speed == 4 * MIB
    jobs.set_speed(qemu, "j", speed)
    assert world.second(50) == cut
    highest = max(world.second(1) or 0 for _ in range(8))
    assert highest <= speed
    assert (highest > 8 * MIB) == (speed > 8 * MIB)


def test_job_that_has_ended_is_let_go(qemu: FakeQemu, recorder: Recorder) -> None:
    start(qemu, 8 * MIB)
    world = World(qemu, recorder, ceiling=8 * MIB)
    world.second(1)
    known = jobs.query(qemu)
    qemu.execute("job-cancel", {"id": "j"})
    while jobs.query(qemu):
        pass
    world.now += 1
    qemu.guest_io["virtio-disk0"]["wr_operations"] += 10
    qemu.guest_io["virtio-disk0"]["wr_total_time_ns"] += 10**10
    world.throttle.on_tick(known)
    world.now += 1
    world.throttle.on_tick({})
    assert "block-job-set-speed" not in [one.command for one in qemu.sent]


def test_counters_that_are_none_are_an_error(qemu: FakeQemu, recorder: Recorder) -> None:
    start(qemu, MIB)
    del qemu.guest_io["virtio-disk0"]["rd_operations"]
    with pytest.raises(MalformedError, match="rd_operations"):
        World(qemu, recorder).second()
