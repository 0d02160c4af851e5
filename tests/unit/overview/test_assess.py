"""The worst of all is the answer, and a repository is judged by whether it can be read and how long it has room."""

from __future__ import annotations

import pytest

from tests.unit.overview.examples import (
    FAULT,
    OTHER,
    domain,
    facts,
    glance,
    job,
    live,
    made,
    only_repository,
    repository,
)
from vbackup.overview import assess
from vbackup.overview.facts import JobFacts
from vbackup.overview.state import Health

GIB = 1 << 30


def test_all_is_well() -> None:
    assert assess.overview(facts()).health is Health.OK


def test_what_could_not_be_found_out_is_a_warning() -> None:
    found = assess.overview(facts(warnings=("A host is silent.",)))
    assert (found.host, found.warnings) == ("hypervisor", ("A host is silent.",))
    assert found.health is Health.WARNING  # what that host has may not be backed up


def test_where_there_is_nothing_nothing_is_known() -> None:
    assert assess.overview(facts(jobs=(), repositories=())).health is Health.UNKNOWN
    assert assess.overview(facts(jobs=(), repositories=(repository(),))).health is Health.UNKNOWN
    assert assess.overview(facts(jobs=(job(),), repositories=(repository(),))).health is Health.UNKNOWN
    silent = facts(jobs=(job(error="silence"),), repositories=(repository(),), warnings=("A host is silent.",))
    assert assess.overview(silent).health is Health.UNKNOWN
    full = repository(free_bytes=0)
    assert assess.overview(facts(jobs=(), repositories=(full,))).health is Health.CRITICAL


def test_a_libvirt_that_has_lost_all_domains_does_not_make_all_well() -> None:
    """As that of another user says, or one that was set up anew."""
    gone = assess.overview(facts(jobs=(job(),)))
    assert [(one.is_gone, one.health) for one in gone.domains] == [(True, Health.OK)]
    assert gone.health is Health.UNKNOWN
    both = repository(domain(), domain(glance(made(), uuid=OTHER, name="db")))
    assert assess.overview(facts(repositories=(both,))).health is Health.OK


def test_what_is_not_ok_comes_first() -> None:
    found = assess.overview(facts(jobs=(job(live(), live("z", "f0000000-0000-4000-8000-00000000000f")),)))
    assert [one.name for one in found.domains] == ["z", "web"]


def test_a_repository_that_cannot_be_read_is_critical_and_nothing_is_said_of_its_domains() -> None:
    unmounted = repository(fault=FAULT, free_bytes=None, size_bytes=None)
    found = assess.overview(facts(repositories=(unmounted,)))
    state = only_repository(found)
    assert (state.health, state.reasons, state.backups_bytes) == (Health.CRITICAL, (FAULT.message,), None)
    assert found.domains == ()


@pytest.mark.parametrize(
    ("growth", "health", "reason"),
    [
        (None, Health.OK, None),
        (-1.0 * GIB, Health.OK, None),
        (10.0 * GIB, Health.OK, None),
        (100.0 * GIB, Health.WARNING, "It is full in 5 d if it goes on like that."),
        (600.0 * GIB, Health.CRITICAL, "It is full in 20 h if it goes on like that."),
    ],
)
def test_a_repository_that_fills_up_is_told_in_time(growth: float | None, health: Health, reason: str | None) -> None:
    state = only_repository(
        assess.overview(facts(repositories=(repository(domain(), growth_bytes_day=growth),), jobs=()))
    )
    assert (state.health, state.reasons) == (health, () if reason is None else (reason,))
    assert state.days_until_full == (500 * GIB / growth if growth is not None and growth > 0 else None)


@pytest.mark.parametrize(
    ("free", "health"), [(60, Health.OK), (40, Health.WARNING), (11, Health.WARNING), (9, Health.CRITICAL)]
)
def test_little_room_is_told(free: int, health: Health) -> None:
    state = only_repository(
        assess.overview(facts(repositories=(repository(domain(), free_bytes=free * GIB),), jobs=()))
    )
    assert state.health is health
    assert state.reasons == (() if health is Health.OK else (f"Only {free / 10:.1f} % of its filesystem is free.",))


def test_what_cannot_be_new_for_a_silent_host_is_said_of_the_jobs_that_would_back_it_up() -> None:
    def warnings(*jobs: JobFacts) -> tuple[str, ...]:
        found = assess.overview(facts(jobs=jobs))
        assert found.health is (Health.WARNING if found.warnings else Health.OK)
        return found.warnings

    end = "are not known, because libvirt could not be asked which domains there are."
    silent = [job(error="silence", name=name) for name in "abcde"]
    assert warnings(silent[0]) == (f"New domains of job a {end}",)
    assert warnings(*silent) == (f"New domains of jobs a, b, c and 2 more {end}",)
    assert warnings(job(error="silence", name="")) == (f"New domains {end}",)
    assert warnings(job(error="silence", domains=("web",))) == ()
