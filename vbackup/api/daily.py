"""Daily operation, as the configuration describes it: run jobs, and look at what became of them.

These calls need no connection: the steps of a run are commands in separate processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vbackup.config.model import Config, Job
    from vbackup.errors import VbackupError
    from vbackup.operations.run import Ran, RunRequest
    from vbackup.operations.run_job import World
    from vbackup.operations.run_plan import PlannedRun
    from vbackup.report import Reporter
    from vbackup.runs.record import Run
    from vbackup.stop import Stop


def read_config(path: str | os.PathLike[str] | None = None) -> Config:
    """Return the configuration of a file; None: that of this user (vbackup.toml(5)).

    Raises ConfigError, whose ``path`` and ``line`` say where the first fault is, and NoConfigError if there is none.
    """
    from vbackup.config import loading

    return loading.read(None if path is None else [Path(path)])


def run_jobs(
    config: Config,
    request: RunRequest | None = None,
    *,
    reporter: Reporter | None = None,
    stop: Stop | None = None,
    state: str | os.PathLike[str] | None = None,
    now: Callable[[], datetime] | None = None,
) -> Ran:
    """Run jobs of the configuration, one after the other, and return what became of each.

    ``request``: which ones, and how long to wait for a repository; None: all of them. ``state``: the directory of their
    record (default: VBACKUP_STATE, or the system's). ``now``: a clock other than the system's, for tests. The reporter
    receives what the steps report. What fails is in the answer: whatever happens to one step or job, the others go on.

    Raises UsageError for a job that the configuration does not have.
    """
    from vbackup.operations import run

    return run.run(run.RunRequest() if request is None else request, config, _world(reporter, stop, state, now))


def tell_not_run(
    fault: VbackupError,
    jobs: Sequence[str] = (),
    *,
    path: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
    state: str | os.PathLike[str] | None = None,
) -> tuple[str, ...]:
    """Tell the notifiers that jobs (without names, all) cannot be run for a fault; return what was not sent.

    ``run_jobs`` does that for what it finds; this is for what kept it from being called, such as the ConfigError of
    ``read_config`` with this ``path``. The notifiers are those that the configuration has in spite of the fault. Raises
    nothing.
    """
    from vbackup.config import loading
    from vbackup.errors import ConfigError
    from vbackup.operations import run

    try:
        loaded = loading.load(None if path is None else [Path(path)])
    except ConfigError:
        return ()  # there is nobody to tell
    return run.tell_fault(fault, jobs, loaded.config, _world(reporter, None, state, None))


def plan_runs(
    config: Config,
    jobs: Sequence[str] = (),
    *,
    changed: Sequence[Job] = (),
    state: str | os.PathLike[str] | None = None,
) -> tuple[PlannedRun, ...]:
    """Return the jobs of these names, or all, with their times, their newest run, and the commands of their steps.

    ``changed``: jobs in place of those of the configuration that have their names. Nothing is executed or changed.
    Raises UsageError, StorageError (the record of runs cannot be read).
    """
    from vbackup.operations import run, run_plan

    by_name = {job.name: job for job in changed}
    planned = [by_name.get(job.name, job) for job in run.chosen(jobs, config)]
    return run_plan.plan(planned, config, _world(None, None, state, None))


def runs_of(job: str, *, limit: int | None = None, state: str | os.PathLike[str] | None = None) -> Sequence[Run]:
    """Return the newest runs of a job, the newest first, without the documents of their steps.

    The first can be at work (Outcome.RUNNING), or was killed (Outcome.INTERRUPTED). Raises UsageError, StorageError.
    """
    from vbackup.runs import store

    found = store.Store(_state(state))
    return found.list(job) if limit is None else found.list(job, limit)


def _state(state: str | os.PathLike[str] | None) -> Path:
    from vbackup.runs import store

    return store.default_directory() if state is None else Path(state)


def _world(
    reporter: Reporter | None,
    stop: Stop | None,
    state: str | os.PathLike[str] | None,
    now: Callable[[], datetime] | None,
) -> World:
    from vbackup.api.connected import labelling
    from vbackup.operations.run_job import World, utc_now
    from vbackup.report import Silent
    from vbackup.runs.store import Store
    from vbackup.stop import Stop

    return World(
        Store(_state(state)),
        labelling(Silent() if reporter is None else reporter),
        Stop() if stop is None else stop,
        now=utc_now if now is None else now,
    )
