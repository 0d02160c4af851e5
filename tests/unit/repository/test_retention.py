"""The rules keep what borg and Proxmox Backup Server would, on every day of the year, and say why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.builders import NOON, REPOSITORY, TOKEN, backup, copy, image, incremental
from vbackup import names
from vbackup.layers import ChainState
from vbackup.model import EXCLUDED, Backup, HostIdentity, LeftOut, Level
from vbackup.repository import retention
from vbackup.repository.history import History, RestoredDisk
from vbackup.repository.retention import BEYOND, IN_FUTURE, NEWEST, Duration, Rules, Verdict

UTC = timezone.utc
BERLIN = ZoneInfo("Europe/Berlin")  # back on 2026-10-25 at 03:00, forward on 2026-03-29 at 02:00
ZONES = (UTC, BERLIN, ZoneInfo("Australia/Lord_Howe"), ZoneInfo("America/Sao_Paulo"), ZoneInfo("Asia/Kolkata"))
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def at(*times: datetime) -> list[Backup]:
    """A full at each of these times, committed in this order; equal seconds get ids of their own, as in real life."""
    return [
        backup(number, id=names.backup_id(time, Level.FULL) + f".{number}", time=time)
        for number, time in enumerate(times, start=1)
    ]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def decide(
    backups: Sequence[Backup], rules: Rules, *, now: datetime = LATER, zone: tzinfo = UTC, **more: object
) -> list[Verdict]:
    return retention.decide(backups, rules, now=now, zone=zone, **{"held": {}, **more})  # type: ignore[arg-type]


def kept(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The times in UTC of what is kept, with the reasons; only "newest" goes without saying."""
    return {
        f"{one.backup.time:%Y-%m-%d %H:%M}": ", ".join(why for why in one.reasons if why != NEWEST)
        for one in verdicts
        if one.is_kept
    }


def nightly(begin: str, days: int) -> list[Backup]:
    return at(*(utc(begin) + timedelta(days=day) for day in range(days)))


# the rules one by one


def test_last_keeps_the_newest_even_of_one_second() -> None:
    backups = at(*[utc("2026-11-01 12:00")] * 3)
    verdicts = decide(backups, Rules(last=2))
    assert [one.is_kept for one in verdicts] == [False, True, True]
    assert [one.reasons for one in verdicts] == [(BEYOND,), ("last #2",), ("last #1", NEWEST)]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (Rules(hourly=2), {"2026-11-02 11:50": "hourly #1", "2026-11-02 10:40": "hourly #2"}),
        (Rules(daily=2), {"2026-11-02 11:50": "daily #1", "2026-11-01 23:00": "daily #2"}),
        (Rules(weekly=2), {"2026-11-02 11:50": "weekly #1", "2026-11-01 23:00": "weekly #2"}),
        (Rules(monthly=2), {"2026-11-02 11:50": "monthly #1", "2026-10-31 08:00": "monthly #2"}),
        (Rules(yearly=2), {"2026-11-02 11:50": "yearly #1", "2025-12-31 08:00": "yearly #2"}),
    ],
    ids=["hourly", "daily", "weekly", "monthly", "yearly"],
)
def test_rule_keeps_the_newest_of_each_period(rules: Rules, expected: dict[str, str]) -> None:
    """2 November 2026 is a Monday."""
    texts = [
        "2025-12-30",
        "08:00",
        "2025-12-31",
        "08:00",
        "2026-10-30",
        "08:00",
        "2026-10-31",
        "08:00",
        "2026-11-01",
        "12:00",
        "2026-11-01",
        "23:00",
        "2026-11-02",
        "10:20",
        "2026-11-02",
        "10:40",
        "2026-11-02",
        "11:10",
        "2026-11-02",
        "11:50",
    ]
    backups = at(*(utc(f"{day} {time}") for day, time in zip(texts[::2], texts[1::2])))
    assert kept(decide(backups, rules)) == expected


def test_what_a_rule_has_kept_does_not_count_for_the_next() -> None:
    """The documented example of borg: 7 end of day, 4 additional end of week, 6 end of month."""
    found = kept(decide(nightly("2026-01-01 22:00", 365), Rules(daily=7, weekly=4, monthly=6)))
    days = {f"2026-12-{day} 22:00": f"daily #{32 - day}" for day in range(25, 32)}
    # 20, 13 and 6 December and 29 November are Sundays; the week of the 27th has been kept day by day.
    weeks = {"2026-12-20 22:00": 1, "2026-12-13 22:00": 2, "2026-12-06 22:00": 3, "2026-11-29 22:00": 4}
    months = ["11-30", "10-31", "09-30", "08-31", "07-31", "06-30"]
    assert found == {
        **{f"2026-{day} 22:00": f"monthly #{number}" for number, day in enumerate(months, start=1)},
        **{day: f"weekly #{number}" for day, number in weeks.items()},
        **days,
    }


def test_oldest_is_kept_until_the_rule_is_satisfied() -> None:
    rules = Rules(daily=2, yearly=2)
    young = kept(decide(nightly("2026-01-10 22:00", 5), rules))
    assert young == {
        "2026-01-10 22:00": "oldest: yearly rule not satisfied (0 of 2)",
        "2026-01-13 22:00": "daily #2",
        "2026-01-14 22:00": "daily #1",
    }
    grown = kept(decide(nightly("2024-01-10 22:00", 3 * 366), rules))
    assert "2024-01-10 22:00" not in grown
    assert [why for why in grown.values() if "year" in why] == ["yearly #2", "yearly #1"]


def test_iso_week_does_not_end_with_the_year() -> None:
    """1 to 3 January 2027 are in week 53 of 2026, and 29 to 31 December 2025 in week 1 of 2026."""
    found = kept(decide(nightly("2025-12-20 22:00", 380), Rules(weekly=60)))
    weeks = sorted(day for day, why in found.items() if why.startswith("weekly"))
    assert "2027-01-03 22:00" in weeks
    assert not {"2025-12-31 22:00", "2026-12-31 22:00"} & set(weeks)
    assert len(weeks) == 55


def test_week_of_two_months_has_the_newest_of_both() -> None:
    """As in borg; Proxmox would keep none of October, of which the week of 1 November has a backup."""
    found = kept(decide(nightly("2026-10-26 22:00", 7), Rules(weekly=1, monthly=2)))
    assert found == {"2026-11-01 22:00": "weekly #1", "2026-10-31 22:00": "monthly #1", "2026-10-26 22:00": OLDEST}


OLDEST = "oldest: monthly rule not satisfied (1 of 2)"


def test_hour_that_comes_twice_counts_twice() -> None:
    """02:30 CEST and 02:30 CET, of a day that has 25 hours."""
    backups = at(*(utc("2026-10-24 22:30") + timedelta(hours=hour) for hour in range(25)))
    verdicts = decide(backups, Rules(hourly=25), zone=BERLIN)
    assert all(one.is_kept for one in verdicts)
    assert {one.reasons[0] for one in verdicts} == {f"hourly #{number}" for number in range(1, 26)}
    assert sum(one.is_kept for one in decide(backups, Rules(daily=3), zone=BERLIN)) == 2  # the day, and the oldest


def test_days_begin_at_local_midnight() -> None:
    backups = at(utc("2026-03-28 22:30"), utc("2026-03-28 23:30"), utc("2026-03-29 21:30"), utc("2026-03-29 22:30"))
    assert [one.is_kept for one in decide(backups, Rules(daily=2), zone=BERLIN)] == [False, False, True, True]
    assert [one.is_kept for one in decide(backups, Rules(daily=2), zone=UTC)] == [False, True, False, True]


def test_system_zone_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        backups = at(utc("2026-03-28 22:30"), utc("2026-03-28 23:30"), utc("2026-03-29 21:30"))
        for rules in (Rules(daily=2), Rules(within=Duration("1m", months=1)), Rules(hourly=1)):
            there = retention.decide(backups, rules, now=LATER, held={})
            assert there == decide(backups, rules, zone=BERLIN)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_gap_is_no_period() -> None:
    """Three hours with backups are kept, however long nothing was backed up between them."""
    backups = at(utc("2026-01-01 08:10"), utc("2026-01-01 08:50"), utc("2026-06-01 08:00"), utc("2026-11-01 08:00"))
    assert [one.is_kept for one in decide(backups, Rules(hourly=3))] == [False, True, True, True]


# the time to go back


@pytest.mark.parametrize(
    ("duration", "end", "begin"),
    [
        (Duration("36h", hours=36), "2026-03-30T12:00+02:00", "2026-03-28T23:00+01:00"),
        (Duration("2d", days=2), "2026-03-30T12:00+02:00", "2026-03-28T12:00+01:00"),
        (Duration("1w", weeks=1), "2026-10-27T12:00+01:00", "2026-10-20T12:00+02:00"),
        (Duration("1m", months=1), "2026-03-31T12:00+02:00", "2026-02-28T12:00+01:00"),
        (Duration("1m", months=1), "2024-03-31T12:00+02:00", "2024-02-29T12:00+01:00"),
        (Duration("1m", months=1), "2026-07-31T12:00+02:00", "2026-06-30T12:00+02:00"),
        (Duration("1m", months=1), "2026-03-30T12:00+02:00", "2026-02-28T12:00+01:00"),
        (Duration("1y", years=1), "2024-02-29T12:00+01:00", "2023-02-28T12:00+01:00"),
        (Duration("1y6m", years=1, months=6), "2026-01-15T00:00+01:00", "2024-07-15T00:00+02:00"),
        (Duration("13m", months=13), "2026-01-15T00:00+01:00", "2024-12-15T00:00+01:00"),
        (Duration("1d", days=1), "2026-03-30T02:30+02:00", "2026-03-29T03:30+02:00"),  # 02:30 was left out
    ],
    ids=str,
)
def test_duration_goes_back_on_calendar_and_clock(duration: Duration, end: str, begin: str) -> None:
    assert duration.before(datetime.fromisoformat(end), BERLIN) == datetime.fromisoformat(begin)


@pytest.mark.parametrize("zone", [None, BERLIN])
def test_duration_to_before_all_time_keeps_everything(zone: tzinfo | None) -> None:
    for duration in (Duration("", years=99999), Duration("", days=99999, years=2000), Duration("", years=2025)):
        assert duration.before(NOON, zone).year == 1


def test_within_keeps_all_up_to_that_moment() -> None:
    backups = at(utc("2026-11-01 11:59"), utc("2026-11-01 12:00"), utc("2026-11-01 13:00"), utc("2026-11-02 12:00"))
    verdicts = decide(backups, Rules(within=Duration("24h", hours=24), daily=1))
    assert [one.reasons[0] for one in verdicts[1:]] == ["within 24h"] * 3
    assert verdicts[0].reasons == ("oldest: daily rule not satisfied (0 of 1)",)


def test_within_goes_back_from_the_newest_so_nothing_ages_while_no_backup_is_made() -> None:
    backups = nightly("2026-01-01 22:00", 10)
    verdicts = decide(backups, Rules(within=Duration("7d", days=7)), now=LATER)
    assert sum(one.is_kept for one in verdicts) == 8


# what the rules do not count


def test_backup_from_the_future_is_kept_and_takes_no_place() -> None:
    """A clock ten years ahead made 30 backups; the true ones of today are kept as if they were not there."""
    true, false = nightly("2026-11-01 22:00", 5), nightly("2036-11-01 22:00", 30)
    false = [replace(one, sequence=0) for one in false]
    verdicts = decide([*false, *true], Rules(daily=3), now=utc("2026-11-06 00:00"))
    assert [one.reasons for one in verdicts[:30]] == [(IN_FUTURE,)] * 30
    assert kept(verdicts[30:]) == kept(decide(true, Rules(daily=3)))


def test_newest_by_commit_is_kept_although_its_clock_was_behind() -> None:
    backups = [*nightly("2026-11-01 22:00", 5), replace(at(utc("2000-01-01 00:00"))[0], sequence=99)]
    verdicts = decide(backups, Rules(last=1))
    assert [one.is_kept for one in verdicts] == [False] * 4 + [True, True]
    assert verdicts[-1].reasons == (NEWEST,)


def test_protected_backup_takes_no_place() -> None:
    backups = nightly("2026-11-01 22:00", 5)
    held = {backups[4].id: ["protected"], backups[1].id: ["protected"]}
    verdicts = decide(backups, Rules(daily=2), held=held, uncounted=held)
    assert [one.reasons for one in verdicts] == [
        (BEYOND,),
        ("protected",),
        ("daily #2",),
        ("daily #1",),
        (NEWEST, "protected"),
    ]


def test_what_is_held_for_another_reason_counts() -> None:
    backups = nightly("2026-11-01 22:00", 3)
    verdicts = decide(backups, Rules(daily=2), held={backups[2].id: ["in use"], "unknown": ["?"]})
    assert [one.reasons for one in verdicts] == [(BEYOND,), ("daily #2",), ("daily #1", NEWEST, "in use")]


def test_removed_backup_names_the_one_that_stands_for_its_period() -> None:
    backups = at(utc("2026-11-02 10:00"), utc("2026-11-02 11:00"), utc("2026-11-08 11:00"))
    verdicts = decide(backups, Rules(daily=1, weekly=1))
    assert verdicts[1].reasons == (f"{backups[2].id} is kept for week 2026-W45",)
    verdicts = decide(backups, Rules(daily=2))
    assert verdicts[0].reasons == (f"{backups[1].id} is kept for day 2026-11-02",)


def test_backup_without_some_disks_takes_no_place_of_a_whole_one() -> None:
    """An hourly backup of the system's disk must not push out the nightly one of all disks."""
    whole = nightly("2026-11-01 01:00", 3)
    partial = [
        replace(one, id=one.id + "p", sequence=10 + one.sequence, left_out=(LeftOut("vdb", EXCLUDED),))
        for one in nightly("2026-11-01 23:00", 3)
    ]
    verdicts = decide([*whole, *partial], Rules(daily=2))
    assert [one.reasons for one in verdicts] == [
        (BEYOND,),
        ("daily #2",),
        ("daily #1", NEWEST),
        (BEYOND,),
        ("daily #2 without vdb",),
        ("daily #1 without vdb", "newest without vdb"),
    ]


def test_two_machines_with_one_uuid_each_keep_theirs() -> None:
    here, there = HostIdentity("here", "1" * 32), HostIdentity("there", "2" * 32)
    backups = [replace(one, host=there if one.sequence > 3 else here) for one in nightly("2026-11-01 22:00", 6)]
    verdicts = decide(backups, Rules(last=1))
    assert [one.reasons for one in verdicts if one.is_kept] == [
        ("last #1 of host here", "newest of host here"),
        ("last #1 of host there", "newest of host there"),
    ]


def test_machine_that_has_migrated_is_one() -> None:
    here, there = HostIdentity("here", "1" * 32), HostIdentity("there", "2" * 32)
    one = backup(1, host=here)
    two = replace(incremental(2, one), host=there)
    assert list(retention.kinds([one, two])) == [""]


def test_no_backups_no_verdicts() -> None:
    assert decide([], Rules(last=1)) == []
    assert retention.bases_of_next(History([])) == {}


# what the next backups start from, and what depends on what


def test_newest_of_each_disk_stays_for_the_next_incremental() -> None:
    one = backup(1, image("vda"), image("vdb"))
    two = replace(incremental(2, one, "vda"), left_out=(LeftOut("vdb", EXCLUDED),))
    assert retention.bases_of_next(History([one, two])) == {
        two.id: ["the next incremental of vda starts from it"],
        one.id: ["the next incremental of vdb starts from it"],
    }


def test_disk_that_the_domain_has_no_more_holds_nothing() -> None:
    one = backup(1, image("vda"), image("vdb"))
    two = incremental(2, one, "vda")
    assert one.id not in retention.bases_of_next(History([one, two]))


def test_copy_is_no_base() -> None:
    one = backup(1)
    assert list(retention.bases_of_next(History([one, copy(2)]))) == [one.id]


def test_restored_point_stays_until_the_next_backup() -> None:
    one = backup(1)
    two = incremental(2, one)
    name = names.Naming(REPOSITORY).bitmap(one.id, "vda", TOKEN)
    restored = [RestoredDisk("vda", one.id, name, 1, 2, ChainState(()))]
    assert retention.bases_of_next(History([one, two], restored=restored)) == {
        two.id: ["the next incremental of vda starts from it"],
        one.id: ["the next incremental of vda, restored to it, starts from it"],
    }
    assert list(retention.bases_of_next(History([one, two, incremental(3, one)], restored=restored))) == [
        incremental(3, one).id
    ]


def test_last_full_stays_only_if_differentials_are_made() -> None:
    one = backup(1)
    two = incremental(2, one)
    assert list(retention.bases_of_next(History([one, two]))) == [two.id]
    three = backup(3, image(level=Level.DIFFERENTIAL, base=one.id), level=Level.DIFFERENTIAL)
    assert retention.bases_of_next(History([one, two, three]))[one.id] == [
        "the next differential of vda starts from it"
    ]


def test_dependents_are_those_through_any_disk_nearest_first() -> None:
    one = backup(1, image("vda"), image("vdb"))
    two = incremental(2, one, "vda")
    three = incremental(3, two, "vda")
    other = backup(4, image("vdb", level=Level.INCREMENTAL, base=one.id), level=Level.INCREMENTAL)
    history = History([one, two, three, other])
    assert retention.dependents(history, {three.id}) == {one.id: three.id, two.id: three.id}
    assert retention.dependents(history, {two.id, three.id}) == {one.id: two.id, two.id: three.id}
    assert retention.dependents(history, {other.id}) == {one.id: other.id}
    assert retention.dependents(history, ()) == {}


def test_dependents_of_a_chain_of_thousands_take_no_time() -> None:
    chain = [backup(1)]
    for number in range(2, 3000):
        chain.append(incremental(number, chain[-1]))
    assert len(retention.dependents(History(chain), {chain[-1].id})) == 2998


# against a model that is written in another way


def model(backups: Sequence[Backup], rules: Rules, now: datetime, zone: tzinfo) -> set[str]:
    """Ids of what is kept: by groups that are sorted, and not by a walk from the newest; with periods as numbers."""
    periods = {
        "hourly": lambda time: time.strftime("%Y%m%d%H%z"),
        "daily": lambda time: time.toordinal(),
        "weekly": lambda time: (time.toordinal() - 1) // 7,  # day 1 was a Monday
        "monthly": lambda time: 12 * time.year + time.month,
        "yearly": lambda time: time.strftime("%Y"),
    }
    rank = {one.id: (one.time, one.sequence) for one in backups}
    present = [one for one in backups if one.time <= now]
    result = {one.id for one in sorted(present, key=lambda one: rank[one.id])[-(rules.last or 0) or len(present) :]}
    if rules.last is None:
        result = set()
    if rules.within is not None and present:
        begin = rules.within.before(max(one.time for one in present), zone)
        result |= {one.id for one in present if not one.time < begin}
    for rule, key in periods.items():
        count = getattr(rules, rule)
        if count is None:
            continue
        groups: dict[object, list[Backup]] = {}
        for one in present:
            groups.setdefault(key(one.time.astimezone(zone)), []).append(one)
        heads = [max(group, key=lambda one: rank[one.id]).id for group in groups.values()]
        new = sorted((head for head in heads if head not in result), key=lambda head: rank[head], reverse=True)
        result.update(new[:count])
        if len(new) < count and present:
            result.add(min(present, key=lambda one: rank[one.id]).id)
    result |= {one.id for one in backups if one.time > now}
    if backups:
        result.add(max(backups, key=lambda one: one.sequence).id)
    return result


#: Around the changes of clocks of these zones, and turns of years.
MOMENTS = [
    utc(text)
    for text in (
        "2018-02-18 00:00",
        "2018-11-04 02:30",
        "2025-12-29 00:00",
        "2026-01-01 00:00",
        "2026-03-29 01:00",
        "2026-04-04 15:00",
        "2026-10-25 01:00",
        "2026-12-31 23:00",
        "2027-01-03 12:00",
    )
]
TIMES = st.builds(
    lambda moment, minutes: moment + timedelta(minutes=minutes),
    st.sampled_from(MOMENTS),
    st.one_of(st.integers(-300, 300), st.integers(-60_000, 60_000), st.sampled_from((0, 0, 60))),
)
COUNTS = st.none() | st.integers(1, 8)
RULES = st.builds(
    Rules,
    last=COUNTS,
    within=st.none()
    | st.builds(
        lambda months, days, hours: Duration("x", months=months, days=days, hours=hours),
        st.integers(0, 14),
        st.integers(0, 40),
        st.integers(0, 30),
    ),
    hourly=COUNTS,
    daily=COUNTS,
    weekly=COUNTS,
    monthly=COUNTS,
    yearly=COUNTS,
)


@settings(max_examples=300)
@given(
    times=st.lists(TIMES, max_size=30),
    rules=RULES,
    zone=st.sampled_from(ZONES),
    now=st.sampled_from(MOMENTS) | st.just(LATER),
)
def test_kept_is_what_the_model_keeps(times: Sequence[datetime], rules: Rules, zone: tzinfo, now: datetime) -> None:
    backups = at(*times)
    verdicts = decide(backups, rules, now=now, zone=zone)
    stay = {one.backup.id for one in verdicts if one.is_kept}
    assert stay == model(backups, rules, now, zone)
    assert [one.backup for one in verdicts] == backups
    assert all(one.reasons for one in verdicts)
    # A second run has nothing to remove: a killed one can be repeated.
    again = decide([one for one in backups if one.id in stay], rules, now=now, zone=zone)
    assert all(one.is_kept for one in again)


@settings(max_examples=20)
@given(rules=RULES.filter(lambda rules: not rules.is_empty), begin=TIMES, step=st.sampled_from((1, 6, 24, 25, 170)))
def test_pruning_after_every_backup_never_keeps_less_than_once_at_the_end(
    rules: Rules, begin: datetime, step: int
) -> None:
    """Each backup is followed by a prune, as from cron; what one prune of all would have kept is there, or more."""
    there: list[Backup] = []
    backups = at(*(begin + timedelta(hours=step * number) for number in range(60)))
    for one in backups:
        there = [each.backup for each in decide([*there, one], rules, zone=BERLIN) if each.is_kept]
    once = {each.backup.id for each in decide(backups, rules, zone=BERLIN) if each.is_kept}
    assert once <= {one.id for one in there}
