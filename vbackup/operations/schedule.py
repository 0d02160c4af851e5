"""Let jobs run by themselves: write their units or lines of cron, remove them, and say what is there.

All files are looked at before the first is written. Where systemd does not run, or does not answer, the files are
written, and the answer has the commands that are left to do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from vbackup import machine, names
from vbackup.config.model import Config, Job
from vbackup.errors import UsageError
from vbackup.operations import schedule_needs
from vbackup.operations.schedule_needs import ScheduleRequest
from vbackup.schedule import places, quoting, systemd
from vbackup.schedule.cron import cron_line
from vbackup.schedule.places import Place, State, Wanted, Way

#: What tells a root directory of a system with systemd, such as an image that is being built.
_SYSTEMD = ("usr/lib/systemd/systemd", "lib/systemd/systemd")
_STAMPS = ("vbackup@{}.timer", "vbackup-boot@{}.timer")


@dataclass(frozen=True)
class ScheduledFile:
    """A file of a schedule."""

    path: Path
    state: State  #: after the work
    changed: bool
    content: str  #: as it should be; of a link, what it points to


@dataclass(frozen=True)
class ScheduledJob:
    """The schedule of a job."""

    name: str
    state: State
    next_run: datetime | None  #: None: it has no times, or no schedule
    is_active: bool | None  #: whether its timer runs; None: not known
    files: tuple[ScheduledFile, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """What was done, or is there."""

    way: Way
    directory: Path
    jobs: tuple[ScheduledJob, ...]
    exposure: str | None = None  #: of a job's service, as systemd-analyze rates it
    warnings: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = field(default=())  #: what somebody has to run yet


def install(request: ScheduleRequest, config: Config, now: datetime | None = None) -> Schedule:
    """Write the schedules of jobs, or bring them up to date. Raises UsageError, StorageError; nothing is written then.

    With ``is_dry_run``, nothing is written at all.
    """
    moment = datetime.now(timezone.utc) if now is None else now
    place = _place(request)
    jobs = schedule_needs.chosen(request.jobs, config)
    needs = {job.name: schedule_needs.of_job(job, config, request, moment) for job in jobs}
    if place.way is Way.CRON and request.is_user:
        lines = "; ".join(cron_line(one, host=_host(), is_user=True) for one in needs.values())
        raise UsageError(f"There is no systemd that could run a user's jobs. Add to 'crontab -e': {lines}")
    wanted = {name: place.wanted(one, host=_host()) for name, one in needs.items()}
    for one in {one.path: one for files in wanted.values() for one in files}.values():
        one.own_state()
    made = {name: [_written(one, request) for one in files] for name, files in wanted.items()}
    warnings = [*schedule_needs.warnings(needs.values(), place.way, request)]
    commands = _to_start(made, place, request)
    if not request.is_dry_run:
        commands, failed = _run(commands, place, request)
        warnings += failed
    return Schedule(
        place.way,
        _directory(place),
        tuple(_job(config.jobs[name], made[name], moment) for name in made),
        None if request.is_dry_run else _exposure(place, list(made)),
        tuple(warnings),
        tuple(commands),
    )


def remove(request: ScheduleRequest) -> Schedule:
    """Remove the schedules of jobs, those of systemd and those of cron. Raises UsageError, StorageError.

    A run that is at work goes on.
    """
    place = _place(request)
    of_systemd, of_cron = (replace(place, way=way) for way in (Way.SYSTEMD, Way.CRON))
    here = [of_systemd] if request.is_user else [of_systemd, of_cron]
    jobs = request.jobs or sorted({job for one in here for job in one.jobs()})
    files = {quoting.job(job): [file for one in here for file in one.written(job)] for job in jobs}
    shared = [] if set(of_systemd.jobs()) - set(jobs) else of_systemd.templates()
    for one in (*(one for some in files.values() for one in some), *shared):
        one.own_state()
    if not request.is_dry_run and jobs and _is_here(place, request):
        timers = [unit.format(job) for job in jobs for unit in _STAMPS]
        _run([systemd.command("stop", *timers, is_user=request.is_user)], place, request)
    made = {job: [_removed(one, request) for one in some] for job, some in files.items()}
    others = [_removed(one, request) for one in shared]
    commands: list[tuple[str, ...]] = []
    warnings: tuple[str, ...] = ()
    if not request.is_dry_run:
        for job in jobs:
            _remove_stamps(job, place)
        if _is_here(place, request) and any(one.changed for some in (*made.values(), others) for one in some):
            commands, warnings = _run([systemd.command("daemon-reload", is_user=request.is_user)], place, request)
    return Schedule(
        place.way,
        _directory(place),
        tuple(ScheduledJob(job, _worst(made[job]), None, None, tuple(made[job])) for job in made),
        warnings=warnings,
        commands=tuple(commands),
    )


def show(request: ScheduleRequest, config: Config, now: datetime | None = None) -> Schedule:
    """Return the schedules of jobs: those of the configuration, and others that are there.

    Raises UsageError, StorageError.
    """
    moment = datetime.now(timezone.utc) if now is None else now
    place = _place(request)
    there = place.jobs()
    jobs = request.jobs or tuple(dict.fromkeys((*config.jobs, *there)))
    for name in jobs:
        if name not in config.jobs and name not in there:
            raise UsageError(f"No job {name!r}{names.closest(name, config.jobs)}.")
    found = []
    for name in jobs:
        job = config.jobs.get(name)
        if job is None or job.calendar is None:
            files = [_there(one) for one in place.written(name)]
            state = State.LEFT if any(one.state is not State.ABSENT for one in files) else State.ABSENT
            found.append(ScheduledJob(name, state, None, _is_active(name, place, request), tuple(files)))
            continue
        needs = schedule_needs.of_job(job, config, request, moment)
        files = [_there(one) for one in place.wanted(needs, host=_host())]
        one = _job(job, files, moment)
        found.append(replace(one, is_active=_is_active(name, place, request)))
    scheduled = [one.name for one in found if one.state in (State.INSTALLED, State.OUTDATED)]
    return Schedule(place.way, _directory(place), tuple(found), _exposure(place, scheduled))


# places


def _place(request: ScheduleRequest) -> Place:
    home = schedule_needs.config_home() if request.is_user else None
    if not request.root.is_dir():
        raise UsageError(f"The root directory {request.root} does not exist; check --root.")
    if request.way is not None:
        return Place(request.way, request.root, home)
    if request.root == Path("/"):
        has_systemd = systemd.manages_system()
    else:
        has_systemd = any((request.root / path).exists() for path in _SYSTEMD)
    return Place(Way.SYSTEMD if has_systemd else Way.CRON, request.root, home)


def _directory(place: Place) -> Path:
    return place.unit_directory if place.way is Way.SYSTEMD else place.root / "etc/cron.d"


def _host() -> str:
    return machine.this_host().name


def _remove_stamps(job: str, place: Place) -> None:
    """Remove what systemd remembers of the timers (Persistent=)."""
    data = os.environ.get("XDG_DATA_HOME", "")
    home = Path(data) if data.startswith("/") else Path("~").expanduser() / ".local/share"
    directory = (place.root / "var/lib" if place.home is None else home) / "systemd/timers"
    for unit in _STAMPS:
        with suppress(OSError):
            (directory / f"stamp-{unit.format(job)}").unlink()


# files


def _written(one: Wanted, request: ScheduleRequest) -> ScheduledFile:
    if request.is_dry_run:
        state = one.state()
        return ScheduledFile(one.path, state, state is not State.INSTALLED, one.content)
    changed = one.install()
    return ScheduledFile(one.path, State.INSTALLED, changed, one.content)


def _removed(one: Wanted, request: ScheduleRequest) -> ScheduledFile:
    if request.is_dry_run:
        state = one.state()
        return ScheduledFile(one.path, state, state is not State.ABSENT, one.content)
    changed = one.remove()
    return ScheduledFile(one.path, State.ABSENT, changed, one.content)


def _there(one: Wanted) -> ScheduledFile:
    return ScheduledFile(one.path, one.state(), changed=False, content=one.content)


def _job(job: Job, files: Sequence[ScheduledFile], now: datetime) -> ScheduledJob:
    state = _worst(files)
    is_scheduled = job.calendar is not None and state in (State.INSTALLED, State.OUTDATED)
    next_run = job.calendar.after(now) if job.calendar is not None and is_scheduled else None
    return ScheduledJob(job.name, state, next_run, None, tuple(files))


def _worst(files: Sequence[ScheduledFile]) -> State:
    """Return the state of a job: of units that all jobs share, one that is missing is no news if all others are."""
    states = {one.state for one in files}
    own = {one.state for one in files if one.path.name not in (places.SERVICE, places.TIMER, places.BOOT_TIMER)}
    if State.FOREIGN in states:
        return State.FOREIGN
    if own == {State.ABSENT} or not own:
        return State.ABSENT
    return State.INSTALLED if states == {State.INSTALLED} else State.OUTDATED


# systemd


def _is_here(place: Place, request: ScheduleRequest) -> bool:
    """Return True if systemd of this system reads the files."""
    return request.root == Path("/") and place.way is Way.SYSTEMD


def _to_start(made: dict[str, list[ScheduledFile]], place: Place, request: ScheduleRequest) -> list[tuple[str, ...]]:
    if not _is_here(place, request):
        return []
    is_user = request.is_user
    changed = [name for name, files in made.items() if any(one.changed for one in files)]
    timers = [f"vbackup@{name}.timer" for name in made]
    # A timer that runs takes new times when it is started again. The other one, of the next start of the machine, is
    # not started now: it would find that its time is over, and run the job at once.
    anew = [f"vbackup@{name}.timer" for name in changed]
    commands = [systemd.command("daemon-reload", is_user=is_user)] if changed else []
    if anew:
        commands.append(systemd.command("restart", *anew, is_user=is_user))
    others = [one for one in timers if one not in anew]
    return [*commands, *([systemd.command("start", *others, is_user=is_user)] if others else [])]


def _run(
    commands: Sequence[tuple[str, ...]], place: Place, request: ScheduleRequest
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Run the commands; return those that are left to do, and why, as sentences."""
    if not commands:
        return [], ()
    if not _is_here(place, request) or not systemd.manages_system():
        return list(commands), ()
    for number, one in enumerate(commands):
        failure = systemd.run(one)
        if failure is not None:
            return list(commands[number:]), (f"'{' '.join(one)}' failed: {failure.rstrip('.')}.",)
    return [], ()


def _is_active(name: str, place: Place, request: ScheduleRequest) -> bool | None:
    if not _is_here(place, request) or not systemd.manages_system():
        return None
    return systemd.is_active(f"vbackup@{name}.timer", is_user=request.is_user)


def _exposure(place: Place, jobs: Sequence[str]) -> str | None:
    if place.way is not Way.SYSTEMD or not jobs:
        return None
    return systemd.exposure(place.unit_directory, f"vbackup@{jobs[0]}.service", is_user=place.home is not None)
