"""Each step is the command line that a person would give, and no job touches the domains of another."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.unit.operations.run_examples import config, job
from vbackup.cli import parser
from vbackup.operations import run_commands
from vbackup.operations.run_commands import Argv, Planned
from vbackup.runs.record import StepKind

REPOSITORY = Path("/srv/backup")
CONFIG = config(REPOSITORY)
JOB = job()
IN, AT = "--repository=/srv/backup", "--connect=qemu:///system"
UNTIL = datetime(2026, 11, 30, 6, tzinfo=timezone.utc)


def test_steps_are_those_of_the_configuration_in_their_order() -> None:
    assert run_commands.steps(JOB, CONFIG) == [
        Planned(StepKind.BACKUP),
        Planned(StepKind.PRUNE),
        Planned(StepKind.COPY, "offsite"),
        Planned(StepKind.COPY_PRUNE, "offsite"),
        Planned(StepKind.VERIFY),
        Planned(StepKind.COPY_VERIFY, "offsite"),
        Planned(StepKind.AUDIT),
    ]
    only = replace(JOB, copy_to=(), options={"prune": {"consolidate": "never"}})
    assert run_commands.steps(only, CONFIG) == [Planned(StepKind.BACKUP)]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            run_commands.backup(JOB, CONFIG, until=UNTIL),
            f"backup --speed=50M --strict {IN} --exclude=db-test --until={UNTIL.isoformat()} {AT} -- web db-*",
        ),
        (
            run_commands.backup(replace(JOB, domains=(), exclude=(), connect=(), hosts=Path("/h")), CONFIG),
            "backup --speed=50M --strict --repository=/srv/backup --all --hosts=/h",
        ),
        (
            run_commands.prune(JOB, CONFIG, ["u1", "u2"]),
            "prune --keep-last=3 --repository=/srv/backup --connect=qemu:///system -- u1 u2",
        ),
        (
            run_commands.prune(replace(JOB, connect=("a:///", "b:///")), CONFIG, None),
            "prune --keep-last=3 --repository=/srv/backup --all",
        ),
        (
            run_commands.verify(JOB, CONFIG, ["u1"]),
            "verify --sample=5% --repository=/srv/backup --connect=qemu:///system -- u1",
        ),
        (
            run_commands.copy(JOB, CONFIG, "offsite", ["u1"]),
            "copy --identity=/k --repository=/srv/backup --to=/mnt/offsite -- u1",
        ),
        (
            run_commands.copy_prune(JOB, CONFIG, "offsite", ["u1"]),
            "prune --identity=/k --keep-daily=9 --repository=/srv/backup --at=/mnt/offsite -- u1",
        ),
        (
            run_commands.copy_verify(JOB, CONFIG, "offsite", ["u1"]),
            "verify --identity=/k --repository=/srv/backup --from=/mnt/offsite -- u1",
        ),
        (
            run_commands.audit(JOB, CONFIG, "u1", None),
            "audit --sample=1 --repository=/srv/backup --connect=qemu:///system --domain=u1",
        ),
        (
            run_commands.audit(JOB, CONFIG, "u1", "b:///"),
            "audit --sample=1 --repository=/srv/backup --connect=b:/// --domain=u1",
        ),
    ],
)
def test_commands_are_valid_and_as_expected(argv: Argv, line: str) -> None:
    assert " ".join(argv) == line
    parser.parse(argv)


def test_a_domain_whose_name_is_like_an_option_is_a_domain() -> None:
    argv = run_commands.backup(replace(JOB, domains=("--json",), exclude=("-x",)), CONFIG)
    options = parser.parse(argv)
    assert (options.domains, options.exclude, options.json) == (["--json"], ["-x"], False)


def test_domains_of_another_job_do_not_belong() -> None:
    known = {"u1": "web", "u2": "db-1", "u3": "db-test", "u4": "other", "u5": "web-2"}
    assert run_commands.belonging(JOB, known) == ["u1", "u2"]
    assert run_commands.belonging(replace(JOB, domains=("U4",), exclude=()), known) == ["u4"]
    assert run_commands.belonging(replace(JOB, domains=()), known) == ["u1", "u2", "u4", "u5"]
    assert run_commands.has_all(replace(JOB, domains=(), exclude=()))
    assert not run_commands.has_all(replace(JOB, domains=()))


def test_a_domain_of_two_jobs_with_other_rules_is_contested() -> None:
    known = {"u1": "db-1", "u2": "web"}
    everything = replace(JOB, domains=(), exclude=())
    hourly = job("hourly", domains=("db-*",), exclude=(), options={"prune": {"keep-hourly": "48"}})
    both = config(REPOSITORY, everything, hourly)
    assert run_commands.contested(everything, both, known) == {"u1": "hourly"}
    assert run_commands.contested(hourly, both, {"u1": "db-1"}) == {"u1": "nightly"}
    for peaceful in (
        replace(hourly, options=everything.options),
        replace(hourly, options={}),
        replace(hourly, repository="other"),
        replace(hourly, domains=("x",)),
    ):
        assert run_commands.contested(everything, config(REPOSITORY, everything, peaceful), known) == {}
    assert run_commands.contested(replace(everything, options={"prune": {"max-chain": "5"}}), both, known) == {}
