"""How fast a backup may copy follows from how long the guest waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from vbackup.engine import latency
from vbackup.engine.latency import FIRST_BYTES_S, FLOOR_BYTES_S, MIB, Counters, Speed, Window

LIMIT_MS = 20.0


def run(
    windows: int, latency_at: Callable[[int | None], float | None], *, begun: Speed, ceiling: int | None, disk: int
) -> list[int | None]:
    """The speeds of this number of windows, where latency follows from the speed, and a job copies what it may."""
    speeds = []
    state = begun
    for _ in range(windows):
        copied = disk if state.speed_bytes_s is None else min(state.speed_bytes_s, disk)
        window = Window(latency_at(state.speed_bytes_s), copied)
        state = latency.decide(state, window, limit_ms=LIMIT_MS, ceiling_bytes_s=ceiling)
        speeds.append(state.speed_bytes_s)
    return speeds


def test_without_requests_nothing_is_slowed_down() -> None:
    assert run(5, lambda _: None, begun=Speed(), ceiling=None, disk=200 * MIB) == [None] * 5


def test_first_cut_begins_at_what_was_copied() -> None:
    assert run(1, lambda _: 50, begun=Speed(), ceiling=None, disk=100 * MIB) == [50 * MIB]


def test_passing_over_emptiness_is_not_taken_for_copying() -> None:
    assert run(1, lambda _: 50, begun=Speed(), ceiling=None, disk=5000 * MIB) == [FIRST_BYTES_S // 2]


def test_each_window_above_the_limit_halves_down_to_the_floor() -> None:
    speeds = run(9, lambda _: 50, begun=Speed(), ceiling=None, disk=64 * MIB)
    assert speeds == [32 * MIB, 16 * MIB, 8 * MIB, 4 * MIB, 2 * MIB, *[FLOOR_BYTES_S] * 4]


def test_calm_guest_gets_the_speed_back_in_steps() -> None:
    begun = Speed(FLOOR_BYTES_S, peak_bytes_s=64 * MIB)
    speeds = run(40, lambda _: 1, begun=begun, ceiling=None, disk=64 * MIB)
    assert speeds[:3] == [3 * MIB, 5 * MIB, 7 * MIB]
    assert speeds[31] is not None
    assert speeds[31] >= 64 * MIB


def test_just_below_the_limit_nothing_changes() -> None:
    begun = Speed(10 * MIB, peak_bytes_s=64 * MIB)
    assert run(5, lambda _: LIMIT_MS * 0.9, begun=begun, ceiling=None, disk=64 * MIB) == [10 * MIB] * 5


def test_what_is_not_used_is_not_raised() -> None:
    """The disk itself gives no more."""
    begun = Speed(100 * MIB, peak_bytes_s=100 * MIB)
    assert run(5, lambda _: 1, begun=begun, ceiling=None, disk=20 * MIB) == [100 * MIB] * 5


def test_users_speed_is_never_exceeded() -> None:
    speeds = run(50, lambda _: 1, begun=Speed(8 * MIB, 64 * MIB), ceiling=10 * MIB, disk=64 * MIB)
    assert speeds[-1] == 10 * MIB
    assert max(one for one in speeds if one is not None) == 10 * MIB


def test_users_speed_below_the_floor_counts() -> None:
    assert run(3, lambda _: 99, begun=Speed(1000), ceiling=1000, disk=MIB) == [1000] * 3


def test_ceiling_that_was_lowered_counts_at_once() -> None:
    window = Window(1.0, 20 * MIB)
    assert latency.decide(Speed(20 * MIB), window, limit_ms=LIMIT_MS, ceiling_bytes_s=5 * MIB).speed_bytes_s == 5 * MIB


def test_storage_that_cannot_do_both_settles_below_the_limit() -> None:
    """Latency grows with the speed and crosses the limit at 40 MiB/s: it swings around that, never far above."""
    speeds = run(
        200,
        lambda speed: 100.0 if speed is None else speed / MIB / 2,
        begun=Speed(),
        ceiling=None,
        disk=200 * MIB,
    )
    settled = [one for one in speeds[50:] if one is not None]
    assert len(settled) == 150
    assert all(16 * MIB <= one <= 48 * MIB for one in settled)
    assert sum(settled) / len(settled) >= 24 * MIB


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.floats(0, 1e5)), st.integers(0, 2**40)),
        max_size=50,
    ),
    st.one_of(st.none(), st.integers(1, 2**40)),
)
def test_speed_is_always_between_floor_and_ceiling(trace: list[tuple[float | None, int]], ceiling: int | None) -> None:
    state = Speed(ceiling)
    for latency_ms, copied in trace:
        state = latency.decide(state, Window(latency_ms, copied), limit_ms=LIMIT_MS, ceiling_bytes_s=ceiling)
        if state.speed_bytes_s is not None:
            assert state.speed_bytes_s >= min(FLOOR_BYTES_S, ceiling or FLOOR_BYTES_S)
            assert ceiling is None or state.speed_bytes_s <= ceiling


def test_mean_is_that_of_the_slowest_disk() -> None:
    before = {"vda": Counters(100, 10_000_000), "vdb": Counters(0, 0)}
    after = {"vda": Counters(110, 20_000_000), "vdb": Counters(10, 300_000_000)}
    assert latency.latency_ms(before, after) == 30.0


def test_one_slow_request_weighs_less_but_a_very_slow_one_counts() -> None:
    before = {"vda": Counters(100, 0)}
    assert latency.latency_ms(before, {"vda": Counters(101, 40_000_000)}) == 10.0
    assert latency.latency_ms(before, {"vda": Counters(101, 2_000_000_000)}) == 500.0


def test_no_request_is_no_mean() -> None:
    before = {"vda": Counters(100, 0)}
    assert latency.latency_ms(before, before) is None
    assert latency.latency_ms({}, {"vda": Counters(103, 10**9)}) is None


def test_disk_that_was_opened_anew_does_not_count() -> None:
    before = {"vda": Counters(100, 10**9)}
    assert latency.latency_ms(before, {"vda": Counters(50, 10**6)}) is None
    assert latency.latency_ms(before, {"vda": replace(before["vda"], operations=110, time_ns=5)}) is None
