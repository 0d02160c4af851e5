"""Which changes are unlike those before; a verdict needs some history, and never comes from fulls."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import builders
from vbackup.model import Backup, ChangeRecord, Level
from vbackup.repository import change_watch
from vbackup.repository.change_watch import MIN_BACKUPS, MIN_BYTES, REMEMBERED, TIMES, verdict

MIB = 1024 * 1024
SAMPLED = 64 * 4096


def change(data_mib: float = 10, *, zeros_mib: float = 0, percent: int = 40, sampled: int = SAMPLED) -> ChangeRecord:
    return ChangeRecord(int(data_mib * MIB), int(zeros_mib * MIB), sampled, sampled * percent // 100)


def chain(*changes: ChangeRecord, level: Level = Level.INCREMENTAL) -> list[Backup]:
    """A full, and a backup an hour with these changes."""
    made = [builders.backup(0, builders.image(change=change(10_000)))]
    for number, one in enumerate(changes, 1):
        image = builders.image(level=level, base=made[-1].id, change=one)
        made.append(builders.backup(number, image, level=level))
    return made


def text(*changes: ChangeRecord, level: Level = Level.INCREMENTAL) -> str | None:
    *earlier, last = chain(*changes, level=level)
    return verdict(last, "vda", earlier).text


USUAL = [change()] * 8


def test_usual_change_is_not_unusual() -> None:
    assert text(*USUAL, change(30)) is None


def test_jump_of_data_that_does_not_compress_is_told_in_one_sentence() -> None:
    assert text(*USUAL, change(120, percent=100)) == (
        "12 times the usual change (120.0 MiB, usually 10.0 MiB), and it does not compress any more (100 % are left,"
        " usually 40 %)"
    )


def test_fstrim_is_told_from_data() -> None:
    assert (
        text(*USUAL, change(zeros_mib=2048)) == "2.0 GiB became zeros (usually hardly any), as by fstrim or by wiping"
    )


def test_data_that_no_longer_compresses_is_unusual_whatever_its_amount() -> None:
    assert text(*USUAL, change(12, percent=99)) == (
        "the changed data does not compress any more (99 % are left, usually 40 %)"
    )


def test_guest_that_encrypts_everything_has_never_compressed() -> None:
    assert text(*[change(percent=100)] * 8, change(percent=100)) is None


def test_few_backups_are_no_history() -> None:
    assert text(*USUAL[: MIN_BACKUPS - 1], change(1000)) is None
    assert text(*USUAL[:MIN_BACKUPS], change(1000)) is not None


@pytest.mark.parametrize("level", [Level.FULL, Level.DIFFERENTIAL, Level.COPY])
def test_only_incrementals_are_compared(level: Level) -> None:
    assert text(*USUAL, change(1000), level=level) is None


def test_small_amounts_are_never_unusual() -> None:
    tiny = [change(0.1)] * 8
    assert text(*tiny, change(MIN_BYTES / MIB - 0.1, percent=100)) is None
    assert text(*tiny, change(MIN_BYTES / MIB)) is not None


def test_what_has_happened_before_is_not_unusual() -> None:
    assert text(*USUAL, change(200), *USUAL, change(200)) is None
    assert text(*USUAL, change(200), *USUAL, change(201)) is not None


def test_what_happened_very_long_ago_is_unusual_again() -> None:
    assert text(change(200), *[change()] * REMEMBERED, change(200)) is not None


def test_longer_time_excuses_proportionally_more() -> None:
    *earlier, last = chain(*USUAL, change(100))
    late = replace(last, time=last.time + timedelta(hours=4))
    assert verdict(last, "vda", earlier).data is not None
    assert verdict(late, "vda", earlier).data is None


def test_clock_that_stepped_back_excuses_nothing() -> None:
    *earlier, last = chain(*USUAL, change(100))
    assert verdict(replace(last, time=last.time - timedelta(days=9)), "vda", earlier).data is not None


def test_backups_that_recorded_no_change_do_not_count() -> None:
    *earlier, last = chain(*USUAL, change(1000))
    old = [replace(one, disks=tuple(replace(image, change=None) for image in one.disks)) for one in earlier]
    assert verdict(last, "vda", old).text is None
    assert verdict(replace(last, disks=old[1].disks), "vda", earlier).text is None


def test_too_small_a_sample_says_nothing_of_compression() -> None:
    assert text(*USUAL, change(12, percent=100, sampled=4096)) is None


def test_verdict_and_thresholds_are_kept_and_told() -> None:
    *earlier, last = chain(*USUAL, change(120))
    done = change_watch.watched(last, earlier)
    assert done.disks[0].change is not None
    assert done.disks[0].change.unusual == "12 times the usual change (120.0 MiB, usually 10.0 MiB)"
    [sentence] = change_watch.warnings(done)
    assert sentence.startswith("Disk vda: 12 times the usual change")
    assert f"from {TIMES} times the median" in sentence
    assert change_watch.warnings(change_watch.watched(earlier[3], earlier)) == []


@given(
    past=st.lists(st.integers(0, 10_000), min_size=MIN_BACKUPS, max_size=40),
    now=st.integers(0, 100_000),
)
def test_amount_is_unusual_exactly_beyond_every_threshold(past: list[int], now: int) -> None:
    *earlier, last = chain(*map(change, past), change(now))
    median = sorted(past[-change_watch.BACKUPS :])[len(past[-change_watch.BACKUPS :]) // 2]
    expected = now >= TIMES * median and now > max(past) and now * MIB >= MIN_BYTES
    assert (verdict(last, "vda", earlier).data is not None) == expected
