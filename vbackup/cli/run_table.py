"""Print what became of a run: one table of its steps, with its domains below the backup."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from vbackup.api import Config, Run, RunDomain, RunOutcome, RunStep, StepKind
from vbackup.cli import output

OUTCOMES = {
    RunOutcome.DONE: "done",
    RunOutcome.SOME_FAILED: "partly failed",
    RunOutcome.FAILED: "failed",
    RunOutcome.SKIPPED: "skipped",
    RunOutcome.INTERRUPTED: "interrupted",
    RunOutcome.RUNNING: "running",
}
#: The most faults of a step that are printed.
_MAX_FAULTS = 20


def print_run(run: Run) -> None:
    """Print a run."""
    output.table(("STEP", "TIME", "RESULT"), list(_rows(run)))
    for sentence in run.unusual:
        output.labelled("Unusual: ", sentence)
    for sentence in run.notices:
        output.labelled("Not told: ", sentence)
    print(output.plain(_summary(run)))


def failure(run: Run, config: Config) -> str:
    """Return the last sentence of a run of the configuration that did not succeed."""
    if run.outcome is RunOutcome.INTERRUPTED:
        job = config.jobs.get(run.job)
        if job is None or job.calendar is None or run.is_partial:
            return f"Job {run.job} was interrupted; run the same command again."
        command = shlex.join(("vbackup", "run", "--due", *config.given))
        return f"Job {run.job} was interrupted; '{command}' makes up for it."
    failed = [step for step in run.steps if step.outcome in (RunOutcome.FAILED, RunOutcome.SOME_FAILED)]
    begun = [step for step in run.steps if step.outcome is not RunOutcome.SKIPPED]
    which = ", ".join(_name(step) for step in failed)
    return f"Job {run.job}: {len(failed)} of {len(begun)} steps failed: {which}."


def _rows(run: Run) -> Iterator[tuple[str, str, str]]:
    for step in run.steps:
        took = "-" if step.duration_s is None else f"{step.duration_s:.1f} s"
        yield (_name(step), took, _result(step))
        of_domains = {one.fault.message for one in run.domains if one.fault is not None}
        if step.kind is StepKind.BACKUP:
            for domain in run.domains:
                yield (f"  {_label(domain)}", "", _of_domain(domain))
        others = [fault for fault in step.faults if step.kind is not StepKind.BACKUP or fault.message not in of_domains]
        for fault in others[:_MAX_FAULTS]:
            yield (f"  {fault.domain}" if fault.domain else "", "", fault.message)
        if len(others) > _MAX_FAULTS:
            yield ("", "", f"and {len(others) - _MAX_FAULTS} more; --json lists all")


def _name(step: RunStep) -> str:
    return step.kind.value if step.target is None else f"{step.kind.value} {step.target}"


def _label(domain: RunDomain) -> str:
    return domain.name if domain.host is None else f"{domain.host}/{domain.name}"


def _result(step: RunStep) -> str:
    parts = [step.summary] if step.summary else []
    if step.outcome is not RunOutcome.DONE or not parts:
        parts.insert(0, OUTCOMES[step.outcome])
    if step.reason is not None:
        parts.append(step.reason)
    return ": ".join(parts[:2]) if step.outcome is RunOutcome.SKIPPED else "; ".join(parts)


def _of_domain(domain: RunDomain) -> str:
    if domain.fault is not None:
        return f"failed: {domain.fault.message}"
    unusual = f"; unusual: {'; '.join(domain.unusual)}" if domain.unusual else ""
    return f"{domain.level}, {output.size(domain.size_bytes or 0)}: {domain.backup}{unusual}"


def _summary(run: Run) -> str:
    took = "" if run.ended is None else f" in {(run.ended - run.started).total_seconds():.1f} s"
    backed = sum(one.outcome is RunOutcome.DONE for one in run.domains)
    domains = f": {backed} of {len(run.domains)} domains backed up" if run.domains else ""
    return f"Job {run.job} {OUTCOMES[run.outcome]}{took}{domains}."
