"""Decide which backups of a domain are kept and which are removed, with a reason for each. Does no I/O.

The rules have the meaning that they have in borg and in Proxmox Backup Server. They are applied from short to long:
last, within, hourly, daily, weekly, monthly, yearly. A rule keeps the newest backup of each of the N newest periods
that have one. A backup that an earlier rule has kept is not counted again, and its period is not either. As in borg,
the oldest backup stays while a rule has not found N: so a chain of a year grows from its first day. Weeks are those of
ISO 8601; all periods are in local time, so a day may have 23 or 25 hours, and the hour that comes twice when the clocks
are put back counts twice.

Where the two differ: at a week that belongs to two months, the newest backup of each month counts (borg), and not none
if the week has another (Proxmox). Protected backups are not counted (Proxmox). "Within" goes back from the newest
backup (as in restic), and not from now: a domain whose backups fail for a month loses none for it.

A backup from the future was made with a wrong clock, and belongs to no period that is known: it is kept and not
counted. Counted, the backups of one day with a clock ten years ahead would push out every true one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo

from vbackup.model import Backup, Level
from vbackup.repository import hosts
from vbackup.repository.history import History

IN_FUTURE = "its time is in the future, so its clock was wrong"
NEWEST = "newest"
BEYOND = "no rule keeps it"


@dataclass(frozen=True)
class Duration:
    """A time to go back: years, months, weeks and days on the calendar and clock of the time zone, then hours."""

    text: str  #: as it was given
    years: int = 0
    months: int = 0
    weeks: int = 0
    days: int = 0
    hours: int = 0

    def before(self, time: datetime, zone: tzinfo | None) -> datetime:
        """Return the time that lies this long before ``time``, in UTC.

        A month before 31 March is the last day of February.
        """
        wall = time.astimezone(zone).replace(tzinfo=None)
        try:
            wall = _months_before(wall, 12 * self.years + self.months) - timedelta(days=7 * self.weeks + self.days)
            # Without a zone, a naive time is one of the system's zone.
            there = (wall if zone is None else wall.replace(tzinfo=zone)).astimezone(timezone.utc)
            return there - timedelta(hours=self.hours)
        except (ValueError, OverflowError):  # before the year 1
            return datetime.min.replace(tzinfo=timezone.utc)


def _months_before(wall: datetime, months: int) -> datetime:
    """Return the time of day ``months`` earlier, on the last day of a month that is too short. Raises ValueError."""
    year, month = divmod(12 * wall.year + wall.month - 1 - months, 12)
    for day in (wall.day, 30, 29):
        try:
            return wall.replace(year=year, month=month + 1, day=day)
        except ValueError:
            if year < 1:
                raise
    return wall.replace(year=year, month=month + 1, day=28)


@dataclass(frozen=True)
class Rules:
    """What to keep; None where a rule is not asked for."""

    last: int | None = None
    within: Duration | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None

    @property
    def is_empty(self) -> bool:
        """True if nothing is asked for."""
        return self == Rules()

    @property
    def periodic(self) -> Iterator[tuple[_Period, int]]:
        """The rules that have periods, from short to long, each with the number to keep."""
        for period in PERIODS:
            count: int | None = getattr(self, period.rule)
            if count is not None:
                yield period, count


@dataclass(frozen=True)
class _Period:
    """A kind of period: ``key`` returns what is equal for times in one period, ``label`` its name for people."""

    rule: str
    key: Callable[[datetime], object]
    label: Callable[[datetime], str]


PERIODS = (
    _Period("hourly", lambda time: (time.date(), time.hour, time.utcoffset()), lambda time: f"{time:hour %F %H:00}"),
    _Period("daily", lambda time: time.date(), lambda time: f"{time:day %F}"),
    _Period("weekly", lambda time: time.isocalendar()[:2], lambda time: f"{time:week %G-W%V}"),
    _Period("monthly", lambda time: (time.year, time.month), lambda time: f"{time:month %Y-%m}"),
    _Period("yearly", lambda time: time.year, lambda time: f"{time:year %Y}"),
)


@dataclass(frozen=True)
class Verdict:
    """A backup, and why it is kept or removed."""

    backup: Backup
    is_kept: bool
    reasons: tuple[str, ...]


@dataclass
class _Series:
    """Backups of one kind, the newest first, and what is chosen of them."""

    label: str  #: "" for the only kind, or the one that is whole
    backups: list[Backup]
    local: dict[str, datetime]  #: times by id, in the zone of the periods
    chosen: dict[str, str] = field(default_factory=dict)  #: reason by id

    def choose(self, backup: Backup, reason: str) -> None:
        self.chosen[backup.id] = f"{reason} {self.label}".rstrip()


def decide(
    backups: Sequence[Backup],
    rules: Rules,
    *,
    now: datetime,
    held: Mapping[str, Sequence[str]],
    uncounted: Collection[str] = (),
    zone: tzinfo | None = None,
) -> list[Verdict]:
    """Return a verdict on each of the backups of a domain, in their order.

    ``held``: reasons to keep by id, whatever the rules say. ``uncounted``: ids of backups that are no part of what the
    rules keep, such as protected ones. ``zone``: that of the periods, the system's by default. The newest backup of
    each kind is always kept (``kinds``).
    """
    reasons: dict[str, list[str]] = {backup.id: [] for backup in backups}
    removed: dict[str, str] = {}
    for label, members in kinds(backups).items():
        counted = [one for one in members if one.id not in uncounted]
        present = sorted(
            (one for one in counted if one.time <= now), key=lambda one: (one.time, one.sequence), reverse=True
        )
        series = _Series(label, present, {one.id: one.time.astimezone(zone) for one in present})
        _apply(rules, series, zone)
        for one_id, reason in series.chosen.items():
            reasons[one_id].append(reason)
        for one in counted:
            if one.time > now:
                reasons[one.id].append(IN_FUTURE)
        # The order of the commits, for which clocks do not matter.
        if members:
            reasons[max(members, key=lambda one: one.sequence).id].append(f"{NEWEST} {label}".rstrip())
        removed.update(_why_removed(rules, series))
    for one_id, more in held.items():
        if one_id in reasons:
            reasons[one_id] += more
    return [
        Verdict(one, bool(reasons[one.id]), tuple(reasons[one.id]) or (removed.get(one.id, BEYOND),)) for one in backups
    ]


def kinds(backups: Sequence[Backup]) -> dict[str, list[Backup]]:
    """Return the backups by what tells them apart for people; "" are the whole ones of one machine.

    A backup from which the user excluded disks never takes the place of a whole one, nor does one of another machine
    with the same UUID (vbackup.repository.hosts).
    """
    labels = hosts.labels(backups) if hosts.break_of(backups) is not None else {}
    found: dict[str, list[Backup]] = {}
    for backup in backups:
        words = [f"without {' '.join(sorted(backup.excluded))}"] if backup.excluded else []
        words += [f"of host {labels[backup.host]}"] if backup.host in labels else []
        found.setdefault(" ".join(words), []).append(backup)
    return found


def _apply(rules: Rules, series: _Series, zone: tzinfo | None) -> None:
    """Choose what the rules keep, from the short ones to the long ones."""
    for number, backup in enumerate(series.backups[: rules.last or 0], start=1):
        series.choose(backup, f"last #{number}")
    if rules.within is not None and series.backups:
        begin = rules.within.before(series.backups[0].time, zone)
        for backup in series.backups:
            if backup.time >= begin and backup.id not in series.chosen:
                series.choose(backup, f"within {rules.within.text}")
    for period, count in rules.periodic:
        _apply_periodic(period, count, series)


def _apply_periodic(period: _Period, count: int, series: _Series) -> None:
    seen: set[object] = set()
    found = 0
    for backup in series.backups:
        key = period.key(series.local[backup.id])
        if key in seen:
            continue
        seen.add(key)
        if backup.id in series.chosen:
            continue
        found += 1
        series.choose(backup, f"{period.rule} #{found}")
        if found == count:
            return
    if series.backups and series.backups[-1].id not in series.chosen:
        series.choose(series.backups[-1], f"oldest: {period.rule} rule not satisfied ({found} of {count})")


def _why_removed(rules: Rules, series: _Series) -> dict[str, str]:
    """Return for each backup that is not chosen the shortest of its periods for which a newer one is kept."""
    why: dict[str, str] = {}
    for period, _ in rules.periodic:
        kept: dict[object, str] = {}
        for backup in series.backups:
            time = series.local[backup.id]
            key = period.key(time)
            if backup.id in series.chosen:
                kept.setdefault(key, backup.id)
            elif key in kept:
                why.setdefault(backup.id, f"{kept[key]} is kept for {period.label(time)}")
    return why


def bases_of_next(history: History) -> dict[str, list[str]]:
    """Return the backups from which the next ones start, by id, with the reasons to keep them.

    These are the newest of each disk that the domain had at its newest backup, and its last full if differentials have
    been made of it. What is base of a differential is not known otherwise: without them, the last full may be merged
    into a later backup, which is then as good a base.
    """
    found: dict[str, list[str]] = {}
    if not history.backups:
        return found
    newest = history.backups[-1]
    differentials = {
        (image.dev, image.base)
        for backup in history.backups
        for image in backup.disks
        if image.level is Level.DIFFERENTIAL
    }
    for dev in sorted({*(image.dev for image in newest.disks), *newest.excluded}):
        base, full = history.newest(dev), history.last_full(dev)
        if base is not None:
            found.setdefault(base.id, []).append(f"the next incremental of {dev} starts from it")
        for backup_id in sorted({one.backup for one in history.restored_since(dev)}):
            if base is None or backup_id != base.id:
                found.setdefault(backup_id, []).append(f"the next incremental of {dev}, restored to it, starts from it")
        if full is not None and full is not base and (dev, full.id) in differentials:
            found.setdefault(full.id, []).append(f"the next differential of {dev} starts from it")
    return found


def dependents(history: History, kept: Collection[str]) -> dict[str, str]:
    """Return by id the backups whose images a backup in ``kept`` depends on, with the nearest that does.

    A base that is missing is no backup, and is in it all the same.
    """
    needed: dict[tuple[str, str], str] = {}
    for backup in reversed(history.backups):
        for image in backup.disks:
            by = backup.id if backup.id in kept else needed.get((backup.id, image.dev))
            if by is not None and image.base is not None:
                needed[image.base, image.dev] = by
    return {one_id: by for (one_id, _), by in needed.items()}
