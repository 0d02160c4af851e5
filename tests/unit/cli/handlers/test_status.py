"""``vbackup status`` answers in its first line, on one screen of 80 columns, and by its exit status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit import builders
from tests.unit.builders import UUID
from tests.unit.overview import examples
from tests.unit.overview.examples import DAY, FAULT, HOUR, NIGHT, OTHER, domain, facts, glance, job, live, made, run
from vbackup import names
from vbackup.cli import overviews
from vbackup.config import documents as config_documents
from vbackup.model import Level
from vbackup.overview import assess
from vbackup.overview.facts import DomainFacts, Facts, HostFacts
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Verdict
from vbackup.runs.record import DomainResult, Outcome, Step, StepKind

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.conftest import Outcome as Printed

SCREEN = (80, 24)
JOB = '[job.nightly]\nrepository = "main"\nat = ["01:00"]\nmax-age = "26h"\n'
Show = Callable[..., "Printed"]


@pytest.fixture
def show(command: Command, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Run ``vbackup status`` on facts."""

    def shown(known: Facts, *arguments: str, status: int) -> Printed:
        monkeypatch.setattr(overviews, "found", lambda *_: assess.overview(known))
        return command("status", *arguments, status=status)

    return shown


def guests(count: int, age: timedelta = 8 * HOUR) -> tuple[DomainFacts, ...]:
    return tuple(
        domain(glance(made(age), uuid=f"f0000000-0000-4000-8000-{number:012d}", name=f"guest{number:03d}"))
        for number in range(count)
    )


def many(count: int, *others: DomainFacts) -> Facts:
    offline = replace(job(), hosts=(HostFacts(None, None),))
    return facts(jobs=(offline,), repositories=(examples.repository(*guests(count), *others),))


def test_all_is_well(show: Show) -> None:
    seen = glance(made(32 * HOUR), made(sequence=2), verified=NIGHT - DAY, verdict=Verdict.GOOD, chain_images=2)
    lines = show(facts(repositories=(examples.repository(domain(seen)),)), status=0).stdout.splitlines()
    assert lines[0] == "Everything is backed up: 1 domain, the oldest 8 h ago."
    assert lines[2].split() == ["JOB", "LAST", "RUN", "RESULT", "LAST", "GOOD", "RUN", "NEXT", "RUN"]
    assert lines[3].split()[:1] + lines[3].split()[3:4] == ["nightly", "done"]
    assert lines[5].split() == ["DOMAIN", "AGE", "CHAIN", "VERIFIED", "CHANGES", "STATE"]
    assert lines[6].split() == ["web", "8", "h", "of", "26", "h", "2", "32", "h", "██", "ok"]
    assert lines[8].split()[0] == "REPOSITORY"
    assert lines[9].split() == ["main", "500.0", "GiB", "1000.0", "GiB", "8.0", "KiB", "-", "-"]


def test_what_is_not_backed_up_is_in_the_first_line_and_why_below(show: Show) -> None:
    lines = show(
        facts(
            jobs=(job(live(), live("new", OTHER), domains=()),),
            repositories=(examples.repository(domain(glance(made(30 * HOUR)))),),
        ),
        status=1,
    ).stdout.splitlines()
    assert lines[:3] == [
        "NOT everything is backed up: of 2 domains 1 never backed up, 1 overdue.",
        "  new: It was never backed up.",
        "  web: The newest backup is 30 h old; job nightly promises 26 h at most.",
    ]
    assert [line.split()[-1] for line in lines if line.startswith(("new", "web"))] == ["never", "overdue"]


def test_a_repository_that_cannot_be_read_leaves_the_answer_open(show: Show) -> None:
    unmounted = examples.repository(fault=FAULT, free_bytes=None, size_bytes=None)
    out = show(facts(repositories=(unmounted,)), status=1).stdout
    assert out.startswith("NOT KNOWN whether everything is backed up: main cannot be read.\n")
    assert f"  repository main: {FAULT.message}\n" in out
    assert "cannot be read" in out.splitlines()[-1]
    late = examples.repository(domain(glance(made(30 * HOUR))), name="other")
    both = facts(jobs=(job(live(), repository="other"),), repositories=(unmounted, late))
    first = show(both, status=1).stdout.splitlines()[0]
    assert first == "NOT everything is backed up: of 1 domain 1 overdue; main cannot be read."


def test_what_needs_attention_is_not_called_missing(show: Show) -> None:
    failed = run(outcome=Outcome.FAILED, status=7, steps=(Step(StepKind.COPY, Outcome.FAILED, NIGHT, 1.0, 7),))
    out = show(facts(jobs=(job(live(), runs=(failed,)),)), status=1).stdout
    assert out.startswith("All domains (1) are backed up, the oldest 8 h ago, but job nightly failed.\n")
    assert "job nightly: Its run of" in out


def test_where_nothing_is_to_be_done_that_is_the_answer(show: Show) -> None:
    assert show(facts(jobs=(), repositories=()), status=1).stdout.startswith("Nothing is to be backed up")
    empty = facts(jobs=(job(),), repositories=(examples.repository(),))
    assert show(empty, status=1).stdout.startswith("No domain is known that is to be backed up.\n")


def test_200_domains_are_one_screen_that_shows_what_is_wrong(show: Show) -> None:
    late = domain(glance(made(30 * HOUR), uuid=UUID, name="late"))
    out = show(many(199, late), status=1).stdout
    lines = out.splitlines()
    assert len(lines) <= SCREEN[1]
    assert max(map(len, lines)) <= SCREEN[0]
    assert lines[0] == "NOT everything is backed up: of 200 domains 1 overdue."
    assert "guest" not in out
    assert "199 other domains are backed up as they should be; --all shows them." in lines
    assert "199 domains are" not in show(many(199), "--all", status=0).stdout


def test_200_domains_that_are_wrong_are_cut_too(show: Show) -> None:
    out = show(
        facts(jobs=(job(error="silence"),), repositories=(examples.repository(*guests(200, 9 * DAY)),)), status=1
    )
    lines = out.stdout.splitlines()
    assert "  and 194 more; --all shows them." in lines
    assert len(lines) <= SCREEN[1] + 5
    assert max(map(len, lines)) <= SCREEN[0]
    assert "190 other domains; --all shows them." in lines


def test_all_shows_all_that_is_known(show: Show) -> None:
    newest = made()
    seen = glance(newest, verified=NIGHT, verdict=Verdict.GOOD)
    copied = examples.repository(
        domain(seen, offsite=frozenset((newest.id,))), targets=frozenset(("offsite",)), growth_bytes_day=-1024.0
    )
    out = show(facts(jobs=(job(live(), copy_to=("offsite",)),), repositories=(copied,)), "--all", status=0).stdout
    row = next(line for line in out.splitlines() if line.startswith("web")).split()
    assert row[:3] == ["web", "main", "nightly"]
    assert "good" in row
    assert "offsite 8 h" in out
    assert "-1.0 KiB" in out
    short = show(facts(jobs=(job(live(), copy_to=("offsite",)),), repositories=(copied,)), status=0).stdout
    assert "COPIED" in short


def test_states_have_words(show: Show) -> None:
    result = DomainResult("web", UUID, Outcome.FAILED, fault=FAULT)

    def state(known: Facts) -> str:
        out = show(known, status=1 if assess.overview(known).health else 0).stdout
        return next(line for line in out.splitlines() if line.startswith("web ")).split("  ")[-1]

    def seen(**changes: object) -> Facts:
        return facts(repositories=(examples.repository(domain(replace(glance(made()), **changes))),))  # type: ignore[arg-type]

    assert state(facts(jobs=(job(),))) == "gone"
    assert state(seen(damaged=("a",))) == "damaged"
    assert state(seen(broken="Backup a is broken: it is gone.")) == "broken"
    assert state(seen(unusual=("Disk vda: much.",))) == "unusual"
    assert state(facts(jobs=(job(live(), runs=(run(domains=(result,)),)),))) == "failed"
    assert state(facts(jobs=(job(live(), domains=("mail*",)),))) == "no job"
    unmounted = examples.repository(domain(), fault=FAULT, free_bytes=None, size_bytes=None, last_read=NIGHT)
    assert state(facts(repositories=(unmounted,))) == "not known"


def test_quiet_prints_nothing_of_a_success(show: Show) -> None:
    assert show(facts(), "-q", status=0).stdout == ""
    assert show(facts(jobs=(job(live(), runs=()),)), "-q", status=1).stdout.startswith("All domains (1) are backed up")


def test_warnings_are_on_standard_error_and_in_the_exit_status(show: Show) -> None:
    outcome = show(facts(warnings=("A host is silent.",)), status=1)
    assert outcome.stdout.startswith("All domains (1) are backed up, the oldest 8 h ago, but something needs attention")
    assert outcome.stderr == "vbackup: warning: A host is silent.\n"


@pytest.mark.parametrize(
    ("known", "status"),
    [
        (facts(), 0),
        (facts(jobs=(job(live(), runs=()),)), 1),
        (facts(jobs=(job(live(), live("new", OTHER)),)), 2),
        (facts(jobs=(), repositories=()), 3),
    ],
)
def test_nagios_gets_a_line_and_its_status(show: Show, known: Facts, status: int) -> None:
    out = show(known, "--nagios", status=status).stdout
    assert out.count("\n") == 1
    assert out.startswith(f"VBACKUP {('OK', 'WARNING', 'CRITICAL', 'UNKNOWN')[status]} - ")


def test_for_nagios_whatever_goes_wrong_is_unknown(command: Command, tmp_path: Path) -> None:
    assert command("status", "--nagios", "--bogus", status=3).stdout.startswith("VBACKUP UNKNOWN - Unrecognized")
    assert command("status", "--nagios", "-r", tmp_path, "job", status=3).stdout.startswith("VBACKUP UNKNOWN - Jobs")
    assert command("status", "--nagios", "--json", "-r", tmp_path, status=3).stdout.startswith("VBACKUP UNKNOWN - ")


@pytest.fixture
def config(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of this user."""
    place = tmp_path / "etc"
    place.mkdir(mode=0o700)
    monkeypatch.setattr(config_documents, "directory", lambda *_: place)
    monkeypatch.setenv("VBACKUP_STATE", str(tmp_path / "state"))
    path = place / "vbackup.toml"
    path.write_text(f'[repository.main]\npath = "{repository}"\n' + JOB)
    path.chmod(0o600)
    return path


def commit(repository: Path) -> None:
    now = datetime.now(timezone.utc)
    backup = builders.backup(1, id=names.backup_id(now, Level.FULL), time=now)
    builders.commit(Repository.open(repository), backup)


def test_the_configuration_of_this_user_is_what_is_asked(command: Command, config: Path, repository: Path) -> None:
    commit(repository)
    document = command("status", "--offline", "--json", status=1).document
    assert document["schema"] == "vbackup.status/1"
    assert [one["name"] for one in document["jobs"]] == ["nightly"]
    assert [(one["name"], one["job"]) for one in document["domains"]] == [("web", "nightly")]
    assert command("status", "--offline", "nightly", status=1).stdout.startswith("All domains (1) are backed up")
    assert "No job 'daily'" in command("status", "--offline", "daily", status=2).stderr
    assert config.exists()


def test_a_repository_of_the_environment_counts_where_there_is_no_configuration(
    command: Command, config: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(repository)
    monkeypatch.setenv("VBACKUP_REPOSITORY", str(repository))
    assert command("status", "--offline", "--json", status=1).document["jobs"]
    config.unlink()
    assert command("status", "--offline", "--json").document["jobs"] == []
    monkeypatch.delenv("VBACKUP_REPOSITORY")
    assert "vbackup:" in command("status", "--offline", status=2).stderr


def test_a_repository_that_is_given_takes_the_place_of_the_configuration(
    command: Command, config: Path, repository: Path
) -> None:
    commit(repository)
    assert config.exists()
    out = command("status", "-r", repository, "--max-age", "2h", "--offline").stdout
    assert out.startswith("Everything is backed up: 1 domain, the oldest 0 min ago.")
    assert "JOB" not in out
