"""The state directory of daily operation: the record of the runs of each job, and which of them is at work.

    STATE/runs/JOB/NNNNNN-ID.json    a run that has ended; the newest KEPT of a job
    STATE/runs/JOB/running.json      the run that is at work, and the process that does it
    STATE/run.lock.d/...             vbackup.runs.lock
    STATE/notices/                   vbackup.notices

STATE is /var/lib/vbackup for root and $XDG_STATE_HOME/vbackup for others; VBACKUP_STATE names another one. Files have
mode 0600, directories 0700. A file is replaced by a rename: a reader sees it complete.

Runs are counted (NNNNNN), and the count is their order: a clock that was wrong once would otherwise make the run of
that day the newest one for as long as it was wrong. The record of a run has no documents of its steps, which can be
large; only who gets the report of the run as it ends has them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vbackup.errors import BusyError, Status, StorageError, UsageError
from vbackup.fields import Fields, parse_json
from vbackup.files import make_private, read_regular, replace_text, storage_errors
from vbackup.process import Process
from vbackup.runs import documents
from vbackup.runs.record import Outcome, Run, Step

ENVIRONMENT = "VBACKUP_STATE"
#: How many runs of a job are kept: a year of nights.
KEPT = 400
#: A name that can be that of a directory; vbackup.config allows no other for a job.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}")
_ENDED = re.compile(r"([0-9]{6,})-([0-9]{8}T[0-9]{6}Z(?:-[0-9]+)?)\.json")
_RUNNING = "running.json"
_MAX_BYTES = 64 * 1024 * 1024


def default_directory() -> Path:
    """Return where the state is, unless an option says it."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/vbackup")
    home = os.environ.get("XDG_STATE_HOME") or os.fspath(Path.home() / ".local" / "state")
    return Path(home) / "vbackup"


@dataclass(frozen=True)
class Store:
    """The record of the runs of all jobs; the directory need not exist yet."""

    state: Path

    def jobs(self) -> Sequence[str]:
        """Return the jobs that have been run, by name, configured or not. Raises StorageError."""
        directory = self.state / "runs"
        with storage_errors(f"read {directory}"):
            if not directory.is_dir():
                return []
            return sorted(path.name for path in directory.iterdir() if NAME.fullmatch(path.name))

    def last(self, job: str) -> Run | None:
        """Return the newest run of a job, as ``list`` does; None if it was never run. Raises StorageError."""
        return next(iter(self.list(job, 1)), None)

    def list(self, job: str, limit: int = KEPT) -> Sequence[Run]:
        """Return the newest runs of a job, the newest first.

        The first one can be at work (Outcome.RUNNING), or its process is gone without having ended it
        (Outcome.INTERRUPTED, ``ended`` is None). A record that cannot be read is left out, as if the run had not been.
        Raises StorageError.
        """
        current = self.current(job)
        runs = [] if current is None else [current]
        for _, path in self._ended(job):
            if len(runs) >= limit:
                break
            with suppress(StorageError):
                runs.append(_load(path))
        return runs[:limit]

    def current(self, job: str) -> Run | None:
        """Return the run that is at work, or whose process is gone; None if the last one has ended.

        A record that is damaged says nothing, and the next run replaces it. Raises StorageError if it cannot be read.
        """
        path = self._directory(job) / _RUNNING
        try:
            data = read_regular(path, max_bytes=_MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise StorageError(f"Cannot read {path}: {err.strerror or err}.") from err
        with suppress(StorageError):
            fields = Fields(_value(data, path), os.fspath(path), StorageError)
            run, process = documents.read(fields), Process.read(fields.object("process"))
            return run if process.lives else interrupted(run)
        return None

    def begin(self, run: Run) -> Run:
        """Write down that the run is at work, and return it with an id that no other run of the job has.

        Whoever begins one has the lock of its repository (vbackup.runs.lock). A run whose process is gone is put on
        record as interrupted. Raises BusyError if a run of the job is at work, StorageError, NoSpaceError.
        """
        directory = self._directory(run.job)
        with storage_errors(f"use the directory {directory}"):
            make_private(directory)
        self.settle(run.job)
        taken = {match[2] for match, _ in self._ended(run.job)}
        run_id, number = run.id, 1
        while run_id in taken:
            number += 1
            run_id = f"{run.id}-{number}"
        return self.update(replace(run, id=run_id))

    def settle(self, job: str) -> Run | None:
        """Put a run whose process is gone on record as interrupted, and return it; None if there is none.

        Raises BusyError if a run of the job is at work, StorageError.
        """
        current = self.current(job)
        if current is None:
            return None
        if current.outcome is Outcome.RUNNING:
            raise BusyError(
                f"Job {job} is running since {current.started.astimezone():%Y-%m-%d %H:%M:%S}; wait for it to end."
            )
        self.end(current)
        return current

    def update(self, run: Run) -> Run:
        """Write down how far a run is, and return it. Raises StorageError, NoSpaceError."""
        members = documents.document(run, with_details=False)
        self._replace(self._directory(run.job) / _RUNNING, {**members, "process": Process.this().document()})
        return run

    def end(self, run: Run) -> None:
        """Put a run that has ended on record, and forget the oldest ones. Raises StorageError, NoSpaceError."""
        directory = self._directory(run.job)
        ended = self._ended(run.job)
        known = next((path for match, path in ended if match[2] == run.id), None)
        number = int(ended[0][0][1]) + 1 if ended else 1
        self._replace(known or directory / f"{number:06d}-{run.id}.json", documents.document(run, with_details=False))
        with storage_errors(f"remove old records of runs in {directory}"):
            if known is None:
                (directory / _RUNNING).unlink(missing_ok=True)
            for _, path in ended[KEPT - 1 :]:
                path.unlink(missing_ok=True)

    def _directory(self, job: str) -> Path:
        if not NAME.fullmatch(job):
            raise UsageError(f"{job[:80]!r} cannot be the name of a job: it has letters, digits and any of _.@+- only.")
        return self.state / "runs" / job

    def _ended(self, job: str) -> Sequence[tuple[re.Match[str], Path]]:
        """Return the files of the runs that have ended, the newest first."""
        directory = self._directory(job)
        with storage_errors(f"read {directory}"):
            paths = list(directory.iterdir()) if directory.is_dir() else []
        matches = [(match, path) for path in paths if (match := _ENDED.fullmatch(path.name))]
        return sorted(matches, key=lambda found: int(found[0][1]), reverse=True)

    def _replace(self, path: Path, document: dict[str, Any]) -> None:
        with storage_errors(f"write {path}"):
            replace_text(path, json.dumps(document, indent=1, ensure_ascii=True) + "\n")


def interrupted(run: Run) -> Run:
    """Return a run that ended without saying so: it was killed, or the machine went down."""
    steps = tuple(_interrupted(step) for step in run.steps)
    status = run.status or int(Status.FAILED)
    return replace(run, outcome=Outcome.INTERRUPTED, status=status, steps=steps)


def _interrupted(step: Step) -> Step:
    if step.outcome is not Outcome.RUNNING:
        return step
    return replace(step, outcome=Outcome.INTERRUPTED, reason="the run was killed, or the machine went down")


def _load(path: Path) -> Run:
    with storage_errors(f"read {path}"):
        data = read_regular(path, max_bytes=_MAX_BYTES)
    return documents.read(Fields(_value(data, path), os.fspath(path), StorageError))


def _value(data: bytes, path: Path) -> Any:
    """Return the JSON value in a file. Raises StorageError."""
    try:
        return parse_json(data.decode())
    except (ValueError, RecursionError) as err:
        raise StorageError(f"{path} is not valid: {err}.") from err
