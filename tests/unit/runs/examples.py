"""Runs for tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

from vbackup.runs.record import DomainResult, Fault, Outcome, Run, Step, StepKind

STARTED = datetime(2026, 11, 30, 1, 0, 2, 250000, tzinfo=timezone.utc)
FAULT = Fault("DOMAIN_NOT_FOUND", 4, "No domain 'db' at qemu:///system.", "db")


def run(*, job: str = "nightly", started: datetime = STARTED, outcome: Outcome = Outcome.SOME_FAILED) -> Run:
    """A run of which one domain of two failed, with every member."""
    steps = (
        Step(
            StepKind.BACKUP,
            Outcome.SOME_FAILED,
            started,
            12.5,
            3,
            faults=(FAULT,),
            warnings=("web: The guest was not frozen.",),
            summary="1 of 2 domains, 1.2 GiB",
            document={"schema": "vbackup.backups/1"},
        ),
        Step(StepKind.COPY, Outcome.SKIPPED, None, None, None, target="offsite", reason="it was stopped"),
    )
    domains = (
        DomainResult(
            "web", "11111111-1111-4111-8111-111111111111", Outcome.DONE, "ID-full", "full", 12, unusual=("!",)
        ),
        DomainResult("db", None, Outcome.FAILED, fault=FAULT),
    )
    return Run(
        id=started.strftime("%Y%m%dT%H%M%SZ"),
        job=job,
        repository="/srv/backup",
        host="host",
        scheduled=started.replace(second=0, microsecond=0),
        started=started,
        ended=started + timedelta(seconds=13),
        outcome=outcome,
        status=3,
        steps=steps,
        domains=domains,
        unusual=("The clock jumped.",),
        notices=("ops: it could not be told.",),
    )


def running(*, job: str = "nightly", started: datetime = STARTED) -> Run:
    """A run that is making its backups."""
    steps = (Step(StepKind.BACKUP, Outcome.RUNNING, started, None, None),)
    empty = replace(run(job=job, started=started, outcome=Outcome.RUNNING), ended=None, status=0, domains=())
    return replace(empty, steps=steps, unusual=(), notices=())
