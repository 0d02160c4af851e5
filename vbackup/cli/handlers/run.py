"""``vbackup run``: run jobs of the configuration, or say what a run would do."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vbackup.api import (
    Config,
    ConfiguredJob,
    PlannedRun,
    Ran,
    RunRequest,
    documents,
    plan_runs,
    read_config,
    run_jobs,
    tell_not_run,
)
from vbackup.cli import journal, output, run_table
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError, error_document

#: The options that are of one job.
_OF_ONE = ("domains", "exclude", "copy_to", "notify")


def run(options: argparse.Namespace, context: Context) -> int:
    """Run the jobs, and print what became of them."""
    if options.due and options.accept_clock:
        raise UsageError(
            "--accept-clock is for somebody who has looked at the clock, and no timer has: leave out --due."
        )
    try:
        return _run(options, context)
    except UsageError as err:
        # What a timer calls, nobody sees: a configuration that was broken since must not be a night without a word.
        if options.due and not (options.list or options.dry_run):
            with context.reporting(steps=False) as reporter:
                tell_not_run(err, options.jobs, path=options.config, reporter=reporter)
        raise


def _run(options: argparse.Namespace, context: Context) -> int:
    config = read_config(options.config)
    changed = _changed(options, context, config)
    if options.list or options.dry_run:
        planned = plan_runs(config, options.jobs, changed=changed)
        if context.as_json:
            name = "vbackup.jobs/1" if options.list else "vbackup.runplan/1"
            context.print_document(name, {"jobs": [_planned(one, with_steps=options.dry_run) for one in planned]})
        elif options.list:
            _print_list(planned)
        else:
            _print_plan(planned, only_due=options.due)
        return Status.DONE
    request = RunRequest(tuple(options.jobs), only_due=options.due, changed=changed, accepts_clock=options.accept_clock)
    if options.wait_lock is not None:
        request = replace(request, wait_s=options.wait_lock)
    with context.reporting() as reporter:
        ran = run_jobs(config, request, reporter=reporter, stop=context.stop)
    if context.as_json:
        context.print_document("vbackup.runs/1", _document(ran))
    else:
        _print(ran, context, config, only_due=options.due)
    return ran.status


def _changed(options: argparse.Namespace, context: Context, config: Config) -> tuple[ConfiguredJob, ...]:
    """Return the job with what the options change of it; none if they change nothing. Raises UsageError."""
    changes: dict[str, Any] = {name: tuple(value) for name in _OF_ONE if (value := getattr(options, name))}
    if options.window is not None:
        changes["window"] = options.window[0]
    if options.no_copy:
        changes["copy_to"] = ()
    if options.no_notify:
        changes["notify"] = ()
    if context.uris:
        changes |= {"connect": tuple(context.uris), "hosts": None}
    if not changes:
        return ()
    if len(options.jobs) != 1:
        raise UsageError("Options that change a job are for one: name one job.")
    [name] = options.jobs
    if name not in config.jobs:
        return ()  # run_jobs says so
    job = config.jobs[name]
    _refuse_unknown("target", changes.get("copy_to", ()), config.targets)
    _refuse_unknown("notifier", changes.get("notify", ()), config.notifiers)
    if "exclude" in changes:
        changes["exclude"] = (*job.exclude, *changes["exclude"])
    return (replace(job, **changes),)


def _refuse_unknown(kind: str, words: Sequence[str], known: Any) -> None:
    from vbackup import names

    for word in words:
        if word not in known:
            hint = names.closest(word, known) or (f"; there are: {', '.join(known)}" if known else "; it has none")
            raise UsageError(f"The configuration has no {kind} {word!r}{hint}.")


# what became of it


def _document(ran: Ran) -> dict[str, Any]:
    return {
        "runs": [documents.run(one) for one in ran.runs],
        "not_run": [
            {
                "job": one.job,
                "reason": one.reason,
                "error": None if one.error is None else error_document(one.error),
            }
            for one in ran.not_run
        ],
        "status": ran.status,
    }


def _print(ran: Ran, context: Context, config: Config, *, only_due: bool) -> None:
    shown = [one for one in ran.runs if one.status or not context.is_quiet]
    for number, one in enumerate(shown):
        if number:
            print()
        run_table.print_run(one)
    for missed in ran.not_run:
        if missed.error is not None:
            journal.failed(output.plain(missed.reason), job=missed.job, code=missed.error.code)
        elif not context.is_quiet and not (only_due and ran.runs):
            print(output.plain(missed.reason))
    for one in ran.runs:
        if one.status:
            journal.failed(output.plain(run_table.failure(one, config)), job=one.job, status=str(one.status))


# what would be done


def _planned(one: PlannedRun, *, with_steps: bool) -> dict[str, Any]:
    members = {
        "job": one.job.name,
        "repository": one.repository,
        "due": one.due.is_due,
        "reason": one.reason,
        "scheduled": _time(one.due.scheduled),
        "next": _time(one.next),
        "window_opens": _time(one.opens),
        "last": None if one.last is None else documents.run(one.last, with_details=False),
        "error": None if one.error is None else error_document(one.error),
    }
    if not with_steps:
        return members
    steps = [
        {"kind": step.kind.value, "target": step.target, "commands": [list(command) for command in step.commands]}
        for step in one.steps
    ]
    return {**members, "steps": steps}


def _time(moment: Any) -> str | None:
    return None if moment is None else documents.time(moment)


def _print_list(planned: Sequence[PlannedRun]) -> None:
    rows = [
        (
            one.job.name,
            one.repository,
            "-" if one.next is None else output.local_minute(one.next),
            *_last(one),
            "yes" if one.due.is_due else "no",
        )
        for one in planned
    ]
    output.table(("JOB", "REPOSITORY", "NEXT RUN", "LAST RUN", "RESULT", "DUE"), rows)


def _last(one: PlannedRun) -> tuple[str, str]:
    if one.last is None:
        return ("-", "never run")
    return (output.local_minute(one.last.started), run_table.OUTCOMES[one.last.outcome])


def _print_plan(planned: Sequence[PlannedRun], *, only_due: bool) -> None:
    for number, one in enumerate(planned):
        if number:
            print()
        print(output.plain(one.reason))
        if one.error is not None:
            print(output.plain(f"Its repository cannot be opened: {one.error}"))
        if only_due and not one.due.is_due:
            continue
        for step in one.steps:
            where = f" {step.target}" if step.target else ""
            print(output.plain(f"{step.kind.value}{where}:"))
            for command in step.commands:
                print(output.plain(f"    vbackup {shlex.join(command)}"))
            if not step.commands:
                print("    nothing: the repository has no backups of the job yet")
    print("Nothing was executed.")
