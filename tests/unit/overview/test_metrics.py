"""Every metric that is declared is made, with its labels, and what is not known is missing."""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import vbackup
from tests.unit.builders import UUID
from tests.unit.overview.examples import (
    FAULT,
    HOUR,
    NIGHT,
    NOW,
    OTHER,
    domain,
    facts,
    glance,
    job,
    live,
    made,
    repository,
)
from vbackup.errors import MissingPackageError
from vbackup.overview import assess, metrics
from vbackup.overview.facts import Facts
from vbackup.repository.verification import Verdict
from vbackup.runs.record import Outcome

OF_WEB = {"domain": "web", "uuid": UUID, "repository": "main", "backup_job": "nightly"}


def rich() -> Facts:
    """All is known that there is."""
    seen = glance(made(), verified=NIGHT, verdict=Verdict.GOOD)
    place = repository(
        domain(seen, offsite=frozenset((made().id,))), targets=frozenset(("offsite",)), growth_bytes_day=86400.0 * 1000
    )
    return facts(jobs=(job(live(), copy_to=("offsite",)),), repositories=(place,))


def exposed(known: Facts) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Value by name and labels, as prometheus-client itself reads the text."""
    text = metrics.exposition(assess.overview(known)).decode()
    return {
        family.name: {tuple(sorted(sample.labels.items())): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(text)
    }


def value(known: Facts, name: str, **labels: str) -> float:
    return exposed(known)[name][tuple(sorted(labels.items()))]


def test_all_metrics_are_made_of_what_is_known() -> None:
    found = exposed(rich())
    assert found.keys() == metrics.METRICS.keys()
    for name, samples in found.items():
        for labels in samples:
            assert {label for label, _ in labels} == set(metrics.METRICS[name][1]), name


def test_values_are_in_base_units() -> None:
    known = rich()
    assert value(known, "vbackup_info", version=vbackup.__version__) == 1
    assert value(known, "vbackup_health") == 0
    assert value(known, "vbackup_status_timestamp_seconds") == NOW.timestamp()
    assert value(known, "vbackup_domain_last_backup_timestamp_seconds", **OF_WEB) == NIGHT.timestamp()
    assert value(known, "vbackup_domain_max_age_seconds", **OF_WEB) == 26 * 3600
    assert value(known, "vbackup_copy_missing_backups", **OF_WEB, target="offsite") == 0
    job_labels = {"backup_job": "nightly", "repository": "main"}
    assert value(known, "vbackup_job_last_run_duration_seconds", **job_labels) == HOUR.total_seconds()
    place = {"repository": "main", "path": "/srv/backup"}
    assert value(known, "vbackup_repository_growth_bytes_per_second", **place) == 1000
    assert value(known, "vbackup_repository_full_timestamp_seconds", **place) == pytest.approx(
        NOW.timestamp() + (500 << 30) / 1000
    )


def test_what_was_never_backed_up_has_no_time_of_a_backup() -> None:
    found = exposed(facts(jobs=(job(live(), live("new", OTHER)),)))
    new = tuple(sorted({**OF_WEB, "domain": "new", "uuid": OTHER}.items()))
    assert found["vbackup_domain_backups"][new] == 0
    assert found["vbackup_domain_health"][new] == 2
    assert new not in found["vbackup_domain_last_backup_timestamp_seconds"]


def test_a_repository_that_cannot_be_read_is_down() -> None:
    known = facts(jobs=(), repositories=(repository(fault=FAULT, free_bytes=None, size_bytes=None),))
    found = exposed(known)
    assert list(found["vbackup_repository_up"].values()) == [0.0]
    assert "vbackup_repository_free_bytes" not in found


def test_domains_of_a_repository_that_is_down_keep_their_series() -> None:
    known = facts(repositories=(repository(domain(), fault=FAULT, free_bytes=None, size_bytes=None, last_read=NIGHT),))
    assert value(known, "vbackup_domain_remembered", **OF_WEB) == 1
    assert value(known, "vbackup_domain_health", **OF_WEB) == 3
    assert value(rich(), "vbackup_domain_health", **OF_WEB) == 0
    assert value(known, "vbackup_domain_last_backup_timestamp_seconds", **OF_WEB) == NIGHT.timestamp()
    assert value(rich(), "vbackup_domain_remembered", **OF_WEB) == 0


def test_namesakes_are_two_series() -> None:
    namesake = domain(glance(made(), uuid=OTHER))
    found = exposed(facts(repositories=(repository(domain(), namesake),)))
    assert len(found["vbackup_domain_backups"]) == 2


def test_names_are_escaped() -> None:
    strange = domain(glance(made(), name='a"b\\c\n'))
    found = exposed(facts(jobs=(job(error="silence"),), repositories=(repository(strange),)))
    assert any(("domain", 'a"b\\c\n') in labels for labels in found["vbackup_domain_backups"])


def test_a_path_that_is_not_utf_8_is_escaped() -> None:
    overview = assess.overview(rich())
    [place] = overview.repositories
    strange = replace(overview, repositories=(replace(place, path="/srv/a\udcffb"),))
    assert b'path="/srv/a\\\\udcffb"' in metrics.exposition(strange)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match="python3-prometheus-client"):
        metrics.require()


def test_a_run_at_work_has_no_duration() -> None:
    known = rich()
    run = known.jobs[0].runs[0]
    at_work = replace(known, jobs=(replace(known.jobs[0], runs=(replace(run, ended=None), run)),))
    found = exposed(at_work)
    assert "vbackup_job_last_run_duration_seconds" not in found
    assert len(found["vbackup_job_last_run_timestamp_seconds"]) == 1


def test_a_run_of_other_domains_is_not_the_one_of_the_job() -> None:
    known = rich()
    (one,) = known.jobs
    some = replace(one.runs[0], started=NOW, ended=NOW, is_partial=True, status=7, outcome=Outcome.FAILED)
    known = replace(known, jobs=(replace(one, runs=(some, *one.runs)),))
    of_job = {"backup_job": "nightly", "repository": "main"}
    assert value(known, "vbackup_job_last_run_status", **of_job) == 0
    assert value(known, "vbackup_job_last_run_timestamp_seconds", **of_job) == NIGHT.timestamp()
    assert value(known, "vbackup_job_health", **of_job) == 0
