"""Each reason why a domain is not backed up as promised is told, and only when it is one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.unit.builders import UUID
from tests.unit.overview.examples import (
    DAY,
    FAULT,
    HOUR,
    HOUR_S,
    NOW,
    OTHER,
    domain,
    facts,
    glance,
    job,
    live,
    made,
    only_domain,
    repository,
    run,
)
from vbackup.overview import assess
from vbackup.overview.facts import Facts
from vbackup.overview.state import DomainState, Health
from vbackup.repository.verification import Verdict
from vbackup.runs.record import DomainResult, Outcome


def of(known: Facts) -> DomainState:
    return only_domain(assess.overview(known))


def test_a_domain_that_is_backed_up_as_promised_is_ok() -> None:
    state = of(facts())
    assert (state.name, state.uuid, state.repository, state.job) == ("web", UUID, "main", "nightly")
    assert (state.health, state.reasons) == (Health.OK, ())
    assert state.last is not None
    assert (state.age_s, state.max_age_s, state.is_overdue) == (8 * HOUR_S, 26 * HOUR_S, False)
    assert (state.backups, state.chain_images, state.verdict) == (1, 1, "unverified")
    assert state.changed_bytes == ((state.last.time, 1024),)


@pytest.mark.parametrize(("age", "is_overdue"), [(26 * HOUR, False), (26 * HOUR + timedelta(seconds=1), True)])
def test_it_is_overdue_beyond_what_its_job_promises(age: timedelta, is_overdue: bool) -> None:
    state = of(facts(repositories=(repository(domain(glance(made(age)))),)))
    assert state.is_overdue is is_overdue
    assert state.health is (Health.CRITICAL if is_overdue else Health.OK)
    if is_overdue:
        assert state.reasons == ("The newest backup is 26 h old; job nightly promises 26 h at most.",)


def test_of_several_jobs_the_one_that_promises_most_counts() -> None:
    weekly = job(live(), name="weekly", max_age_s=8 * 24 * HOUR_S)
    hourly = job(live(), name="hourly", max_age_s=2 * HOUR_S, domains=("w*",))
    state = of(facts(jobs=(weekly, job(live(), name="someday", max_age_s=None), hourly)))
    assert (state.job, state.is_overdue) == ("hourly", True)


def test_an_age_that_the_user_gives_takes_the_place_of_the_promise() -> None:
    assert of(facts(max_age_s=HOUR_S)).is_overdue
    assert not of(facts(max_age_s=9 * HOUR_S, jobs=(job(live(), max_age_s=HOUR_S),))).is_overdue


def test_a_domain_that_libvirt_has_and_that_was_never_backed_up_counts() -> None:
    found = assess.overview(facts(jobs=(job(live(), live("new", OTHER)),)))
    new = found.domains[0]
    assert (new.name, new.uuid, new.job, new.backups) == ("new", OTHER, "nightly", 0)
    assert (new.health, new.reasons) == (Health.CRITICAL, ("It was never backed up.",))
    assert found.health is Health.CRITICAL


def test_why_its_first_backup_failed_is_told() -> None:
    result = DomainResult("new", OTHER, Outcome.FAILED, fault=FAULT)
    failed = job(live(), live("new", OTHER), runs=(run(domains=(result,)),))
    new = assess.overview(facts(jobs=(failed,))).domains[0]
    assert new.fault == FAULT
    assert new.reasons == ("It was never backed up.", f"The last backup failed: {FAULT.message}")


def test_a_name_in_the_configuration_that_nobody_has_was_never_backed_up() -> None:
    named = job(live(), domains=("web", "mail"))
    mail = assess.overview(facts(jobs=(named,))).domains[0]
    assert (mail.name, mail.uuid) == ("mail", None)
    assert mail.reasons == ("It was never backed up, and libvirt does not have it.",)
    silent = replace(named, hosts=job(error="silence").hosts)
    mail = assess.overview(facts(jobs=(silent,))).domains[0]
    assert mail.reasons == ("It was never backed up, and libvirt could not be asked for it.",)


def test_what_cannot_be_backed_up_is_not_expected_to_be() -> None:
    diskless = live("diskless", OTHER, "it has no disk")
    assert of(facts(jobs=(job(live(), diskless),))).name == "web"


def test_a_domain_that_is_gone_is_not_overdue() -> None:
    old = (repository(domain(glance(made(30 * DAY)))),)
    state = of(facts(jobs=(job(),), repositories=old))
    assert (state.is_gone, state.is_overdue, state.health, state.reasons) == (True, False, Health.OK, ())
    unknown = of(facts(jobs=(job(error="silence"),), repositories=old))
    assert (unknown.is_gone, unknown.is_overdue) == (False, True)


def test_a_domain_that_is_gone_and_that_a_job_names_is_a_warning() -> None:
    state = of(facts(jobs=(job(domains=("web",)),)))
    assert (state.is_gone, state.health) == (True, Health.WARNING)
    assert state.reasons == ("libvirt does not have it any more, but job nightly names it.",)


def test_a_domain_that_no_job_backs_up_is_a_warning_unless_one_excludes_it() -> None:
    state = assess.overview(facts(jobs=(job(live(), live("new", OTHER), domains=("web",)),))).domains[0]
    assert (state.name, state.health, state.job, state.repository) == ("new", Health.WARNING, None, "")
    assert state.reasons == ("It was never backed up: no job backs it up, and none excludes it.",)
    assert of(facts(jobs=(job(live(), live("new", OTHER), exclude=("n*",)),))).name == "web"


def test_a_domain_that_is_not_backed_up_any_more_is_a_warning() -> None:
    state = of(facts(jobs=(job(live(), domains=("mail*",)),)))
    assert (state.job, state.health, state.reasons) == (None, Health.WARNING, ("No job backs it up any more.",))


def test_a_domain_with_old_backups_that_is_excluded_or_backed_up_elsewhere_is_no_warning() -> None:
    assert of(facts(jobs=(job(live(), exclude=("web",)),))).reasons == ()
    moved = facts(
        jobs=(job(live(), repository="new"),),
        repositories=(repository(domain()), repository(domain(), name="new")),
    )
    assert [(one.repository, one.health, one.reasons) for one in assess.overview(moved).domains] == [
        ("main", Health.OK, ()),
        ("new", Health.OK, ()),
    ]


def test_a_uuid_in_capitals_is_that_domain() -> None:
    assert [one.name for one in assess.overview(facts(jobs=(job(live(), domains=(UUID.upper(),)),))).domains] == ["web"]
    state = of(facts(jobs=(job(domains=(UUID.upper(),)),)))
    assert state.reasons == ("libvirt does not have it any more, but job nightly names it.",)


def test_a_name_in_capitals_is_another_domain() -> None:
    found = assess.overview(facts(jobs=(job(live(), domains=("web", "WEB")),))).domains
    assert [(one.name, one.last is None) for one in found] == [("WEB", True), ("web", False)]


def test_without_a_configuration_nothing_is_said_of_jobs() -> None:
    nameless = job(live(), live("new", OTHER), name="", calendar=None, max_age_s=HOUR_S)
    found = assess.overview(facts(jobs=(nameless,), is_configured=False))
    assert [one.reasons for one in found.domains] == [
        ("It was never backed up.",),
        ("The newest backup is 8 h old; it may be 1 h at most.",),
    ]
    assert found.jobs == ()


def test_the_newest_backup_that_is_broken_is_critical_though_an_older_one_is_good() -> None:
    seen = glance(made(), broken="Backup X is broken: gone.")
    state = of(facts(repositories=(repository(domain(seen)),)))
    assert (state.health, state.reasons) == (Health.CRITICAL, ("Backup X is broken: gone.",))


def test_a_domain_whose_first_backup_is_unfinished_was_never_backed_up() -> None:
    state = of(facts(repositories=(repository(domain(glance())),)))
    assert state.reasons == ("It was never backed up: none of its backups was completed.",)
    assert (state.last, state.age_s, state.health) == (None, None, Health.CRITICAL)


def test_damage_is_critical() -> None:
    seen = glance(made(), verified=NOW - DAY, verdict=Verdict.DAMAGED, damaged=("a",))
    state = of(facts(repositories=(repository(domain(seen)),)))
    assert (state.verdict, state.verified, state.damaged) == ("damaged", NOW - DAY, ("a",))
    assert (state.health, state.reasons) == (Health.CRITICAL, ("A verify has found damage in backup a.",))
    state = of(facts(repositories=(repository(domain(replace(seen, damaged=("a", "b")))),)))
    assert state.reasons == ("A verify has found damage in 2 backups, the newest of them b.",)


def test_a_backup_that_failed_is_a_warning_while_the_promise_holds() -> None:
    result = DomainResult("hypervisor/web", UUID, Outcome.FAILED, fault=FAULT, unusual=("Much changed.",))
    state = of(facts(jobs=(job(live(), runs=(run(domains=(result,)),)),)))
    assert (state.fault, state.unusual, state.health) == (FAULT, ("Much changed.",), Health.WARNING)
    assert state.reasons == (f"The last backup failed: {FAULT.message}", "Much changed.")


def test_a_backup_that_failed_is_forgotten_when_somebody_has_made_one_since() -> None:
    result = DomainResult("web", UUID, Outcome.FAILED, fault=FAULT)
    failed = job(live(), runs=(run(domains=(result,)),))
    since = repository(domain(glance(made(7 * HOUR))))
    assert of(facts(jobs=(failed,))).fault == FAULT
    assert of(facts(jobs=(failed,), repositories=(since,))).fault is None


def test_a_backup_of_the_future_is_a_warning_and_its_age_is_not_counted() -> None:
    ahead = made(-365 * DAY, sequence=3)
    state = of(facts(repositories=(repository(domain(glance(made(30 * HOUR), ahead))),)))
    assert state.last is not None
    assert state.last.id == ahead.id
    assert (state.age_s, state.is_overdue) == (30 * HOUR_S, True)
    assert f"Backup {ahead.id} was made later than now by the clock of hypervisor" in state.reasons[1]
    alone = of(facts(repositories=(repository(domain(glance(ahead))),)))
    assert (alone.age_s, alone.is_overdue, alone.health) == (None, False, Health.WARNING)


def test_a_clock_that_differs_a_little_is_no_matter() -> None:
    state = of(facts(repositories=(repository(domain(glance(made(-timedelta(minutes=4))))),)))
    assert (state.age_s, state.health) == (0.0, Health.OK)


def test_copies_are_late_when_they_are_older_than_a_backup_may_be() -> None:
    old, new = made(3 * DAY), made(sequence=2)
    seen = glance(old, new)
    copying = (job(live(), copy_to=("offsite",)),)

    def state(*there: str, targets: frozenset[str] = frozenset(("offsite",))) -> DomainState:
        copied = domain(seen, offsite=frozenset(there)) if targets else domain(seen)
        return of(facts(jobs=copying, repositories=(repository(copied, targets=targets),)))

    late = state(old.id)
    (copy,) = late.copies
    assert (copy.target, copy.newest, copy.time, copy.behind) == ("offsite", old.id, old.time, 1)
    assert late.reasons == ("The newest copy at offsite is 3 d old; newer backups not there: 1.",)
    assert late.health is Health.WARNING
    assert state(old.id, new.id).health is Health.OK
    assert state().reasons == ("None of its backups was ever copied to offsite.",)
    # Without any ledger of the target, nothing was ever copied there.
    never = state(targets=frozenset())
    assert (never.copies[0].newest, never.copies[0].behind, never.health) == (None, 2, Health.WARNING)
    assert never.reasons == ("None of its backups was ever copied to offsite.",)


def test_a_copy_that_is_about_to_be_made_is_not_late() -> None:
    new = made(HOUR)
    copied = repository(domain(glance(made(25 * HOUR), new)), targets=frozenset(("offsite",)))
    state = of(facts(jobs=(job(live(), copy_to=("offsite",)),), repositories=(copied,)))
    assert (state.copies[0].behind, state.health) == (2, Health.OK)


def test_a_run_of_other_domains_says_nothing_of_a_domain_that_failed_before() -> None:
    failed = run(domains=(DomainResult("web", UUID, Outcome.FAILED, fault=FAULT),))
    other = run(started=NOW - HOUR, is_partial=True, domains=(DomainResult("db", OTHER, Outcome.DONE),))
    assert of(facts(jobs=(job(live(), runs=(other, failed)),))).fault == FAULT
    good = run(started=NOW - HOUR, is_partial=True, domains=(DomainResult("web", UUID, Outcome.DONE),))
    assert of(facts(jobs=(job(live(), runs=(good, failed)),))).fault is None
    assert of(facts(jobs=(job(live(), runs=(other, run(), failed)),))).fault is None
