"""The steps of a run are done in their order, and none hides another: only what would say the same again is skipped."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID
from tests.unit.operations.run_examples import BUSY, GOOD, NOW, Site, backups, config, failed, job, kind_of, made
from vbackup.config.model import Job
from vbackup.errors import BusyError, DomainNotFoundError, StorageError, UsageError, VbackupError
from vbackup.operations import run_job
from vbackup.operations.run_children import Ended
from vbackup.operations.run_job import JobRun
from vbackup.runs.record import Outcome, Run, Step, StepKind

ALL = ["backup", "prune", "copy", "prune --at", "verify", "verify --from", "audit"]
OTHER = "22222222-2222-4222-8222-222222222222"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def do(site: Site, one: Job | None = None, others: Sequence[Job] = (), **settings: Any) -> Run:
    one = one or job()
    new = Run("R", one.name, str(site.path), "host", None, NOW, None, Outcome.RUNNING, 0)
    settings_ = config(site.path, one, *others)
    begun = site.store.begin(new)
    done = run_job.ended(JobRun(one, settings_, site.world, begun, **settings).do_steps(), site.clock(), site.stop)
    with suppress(StorageError):
        site.store.end(done)
    return done


def outcomes(run: Run) -> list[Outcome]:
    return [step.outcome for step in run.steps]


def by_kind(run: Run) -> dict[StepKind, Step]:
    return {step.kind: step for step in run.steps}


def test_a_good_run_does_everything_once(site: Site) -> None:
    run = do(site)
    assert site.steps.kinds == ALL
    assert (run.outcome, run.status, outcomes(run)) == (Outcome.DONE, 0, [Outcome.DONE] * 7)
    assert [one.name for one in run.domains] == ["web"]
    assert [step.target for step in run.steps] == [None, None, "offsite", "offsite", None, "offsite", None]
    assert site.reporter.steps == [
        "Job nightly: backing up.",
        "Job nightly: removing old backups.",
        "Job nightly: copying to offsite.",
        "Job nightly: removing old copies at offsite.",
        "Job nightly: verifying.",
        "Job nightly: verifying copies at offsite.",
        "Job nightly: auditing.",
    ]
    assert len(list(site.path.glob("config-*.toml"))) == 1


def test_every_step_is_on_record_while_it_is_done(site: Site) -> None:
    seen = []

    def look(_argv: object, _stop: object) -> Ended:
        current = site.store.current("nightly")
        assert current is not None
        seen.append([(step.kind, step.outcome) for step in current.steps])
        return Ended(0, GOOD["prune"])

    site.steps.answers["prune"] = look
    do(site)
    assert seen == [[(StepKind.BACKUP, Outcome.DONE), (StepKind.PRUNE, Outcome.RUNNING)]]


def test_a_step_that_fails_hides_no_other(site: Site) -> None:
    site.steps.answers = {"prune": BUSY, "verify": Ended(6, GOOD["verify"], ("1 damaged",))}
    run = do(site)
    assert site.steps.kinds == ALL
    assert (run.outcome, run.status) == (Outcome.SOME_FAILED, 3)
    assert {kind for kind, step in by_kind(run).items() if step.faults} == {StepKind.PRUNE, StepKind.VERIFY}


def test_only_domains_that_were_backed_up_are_audited(site: Site) -> None:
    gone = DomainNotFoundError("db-1", "there", "look elsewhere")
    site.steps.answers["backup"] = Ended(3, backups(made(), ("db-1", gone)))
    run = do(site)
    assert [argv[-1] for argv in site.steps.argvs if argv[0] == "audit"] == [f"--domain={UUID}"]
    site.steps.answers["backup"] = failed(gone)
    assert by_kind(do(site))[StepKind.AUDIT].reason == "no domain was backed up"
    assert (run.outcome, run.status) == (Outcome.SOME_FAILED, 3)


def test_without_a_backup_at_all_there_is_nothing_more_to_do(site: Site) -> None:
    shutil.rmtree(site.path / UUID)
    site.steps.answers["backup"] = BUSY
    run = do(site)
    assert site.steps.kinds == ["backup"]
    assert (run.outcome, run.status) == (Outcome.FAILED, 8)
    assert by_kind(run)[StepKind.PRUNE].reason == "the repository has no backups of the job yet"
    assert by_kind(run)[StepKind.COPY_PRUNE].reason == "nothing was copied to offsite"


@pytest.mark.parametrize("lost_before", ["backup", "copy"])
def test_a_repository_that_is_lost_is_told_once(site: Site, lost_before: str) -> None:
    def lose(*_of_step: object) -> Ended:
        site.path.rename(site.directory / "gone")
        return Ended(0, GOOD["prune"])

    if lost_before == "backup":
        lose()
    else:
        site.steps.answers["prune"] = lose
    run = do(site)
    faults = [fault for step in run.steps for fault in step.faults]
    assert [fault.status for fault in faults] == [7]
    assert "is the disk mounted?" in faults[0].message
    number = 0 if lost_before == "backup" else 2
    assert outcomes(run)[number] is Outcome.FAILED
    assert outcomes(run)[number + 1 :] == [Outcome.SKIPPED] * (6 - number)
    assert {step.reason for step in run.steps[number + 1 :]} == {f"the repository {site.path} cannot be opened"}
    assert run.status == 7


def test_a_target_that_cannot_be_reached_is_told_once(site: Site) -> None:
    site.steps.answers["copy"] = failed(BusyError("Somebody else copies."))
    run = do(site)
    assert site.steps.kinds == ["backup", "prune", "copy", "verify", "audit"]
    steps = by_kind(run)
    assert steps[StepKind.COPY_PRUNE].reason == steps[StepKind.COPY_VERIFY].reason == "nothing was copied to offsite"
    assert run.status == 8


def test_a_fault_of_the_configuration_runs_nothing_and_has_its_place(site: Site) -> None:
    site.steps.answers["backup"] = failed(UsageError("The pattern 'x*' matches no domain."))
    run = do(site)
    assert site.steps.kinds == ["backup"]
    assert run.status == 2
    assert run.steps[0].faults[0].message.startswith("/etc/vbackup/vbackup.toml:12: The pattern 'x*' matches")


def test_a_signal_ends_the_run_after_its_step(site: Site) -> None:
    def stopped(*_of_step: object) -> Ended:
        site.stop.request(signal.SIGTERM)
        return Ended(143, None)

    site.steps.answers["prune"] = stopped
    run = do(site)
    assert site.steps.kinds == ["backup", "prune"]
    assert (run.outcome, run.status) == (Outcome.INTERRUPTED, 143)
    assert outcomes(run) == [Outcome.DONE, Outcome.INTERRUPTED, *[Outcome.SKIPPED] * 5]
    assert {step.reason for step in run.steps[2:]} == {"the run was stopped"}


def test_while_the_time_is_in_doubt_nothing_is_removed(site: Site) -> None:
    run = do(site, jump="The clock jumped.")
    assert site.steps.kinds == ["backup", "copy", "verify", "verify --from", "audit"]
    assert by_kind(run)[StepKind.PRUNE].reason == "The clock jumped. Nothing is removed while the time is in doubt."
    assert run.outcome is Outcome.DONE


def test_a_backup_of_the_future_is_unusual(site: Site) -> None:
    """Retention keeps it, and does not count it (vbackup.repository.retention)."""
    (site.path / UUID / "20271130T010000Z-full").mkdir()
    run = do(site)
    assert site.steps.kinds == ALL
    [sentence] = run.unusual
    assert sentence.startswith("Backup 20271130T010000Z-full of domain web is of the future")
    assert site.reporter.warnings == [sentence]
    site.clock.forward(days=366)
    assert do(site).unusual == ()


def test_a_domain_of_a_backup_of_the_future_is_named_though_the_run_is_not_of_it(site: Site) -> None:
    (site.path / OTHER / "20271130T010000Z-full").mkdir(parents=True)
    (site.path / OTHER / "domain.json").write_text('{"names": ["db"]}')
    [sentence] = do(site, job(domains=(), exclude=())).unusual
    assert sentence.startswith("Backup 20271130T010000Z-full of domain db is of the future")


def test_domains_of_others_are_left_alone(site: Site) -> None:
    (site.path / OTHER).mkdir()
    (site.path / OTHER / "domain.json").write_text('{"names": ["not-ours"]}')
    do(site)
    assert [argv[-2:] for argv in site.steps.argvs if argv[0] == "prune" and "--at=" not in str(argv)] == [("--", UUID)]
    site.steps.argvs.clear()
    do(site, job(domains=(), exclude=()))
    assert [argv[-1] for argv in site.steps.argvs if argv[0] == "copy"] == ["--all"]


def test_a_domain_that_was_backed_up_belongs_also_under_a_new_name(site: Site) -> None:
    (site.path / OTHER).mkdir()
    (site.path / OTHER / "domain.json").write_text('{"names": ["old name"]}')
    site.steps.answers["backup"] = Ended(0, backups(made(), made("db-1", OTHER)))
    do(site)
    assert next(argv[-2:] for argv in site.steps.argvs if argv[0] == "verify") == (OTHER, UUID)


def test_what_two_jobs_contest_is_not_removed_and_that_is_said(site: Site) -> None:
    hourly = job("hourly", domains=("web",), exclude=(), options={"prune": {"keep-hourly": "48"}})
    skipped = by_kind(do(site, job(domains=(), exclude=()), [hourly]))[StepKind.PRUNE]
    assert skipped.outcome is Outcome.SKIPPED
    assert "No backup of domain web is removed: it belongs to jobs nightly and hourly" in (skipped.reason or "")
    assert "prune" not in site.steps.kinds
    (site.path / OTHER).mkdir()
    (site.path / OTHER / "domain.json").write_text('{"names": ["db-1"]}')
    pruned = by_kind(do(site, job(domains=(), exclude=()), [hourly]))[StepKind.PRUNE]
    assert (pruned.outcome, pruned.warnings) == (Outcome.DONE, (skipped.reason,))
    [argv] = [one for one in site.steps.argvs if kind_of(one) == "prune"]
    assert argv[-2:] == ("--", OTHER)


def test_a_bug_in_a_step_is_its_fault_alone(site: Site) -> None:
    def broken(*_of_step: object) -> Ended:
        raise KeyError("surprise")

    site.steps.answers["copy"] = broken
    run = do(site)
    assert "Unexpected KeyError: 'surprise'" in by_kind(run)[StepKind.COPY].faults[0].message
    assert by_kind(run)[StepKind.VERIFY].outcome is Outcome.DONE
    assert run.status == 1


def test_a_document_of_another_version_is_the_fault_of_its_step_alone(site: Site) -> None:
    site.steps.answers["copy"] = Ended(0, {"schema": "vbackup.copy/1", "domains": [{"of": "a newer vbackup"}]})
    done = do(site)
    assert by_kind(done)[StepKind.COPY].outcome is Outcome.FAILED
    assert "Unexpected KeyError" in by_kind(done)[StepKind.COPY].faults[0].message
    assert outcomes(done).count(Outcome.DONE) == 4
    assert done.status == 1


def test_a_record_that_cannot_be_written_stops_no_backup(site: Site) -> None:
    def full(*_of_step: object) -> Ended:
        shutil.rmtree(site.store.state)
        site.store.state.write_text("no directory")
        return Ended(0, GOOD["backup"])

    site.steps.answers["backup"] = full
    run = do(site)
    assert site.steps.kinds == ALL
    [sentence] = run.unusual
    assert sentence.startswith("The record of the run could not be written: Cannot write ")


@pytest.mark.parametrize(
    ("outcomes_", "outcome"),
    [
        ([Outcome.DONE, Outcome.SKIPPED], Outcome.DONE),
        ([Outcome.FAILED, Outcome.SKIPPED], Outcome.FAILED),
        ([Outcome.FAILED, Outcome.DONE], Outcome.SOME_FAILED),
        ([Outcome.SOME_FAILED], Outcome.SOME_FAILED),
    ],
)
def test_outcome_of_a_run(site: Site, outcomes_: list[Outcome], outcome: Outcome) -> None:
    steps = tuple(Step(StepKind.BACKUP, one, NOW, 1.0, 0) for one in outcomes_)
    run = Run("R", "nightly", "/r", "host", None, NOW, None, Outcome.RUNNING, 0, steps)
    assert run_job.ended(run, NOW, site.stop).outcome is outcome
    assert run_job.ended(replace(run, steps=()), NOW, site.stop).ended == NOW


def test_report_on_a_run_that_failed_makes_it_no_better(site: Site) -> None:
    steps = (
        Step(StepKind.BACKUP, Outcome.FAILED, NOW, 1.0, 7),
        Step(StepKind.METRICS, Outcome.DONE, NOW, 1.0, 0),
        Step(StepKind.REPORT, Outcome.DONE, NOW, 1.0, 0),
    )
    run = Run("R", "nightly", "/r", "host", None, NOW, None, Outcome.RUNNING, 0, steps)
    assert run_job.ended(run, NOW, site.stop).outcome is Outcome.FAILED


def test_a_job_needs_no_step_but_the_backup(site: Site) -> None:
    run = do(site, job(options={}, copy_to=()))
    assert (site.steps.kinds, run.status) == (["backup"], 0)


def test_the_configuration_that_cannot_be_kept_is_no_fault_of_the_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_more: object) -> bool:
        raise VbackupError("no")

    monkeypatch.setattr(run_job.keeping, "keep", refuse)
    assert do(site).status == 0
