"""What comes after the steps of a run: its record, metrics and report, and the messages about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vbackup.config.model import Config, Job
from vbackup.operations.run_job import World
from vbackup.operations.run_log import Log
from vbackup.runs.record import Run


@contextmanager
def announced(_begun: Run, _config: Config, _world: World) -> Iterator[None]:
    """Say that a run begins, beside the work in the block."""
    yield


def finish(done: Run, _job: Job, _config: Config, world: World, _kept: Log) -> Run:
    """Put the run on record, write metrics and report, and tell who wants to know; return the run as it was kept."""
    world.store.end(done)
    return done
