"""A rate is shared out fairly, used up, and never exceeded, whoever comes and goes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vbackup.engine.total_rate import Share, TotalRate, fair_parts
from vbackup.errors import QmpError
from vbackup.qemu.jobs import Job, JobStatus


class Qemu:
    """Takes speeds."""

    def __init__(self) -> None:
        self.speeds: dict[str, int] = {}
        self.gone: set[str] = set()

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        if command == "query-jobs":
            return []
        assert command == "block-job-set-speed"
        assert arguments is not None
        if arguments["device"] in self.gone:
            raise QmpError(command, "DeviceNotActive", "Block job not found")
        assert arguments["speed"] > 0, "that is no limit at all"
        self.speeds[arguments["device"]] = arguments["speed"]
        return None

    def next_event(self, timeout_s: float) -> None:
        return None


def job(name: str, status: JobStatus = JobStatus.RUNNING) -> Job:
    return Job(name, "backup", status, 0, 0, None)


def test_each_domain_gets_the_same_and_each_of_its_disks_the_same_of_that() -> None:
    rate, qemu = TotalRate(1000, at_once=2), Qemu()
    with rate.share() as one, rate.share() as two:
        assert one.first_bytes_s(1) == 1000
        assert two.first_bytes_s(2) == 1  # nothing has been given back yet
        one.adjust(qemu, [job("a")])
        two.adjust(qemu, [job("b"), job("c")])
        assert qemu.speeds == {"a": 500, "b": 250, "c": 250}


def test_disk_that_is_done_leaves_its_part_to_the_others_of_its_domain() -> None:
    rate, qemu = TotalRate(1000, at_once=2), Qemu()
    with rate.share() as one:
        one.first_bytes_s(2)
        one.adjust(qemu, [job("a"), job("b", JobStatus.PENDING)])
        assert qemu.speeds == {"a": 1000}


def test_domain_that_is_done_leaves_its_part_to_the_others() -> None:
    rate, qemu = TotalRate(1000, at_once=3), Qemu()
    with rate.share() as one:
        with rate.share() as two, rate.share() as three:
            for _ in range(3):
                for share, name in ((one, "a"), (two, "b"), (three, "c")):
                    share.adjust(qemu, [job(name)])
            assert qemu.speeds == {"a": 333, "b": 333, "c": 334}
            two.adjust(qemu, [job("b", JobStatus.CONCLUDED)])
            one.adjust(qemu, [job("a")])
            assert qemu.speeds["a"] == 500
        one.adjust(qemu, [job("a")])
        assert qemu.speeds["a"] == 1000


def test_what_a_disk_s_own_limit_forbids_goes_to_the_others() -> None:
    rate, qemu = TotalRate(1000, at_once=2), Qemu()
    with rate.share(job_limit_bytes_s=300) as one, rate.share(job_limit_bytes_s=300) as two:
        for _ in range(2):
            one.adjust(qemu, [job("a")])
            two.adjust(qemu, [job(name) for name in "bcd"])
    assert qemu.speeds == {"a": 300, "b": 233, "c": 233, "d": 233}


def test_speed_is_sent_only_when_it_changes() -> None:
    rate, qemu = TotalRate(1000, at_once=1), Qemu()
    with rate.share() as one:
        one.adjust(qemu, [job("a")])
        qemu.speeds["a"] = 7  # by the administrator
        one.adjust(qemu, [job("a")])
        assert qemu.speeds["a"] == 7


def test_job_that_has_just_ended_is_no_failure() -> None:
    rate, qemu = TotalRate(1000, at_once=1), Qemu()
    qemu.gone.add("a")
    with rate.share() as one:
        one.adjust(qemu, [job("a")])


def test_slowest_is_what_is_left_when_all_are_at_work() -> None:
    assert Share(TotalRate(1000, at_once=4), 10**9).slowest_bytes_s(5) == 50
    assert Share(TotalRate(1000, at_once=4), 20).slowest_bytes_s(5) == 20
    assert Share(TotalRate(1, at_once=4), 20).slowest_bytes_s(5) == 1


@given(st.integers(1, 10**6), st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
def test_parts_are_fair(total: int, wants: list[int]) -> None:
    rate = TotalRate(total, at_once=8)
    wanted = {Share(rate, 1): want for want in wants}
    parts = fair_parts(total, wanted)
    assert sum(parts.values()) <= total
    assert all(parts[share] <= want for share, want in wanted.items())
    unsatisfied = [parts[share] for share, want in wanted.items() if parts[share] < want]
    if unsatisfied:
        assert total - sum(parts.values()) < len(wants)  # used up, but for what does not divide
        assert min(unsatisfied) + 1 >= max(parts.values())


@given(st.data())
def test_sum_is_never_more_than_the_rate(data: st.DataObject) -> None:
    """Whoever looks at his jobs in whatever order; a job that has to wait for its part has 1 byte/s."""
    total = data.draw(st.integers(100, 10**6))
    limit = data.draw(st.none() | st.integers(1, 10**6))
    rate, qemu = TotalRate(total, at_once=4), Qemu()
    with ExitStack() as stack:
        shares = [stack.enter_context(rate.share(job_limit_bytes_s=limit)) for _ in range(4)]
        left = [data.draw(st.integers(1, 3)) for _ in shares]
        for _ in range(data.draw(st.integers(1, 30))):
            who = data.draw(st.integers(0, 3))
            if data.draw(st.booleans()) and left[who]:
                left[who] -= 1
                qemu.speeds.pop(f"{who}-{left[who]}", None)
            shares[who].adjust(qemu, [job(f"{who}-{number}") for number in range(left[who])])
            assert sum(qemu.speeds.values()) <= total + len(qemu.speeds)
