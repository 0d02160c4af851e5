"""When jobs run by themselves: timers of systemd, or lines of cron; these calls need no connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vbackup.config.model import Config
    from vbackup.operations.schedule import Schedule
    from vbackup.operations.schedule_needs import ScheduleRequest


def install_schedule(config: Config, request: ScheduleRequest | None = None) -> Schedule:
    """Let jobs of the configuration run by themselves, or bring what is there up to date.

    Raises UsageError, StorageError; nothing was written then. Where systemd does not answer, the files are written, and
    the answer has what is left to do.
    """
    from vbackup.operations import schedule, schedule_needs

    return schedule.install(schedule_needs.ScheduleRequest() if request is None else request, config)


def remove_schedule(request: ScheduleRequest | None = None) -> Schedule:
    """Let jobs run by themselves no more; those that the configuration does not have are removed too.

    Raises UsageError, StorageError. A run that is at work goes on.
    """
    from vbackup.operations import schedule, schedule_needs

    return schedule.remove(schedule_needs.ScheduleRequest() if request is None else request)


def show_schedule(config: Config, request: ScheduleRequest | None = None) -> Schedule:
    """Return which jobs run by themselves, when next, and whether that is what the configuration says.

    Raises UsageError, StorageError.
    """
    from vbackup.operations import schedule, schedule_needs

    return schedule.show(schedule_needs.ScheduleRequest() if request is None else request, config)
