"""What the schedule of a job needs, from the configuration: its command, times, credentials and directories."""

from __future__ import annotations

import os
import pwd
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vbackup import names
from vbackup.config.calendar import DAYS, Calendar
from vbackup.config.model import Config, Job, Notifier
from vbackup.errors import UsageError
from vbackup.runs import store
from vbackup.schedule import calendars
from vbackup.schedule.places import Way
from vbackup.schedule.units import Credential, Needs


@dataclass(frozen=True)
class ScheduleRequest:
    """Which schedules, and where."""

    jobs: tuple[str, ...] = ()  #: names; empty: all that have times, or all that are scheduled
    command: tuple[str, ...] = ("/usr/bin/vbackup",)  #: the words that start vbackup
    config: Path | None = None  #: the file that was named; None: the user's or the system's
    root: Path = Path("/")  #: root directory of another system
    is_user: bool = False  #: for the user's systemd
    way: Way | None = None  #: None: systemd if the system has it, else cron
    is_dry_run: bool = False


def chosen(wanted: Collection[str], config: Config) -> list[Job]:
    """Return the jobs to schedule. Raises UsageError for one that the configuration does not have, or without times."""
    for name in wanted:
        if name not in config.jobs:
            raise UsageError(f"No job {name!r} in the configuration{names.closest(name, config.jobs)}.")
        if config.jobs[name].calendar is None:
            raise UsageError(f"Job {name} has no times: give it 'at' in {config.jobs[name].place}.")
    if wanted:
        return [config.jobs[name] for name in dict.fromkeys(wanted)]
    found = [job for job in config.jobs.values() if job.calendar is not None]
    if not found:
        raise UsageError("No job of the configuration has times: give one 'at'.")
    return found


def of_job(job: Job, config: Config, request: ScheduleRequest, now: datetime) -> Needs:
    """Return what the schedule of a job with times needs."""
    assert job.calendar is not None
    option = () if request.config is None else ("--config", os.fspath(request.config.absolute()))
    state = os.environ.get(store.ENVIRONMENT)
    return Needs(
        job=job.name,
        command=(*request.command, *option),
        environment=((store.ENVIRONMENT, state),) if state else (),
        writable=tuple(_writable(job, config)),
        credentials=tuple(_credentials(job, config, request)),
        on_calendar=(*calendars.on_calendar(job.calendar, year=now.year), *_opening(job, job.calendar)),
        random_delay_s=job.random_delay_s,
        sends_mail=request.is_user and any(one.mail_to for one in _notifiers(job, config)),
    )


def _opening(job: Job, calendar: Calendar) -> Iterator[str]:
    """Yield when the window of the job opens: a run that is made up for waits for that, and nothing else would call it.

    If nothing is due then, nothing is done.
    """
    if job.window is not None and (job.window.start not in calendar.times or len(calendar.days) < len(DAYS)):
        yield f"*-*-* {job.window.start:%H:%M}:00"


def _writable(job: Job, config: Config) -> Iterator[Path]:
    """Yield the directories that a run writes to, as far as the configuration has them."""
    if job.repository in config.repositories:
        yield config.repositories[job.repository].path
    for target in (config.targets[name] for name in job.copy_to if name in config.targets):
        if target.url.startswith("/"):
            yield Path(target.url)
    for file in (config.metrics_file, config.report_html, config.report_text):
        if file is not None:
            yield file.parent
    for command, option in (("backup", "fleecing"), ("audit", "scratch")):
        value = job.options.get(command, {}).get(option)
        if isinstance(value, str):
            yield Path(value)


def _credentials(job: Job, config: Config, request: ScheduleRequest) -> Iterator[Credential]:
    """Yield the credentials of the notifiers of a job, with the files that systemd's own tools put them into."""
    found: dict[str, Credential] = {}
    for notifier in _notifiers(job, config):
        for secret in (notifier.ping, notifier.webhook, notifier.apprise, notifier.secret):
            if secret is not None and secret.credential is not None:
                name = secret.credential
                sealed = _store(request, ".encrypted") / name
                is_sealed = (request.root / sealed.relative_to("/")).exists()
                found[name] = Credential(name, sealed if is_sealed else _store(request, "") / name, is_sealed)
    yield from found.values()


def _notifiers(job: Job, config: Config) -> Collection[Notifier]:
    return [one for one in config.notifiers.values() if job.notify is None or one.name in job.notify]


def _store(request: ScheduleRequest, suffix: str) -> Path:
    return (config_home() if request.is_user else Path("/etc")) / f"credstore{suffix}"


def warnings(needs: Collection[Needs], way: Way, request: ScheduleRequest) -> Iterator[str]:
    """Yield what somebody should know of schedules that can be installed all the same."""
    for one in needs:
        for credential in one.credentials:
            if way is Way.CRON:
                yield f"Job {one.job} needs the credential {credential.name}, which only systemd loads: use a file."
            elif not (request.root / credential.path.relative_to("/")).exists():
                yield (
                    f"{credential.path} does not exist: put the credential {credential.name} of job {one.job} there,"
                    " readable for its owner only, or encrypted by 'systemd-creds encrypt' into"
                    f" {_store(request, '.encrypted')}, and run 'vbackup schedule install' again."
                )
        if way is Way.CRON and one.random_delay_s:
            yield f"Job {one.job}: cron knows no random-delay, so it begins within 15 minutes of its time."
    if request.is_user and way is Way.SYSTEMD and not _lingers():
        yield "Timers of a user run only while the user is logged in: 'loginctl enable-linger' changes that."


def _lingers() -> bool:
    with suppress(KeyError):
        return (Path("/var/lib/systemd/linger") / pwd.getpwuid(os.geteuid()).pw_name).exists()
    return False


def config_home() -> Path:
    """Return the user's directory of configuration."""
    named = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(named) if named.startswith("/") else Path("~").expanduser() / ".config"
