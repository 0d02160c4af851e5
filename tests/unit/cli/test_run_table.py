"""One table has the steps and the domains of a run, and each fault once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.operations.run_examples import config, job
from tests.unit.runs.examples import FAULT, run
from vbackup.cli import run_table
from vbackup.runs.record import Fault, Outcome, Step, StepKind

CONFIG = config(Path("/repository"), job())


def printed(capsys: pytest.CaptureFixture[str], *steps: Step) -> list[str]:
    one = run()
    run_table.print_run(replace(one, steps=(*one.steps, *steps)))
    return capsys.readouterr().out.splitlines()


def test_table_has_steps_domains_and_what_is_unusual(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys) == [
        "STEP          TIME    RESULT",
        "backup        12.5 s  partly failed; 1 of 2 domains, 1.2 GiB",
        "  web                 full, 12 B: ID-full; unusual: !",
        f"  db                  failed: {FAULT.message}",
        "copy offsite  -       skipped: it was stopped",
        "Unusual: The clock jumped.",
        "Not told: ops: it could not be told.",
        "Job nightly partly failed in 13.0 s: 1 of 2 domains backed up.",
    ]


def test_faults_of_other_steps_follow_them_and_many_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    faults = tuple(Fault("BUSY", 8, f"Fault {number}.", "web") for number in range(25))
    lines = printed(capsys, Step(StepKind.VERIFY, Outcome.FAILED, None, 1.0, 6, faults=faults))
    at = lines.index("verify        1.0 s   failed")
    assert lines[at + 1] == "  web                 Fault 0."
    assert lines[at + 21] == "                      and 5 more; --json lists all"


def test_host_is_named_if_there_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    one = run()
    run_table.print_run(replace(one, domains=tuple(replace(domain, host="hv1") for domain in one.domains)))
    assert "  hv1/web" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        (Outcome.SOME_FAILED, "Job nightly: 1 of 1 steps failed: backup."),
        (Outcome.INTERRUPTED, "Job nightly was interrupted; 'vbackup run --due' makes up for it."),
    ],
)
def test_last_sentence_of_a_failure(outcome: Outcome, sentence: str) -> None:
    assert run_table.failure(run(outcome=outcome), CONFIG) == sentence


def test_what_makes_up_for_an_interruption_is_true() -> None:
    interrupted = run(outcome=Outcome.INTERRUPTED)
    given = replace(CONFIG, given=("--config", "/my own.toml"))
    assert "'vbackup run --due --config '/my own.toml''" in run_table.failure(interrupted, given)
    by_hand = config(Path("/repository"), job(calendar=None))
    for one, settings in ((interrupted, by_hand), (replace(interrupted, is_partial=True), CONFIG)):
        assert run_table.failure(one, settings) == "Job nightly was interrupted; run the same command again."
