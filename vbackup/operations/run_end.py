"""What comes after the steps of a run: its record, metrics and report, and the messages about it.

The run is put on record before, so that metrics, report and messages have it, and again with what became of them. None
of them can undo what the steps have done: what fails is in the result.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vbackup.config.model import Config
from vbackup.errors import StorageError
from vbackup.files import reported
from vbackup.operations import run_job
from vbackup.operations.run_job import World
from vbackup.operations.run_log import Log
from vbackup.runs.record import Fault, Outcome, Run, Step, StepKind
from vbackup.stop import Stop

if TYPE_CHECKING:
    from vbackup.overview.state import Overview

log = logging.getLogger(__name__)


@dataclass
class Untold:
    """What could not be told when the run began."""

    sentences: tuple[str, ...] = ()


@contextmanager
def announced(begun: Run, config: Config, world: World) -> Iterator[Untold]:
    """Say that a run begins, beside the work in the block; yield what could not be told, complete after the block."""
    untold = Untold()
    if not any(notifier.ping is not None for notifier in config.notifiers.values()):
        yield untold
        return

    def tell() -> None:
        untold.sentences = _announce(begun, None, config, world, phase="start", log_tail="")

    thread = threading.Thread(target=tell, name="announcing", daemon=True)
    thread.start()
    try:
        yield untold
    finally:
        thread.join()


def finish(done: Run, config: Config, world: World, kept: Log) -> Run:
    """Put the run on record, write metrics and report, and tell who wants to know; return the run as it was kept."""
    run = _record(done, world)
    overview = _overview(config, world) if _is_needed(config) else None
    steps = [_written(kind, write, world) for kind, write in _writers(config, overview)]
    if steps:
        # A signal that comes now ends nothing that the run is for: a complete run is not made up for.
        stop = world.stop if run.outcome is Outcome.INTERRUPTED else Stop()
        run = run_job.ended(replace(run, steps=(*run.steps, *steps)), world.now(), stop)
        run = _record(run, world)
    if config.notifiers:
        known = None if isinstance(overview, Exception) else overview
        unsent = _announce(run, known, config, world, phase="end", log_tail=kept.tail)
        if unsent:
            run = _record(replace(run, notices=(*run.notices, *unsent)), world)
    return run


def told(run: Run, config: Config, world: World) -> tuple[str, ...]:
    """Tell who wants to know of a run that could not begin, and is on no record; return what was not sent."""
    return _announce(run, None, config, world, phase="end", log_tail="") if config.notifiers else ()


def _record(run: Run, world: World) -> Run:
    """Write the run down; that it cannot be is unusual, and no reason to give up."""
    try:
        world.store.end(run)
    except StorageError as err:
        sentence = f"The record of the run could not be written: {err}"
        if sentence in run.unusual:
            return run
        world.reporter.warning(sentence)
        return replace(run, unusual=(*run.unusual, sentence))
    return run


def _is_needed(config: Config) -> bool:
    return bool(config.notifiers or config.metrics_file or config.report_html or config.report_text)


def _overview(config: Config, world: World) -> Overview | Exception:
    """Return the state of everything, or why it could not be found out."""
    from vbackup.operations import status

    # A run that was stopped has to end: libvirt is not waited for.
    request = status.StatusRequest(is_offline=world.stop.signum is not None)
    try:
        return status.gather(request, config, state=world.store.state, now=world.now())
    except Exception as err:
        log.debug("unexpected", exc_info=err)
        return err


_Write = Callable[[], None]


def _writers(config: Config, overview: Overview | Exception | None) -> Iterator[tuple[StepKind, _Write]]:
    """Yield what is to be written, each with what writes it."""

    def known() -> Overview:
        if isinstance(overview, Exception):
            raise overview
        assert overview is not None  # it is needed
        return overview

    metrics_file, report_html, report_text = config.metrics_file, config.report_html, config.report_text
    if metrics_file is not None:
        yield StepKind.METRICS, lambda: _write_metrics(metrics_file, known())
    if report_html is not None or report_text is not None:
        yield StepKind.REPORT, lambda: _write_report(config, known())


def _write_metrics(path: Path, overview: Overview) -> None:
    from vbackup.operations import metrics

    metrics.write(path, overview)


def _write_report(config: Config, overview: Overview) -> None:
    from vbackup.operations import report

    if config.report_html is not None:
        report.write(config.report_html, report.html(overview))
    if config.report_text is not None:
        report.write(config.report_text, report.text(overview))


def _written(kind: StepKind, write: _Write, world: World) -> Step:
    started, begun_s = world.now(), time.monotonic()
    fault = None
    try:
        write()
    except Exception as err:  # whatever it is, it belongs to this step
        log.debug("unexpected", exc_info=err)
        known = reported(err)
        fault = Fault(known.code, int(known.status), str(known))
        world.reporter.warning(str(known))
    return Step(
        kind,
        Outcome.DONE if fault is None else Outcome.FAILED,
        started,
        round(time.monotonic() - begun_s, 3),
        0 if fault is None else fault.status,
        faults=() if fault is None else (fault,),
    )


def _announce(
    run: Run,
    overview: Overview | None,
    config: Config,
    world: World,
    *,
    phase: Literal["start", "end"],
    log_tail: str,
) -> tuple[str, ...]:
    from vbackup.notices import sending
    from vbackup.notices.memory import Memory

    return sending.announce(
        run,
        overview,
        config,
        Memory(world.store.state),
        phase=phase,
        log_tail=log_tail,
        reporter=world.reporter,
    )
