"""A year of nights: with missed ones, failures and kills, there are the runs and backups that a model says.

Time is given by the test, and steps are executed in this process: the backup is a manifest, the prune is the real
command with the arguments of the configuration.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path

import pytest

from tests.unit.builders import UUID, commit
from tests.unit.builders import backup as a_backup
from tests.unit.operations.run_examples import Site, config, job, made
from vbackup import names
from vbackup.cli import main
from vbackup.config.calendar import Calendar
from vbackup.errors import NoSpaceError
from vbackup.model import Level
from vbackup.operations import run as operation
from vbackup.operations.run import RunRequest
from vbackup.operations.run_children import Ended
from vbackup.operations.run_commands import Argv
from vbackup.process import Process
from vbackup.repository.repository import Repository
from vbackup.runs.record import Outcome
from vbackup.stop import Stop

#: The gate has time for three months, and --long for a year.
DAYS = {"quarter": 92, "year": 365}
#: The rules, as the configuration has them, and for the model: how many, and what is one period.
RULES: dict[str, tuple[int, Callable[[date], object]]] = {
    "keep-daily": (7, lambda day: day),
    "keep-weekly": (4, lambda day: day.isocalendar()[:2]),
    "keep-monthly": (6, lambda day: (day.year, day.month)),
}


class Killed(BaseException):
    """The run is killed: nothing of it is done any more."""


@dataclass
class Model:
    """What there is to be: written without a look at how it is done."""

    days: list[date] = field(default_factory=list)  #: of the backups that are there, the oldest first
    outcomes: Counter[str] = field(default_factory=Counter)
    unusual: Counter[str] = field(default_factory=Counter)
    is_pending: bool = False  #: the last time has passed without a run that ended
    last: str = ""

    def call(self, hour: int, fate: str, day: date) -> None:
        """What a call of 'run --due' does on that day, if a run would have this fate."""
        if not self.is_pending:
            return
        if self.last == "killed":
            self.unusual["did not end"] += 1
        elif hour != 1 and self.last:
            self.unusual["was missed"] += 1
        self.last = fate
        self.outcomes[fate] += 1
        if fate == "killed":
            return
        self.is_pending = False
        if fate == "good":
            self.days.append(day)
        if self.days:
            self.days = sorted(kept(self.days))


def kept(days: Iterable[date]) -> set[date]:
    """The backups that the rules keep, as borg's documentation describes them: the newest of each period counts."""
    newest_first = sorted(days, reverse=True)
    chosen: set[date] = set()
    for count, period in RULES.values():
        newest_of = {period(day): day for day in sorted(days)}
        candidates = [day for day in newest_first if newest_of[period(day)] == day and day not in chosen]
        is_satisfied = len(candidates) >= count
        chosen.update(candidates[:count] if is_satisfied else [*candidates, newest_first[-1]])
    return chosen


@dataclass
class Steps:
    """Executes steps in this process."""

    site: Site
    capture: pytest.CaptureFixture[str]
    fate: str = "good"
    number: int = 0

    def __call__(self, argv: Argv, _reporter: object, _stop: Stop) -> Ended:
        if argv[0] != "backup":
            self.capture.readouterr()
            status = main([*argv[:1], "--json", *argv[1:]])
            return Ended(status, json.loads(self.capture.readouterr().out))
        if self.fate == "killed":
            raise Killed
        if self.fate == "failed":
            err = NoSpaceError("No space left.")
            return Ended(int(err.status), {"schema": "vbackup.error/1", "code": err.code, "status": 7, "message": "!"})
        self.number += 1
        now = self.site.clock()
        identity = names.backup_id(now, Level.FULL)
        commit(Repository.open(self.site.path), a_backup(self.number, id=identity, time=now))
        return Ended(0, made(id=identity))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    # A run that was killed: the process of the test goes on, of course.
    monkeypatch.setattr(Process, "lives", False)
    site = Site(tmp_path)
    (site.path / UUID / "domain.json").unlink()
    (site.path / UUID).rmdir()
    return site


def local(day: date, hour: int) -> datetime:
    return datetime.combine(day, time(hour, 0, 5)).astimezone(timezone.utc)


def days_there(site: Site) -> list[date]:
    history = Repository.open(site.path).catalogue(UUID).history
    return sorted(one.time.astimezone().date() for one in history.backups)


@pytest.mark.parametrize("days", [DAYS["quarter"], pytest.param(DAYS["year"], marks=pytest.mark.long)], ids=[*DAYS])
def test_a_year_of_nights(site: Site, capfd: pytest.CaptureFixture[str], days: int) -> None:
    chance = random.Random(16)
    steps = Steps(site, capfd)
    nightly = job(
        domains=(),
        exclude=(),
        connect=(),
        copy_to=(),
        calendar=Calendar((time(1),)),
        options={"prune": {name: str(count) for name, (count, _) in RULES.items()}},
    )
    # All of it is past: a backup of the future counts for nothing.
    first = (datetime.now(timezone.utc) - timedelta(days=days + 10)).date()
    model, statuses = Model(), Counter[int]()
    for number in range(days):
        day = first + timedelta(days=number)
        model.is_pending = True
        is_off = chance.random() < 0.04
        for hour in (1, 2, 8, 20):
            if is_off or (hour == 1 and chance.random() < 0.08):
                continue  # nobody calls
            fate = chance.choices(("good", "failed", "killed"), (90, 6, 4))[0]
            site.clock.now, steps.fate = local(day, hour), fate
            model.call(hour, fate, day)
            world = replace(site.world, execute=steps)
            try:
                ran = operation.run(RunRequest(only_due=True), config(site.path, nightly), world)
            except Killed:
                continue
            assert len(ran.runs) + len(ran.not_run) == 1
            statuses.update(one.status for one in ran.runs)
        assert days_there(site) == model.days, day

    assert (
        min(model.outcomes[fate] for fate in ("good", "failed", "killed")) > days // 73
    )  # something of each has happened
    assert model.unusual["was missed"] > days // 73
    runs = site.store.list("nightly")
    found = Counter(one.outcome for one in runs)
    if runs[0].outcome is Outcome.RUNNING:
        found[Outcome.INTERRUPTED] += 1
    assert found == {
        Outcome.DONE: model.outcomes["good"],
        Outcome.SOME_FAILED: model.outcomes["failed"],
        Outcome.INTERRUPTED: model.outcomes["killed"],
    }
    assert statuses == {0: model.outcomes["good"], 7: model.outcomes["failed"]}
    sentences = [sentence for one in runs for sentence in one.unusual]
    assert {words: sum(words in one for one in sentences) for words in model.unusual} == model.unusual
    assert len(sentences) == model.unusual.total()
    assert days < DAYS["year"] or len(model.days) == 7 + 4 + 6
