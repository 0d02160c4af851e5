"""``vbackup schedule``: let jobs run by themselves, no more, or list when they do."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vbackup.api import (
    Schedule,
    ScheduledFile,
    ScheduledJob,
    ScheduleRequest,
    ScheduleState,
    ScheduleWay,
    install_schedule,
    read_config,
    remove_schedule,
    show_schedule,
)
from vbackup.cli import output
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError

_NONE = "-"
_PACKAGED = Path("/usr/bin/vbackup")
_STATES = {
    ScheduleState.INSTALLED: "installed",
    ScheduleState.OUTDATED: "out of date: run 'vbackup schedule install'",
    ScheduleState.FOREIGN: "in the way: a file that is not vbackup's",
    ScheduleState.ABSENT: "not installed",
    ScheduleState.LEFT: "left over: run 'vbackup schedule remove'",
}


def run(options: argparse.Namespace, context: Context) -> int:
    """Do what the command within the command says, and print what is there then. Raises UsageError, StorageError."""
    action: str = options.schedule_command
    request = _request(options)
    if action == "remove":
        found = remove_schedule(request)
    else:
        work = install_schedule if action == "install" else show_schedule
        found = work(read_config(options.config), request)
    if context.as_json:
        context.print_document("vbackup.schedule/1", {"action": action, **_document(found)})
    elif request.is_dry_run:
        _print_files(found)
    elif action == "list":
        _print_list(found)
    elif not context.is_quiet:
        _print_done(found, action)
    with context.reporting(steps=False) as reporter:
        for warning in found.warnings:
            reporter.warning(warning)
        if found.commands and not request.is_dry_run:
            left = " && ".join(map(shlex.join, found.commands))
            reporter.warning(f"systemd does not run here, or did not do it. Where it runs, give it: {left}")
    return Status.DONE


def _request(options: argparse.Namespace) -> ScheduleRequest:
    return ScheduleRequest(
        jobs=tuple(options.words),
        command=_program(options),
        config=None if options.config is None else Path(options.config),
        root=options.root,
        is_user=options.user,
        way=None if options.way is None else ScheduleWay(options.way),
        is_dry_run=getattr(options, "dry_run", False),
    )


def _program(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the words that start vbackup as this one was started. Raises UsageError."""
    if options.program is not None:
        if not options.program.is_absolute():
            raise UsageError(f"--program {options.program} is no absolute path.")
        return (os.fspath(options.program),)
    if options.root != Path("/"):
        return (os.fspath(_PACKAGED),)
    if Path(sys.argv[0]).name == "__main__.py":
        return (sys.executable, "-m", "vbackup")
    found = shutil.which(sys.argv[0])
    return (os.fspath(Path(found).absolute() if found else _PACKAGED),)


def _print_done(found: Schedule, action: str) -> None:
    for job in found.jobs:
        changed = any(file.changed for file in job.files)
        if action == "remove":
            done = "runs by itself no more." if changed else "was not installed."
        else:
            when = "" if job.next_run is None else f", next at {output.local_minute(job.next_run)}"
            done = f"runs by itself{when}{'' if changed else ' (as before)'}."
        print(output.plain(f"{job.name}: {done}"))
    if not found.jobs:
        print("Nothing was installed.")
    _print_exposure(found)


def _print_list(found: Schedule) -> None:
    if not found.jobs:
        print("No jobs.")
        return
    output.table(("JOB", "BY", "NEXT RUN", "TIMER", "STATE"), [_row(job, found.way) for job in found.jobs])
    _print_exposure(found)


def _row(job: ScheduledJob, way: ScheduleWay) -> tuple[str, ...]:
    is_there = job.state not in (ScheduleState.ABSENT, ScheduleState.FOREIGN)
    timer = {None: _NONE, True: "active", False: "not active" if is_there else _NONE}[job.is_active]
    next_run = _NONE if job.next_run is None else output.local_minute(job.next_run)
    return (job.name, way.value if is_there else _NONE, next_run, timer, _STATES[job.state])


def _print_exposure(found: Schedule) -> None:
    if found.exposure is not None:
        print(f"Exposure of the service, as systemd-analyze rates it: {found.exposure}.")


def _print_files(found: Schedule) -> None:
    """Print all files that would change, each with its path above it."""
    for number, file in enumerate(_changed(found)):
        print(f"{chr(10) if number else ''}# {output.plain(os.fspath(file.path))}")
        print(file.content.rstrip("\n"))
    for command in found.commands:
        print(f"\n# {shlex.join(command)}")


def _changed(found: Schedule) -> Sequence[ScheduledFile]:
    return list({file.path: file for job in found.jobs for file in job.files if file.changed}.values())


def _document(found: Schedule) -> dict[str, Any]:
    return {
        "by": found.way.value,
        "directory": os.fspath(found.directory),
        "jobs": [
            {
                "job": job.name,
                "state": job.state.value,
                "next_run": None if job.next_run is None else job.next_run.isoformat(),
                "active": job.is_active,
                "files": [
                    {
                        "path": os.fspath(file.path),
                        "state": file.state.value,
                        "changed": file.changed,
                        "content": file.content,
                    }
                    for file in job.files
                ],
            }
            for job in found.jobs
        ],
        "exposure": found.exposure,
        "warnings": list(found.warnings),
        "commands": [list(command) for command in found.commands],
    }
