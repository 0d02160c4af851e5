"""Repositories, ledgers, runs and libvirt are read and asked, and whichever of them is gone is in the answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.documents import check
from tests.unit.builders import NOON, UUID, backup, commit
from tests.unit.overview.examples import NIGHT, job, run
from vbackup.config.model import Config, Place, RepositoryEntry, TargetEntry
from vbackup.copies.ledger import Ledger
from vbackup.errors import HostUnreachableError, UsageError
from vbackup.operations import status
from vbackup.operations.status import StatusRequest
from vbackup.overview import answer, documents, nagios
from vbackup.overview.facts import LiveDomain
from vbackup.overview.state import Health, Overview
from vbackup.repository.repository import COPIES, Repository
from vbackup.runs.room_log import Entry, RoomLog
from vbackup.runs.store import Store

NOW = NOON + timedelta(hours=9)
PLACE = Place(Path("vbackup.toml"), 1)


class Libvirt:
    """Answers for libvirt."""

    def __init__(self, *domains: LiveDomain) -> None:
        self.domains = domains
        self.asked: list[tuple[str | None, Collection[str]]] = []

    def __call__(self, uri: str | None, known: Collection[str]) -> Sequence[LiveDomain]:
        self.asked.append((uri, known))
        return self.domains


class Site:
    """A repository with one backup of the domain "web", a job, and a state directory."""

    def __init__(self, path: Path) -> None:
        self.repository = Repository.create(path / "repo")
        self.state = path / "state"
        self.backup = backup(1)
        commit(self.repository, self.backup)
        self.libvirt = Libvirt(LiveDomain("web", UUID))
        self.jobs = {"nightly": job().job}
        self.targets: dict[str, TargetEntry] = {}

    @property
    def config(self) -> Config:
        entries = {"main": RepositoryEntry("main", self.repository.path, PLACE)}
        return Config((PLACE.path,), entries, self.targets, self.jobs, {})

    def overview(self, now: datetime = NOW, **options: object) -> Overview:
        found = status.gather(
            StatusRequest(**options),  # type: ignore[arg-type]
            self.config,
            state=self.state,
            ask=self.libvirt,
            now=now,
        )
        check({"schema": documents.SCHEMA, **documents.document(found)})
        return found


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_is_there_is_gathered(site: Site) -> None:
    store = Store(site.state)
    begun = store.begin(run(ended=None))
    store.end(run(id=begun.id))
    found = site.overview(NIGHT + timedelta(hours=1))
    (domain,), (one,), (place,) = found.domains, found.jobs, found.repositories
    assert (domain.name, domain.job, domain.backups) == ("web", "nightly", 1)
    assert domain.last is not None
    assert domain.last.id == site.backup.id
    assert (one.last_good, one.health) == (NIGHT, Health.OK)
    assert (place.name, place.path, place.fault) == ("main", str(site.repository.path), None)
    assert place.free_bytes is not None
    assert place.size_bytes is not None
    assert 0 < place.free_bytes <= place.size_bytes
    assert found.warnings == ()


def test_the_last_good_run_is_found_behind_others(site: Site) -> None:
    store = Store(site.state)
    for day in range(4):
        started = NIGHT + timedelta(days=day)
        begun = store.begin(run(started=started, ended=None))
        outcome = {} if day == 0 else {"outcome": status.Outcome.FAILED, "status": 7}
        store.end(run(id=begun.id, started=started, **outcome))
    assert site.overview().jobs[0].last_good == NIGHT


def test_libvirt_is_asked_for_the_domains_of_each_host_once(site: Site) -> None:
    uris = ("qemu+ssh://a/system", "qemu+ssh://b/system")
    site.jobs["nightly"] = job(connect=uris).job
    site.jobs["hourly"] = job(connect=uris[:1], name="hourly").job
    site.overview()
    assert sorted(uri or "" for uri, _ in site.libvirt.asked) == list(uris)
    assert site.libvirt.asked[0][1] == {UUID}


def test_hosts_of_a_file_are_asked_and_a_file_that_is_gone_is_a_warning(site: Site, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("qemu+ssh://a/system\n")
    site.jobs["nightly"] = job(hosts=hosts).job
    site.overview()
    assert [uri for uri, _ in site.libvirt.asked] == ["qemu+ssh://a/system"]
    hosts.unlink()
    (warning,) = site.overview().warnings
    assert str(hosts) in warning


def test_offline_nobody_is_asked_and_nothing_is_gone(site: Site) -> None:
    site.libvirt.domains = ()
    found = site.overview(is_offline=True)
    assert site.libvirt.asked == []
    assert (found.domains[0].is_gone, found.warnings) == (False, ())


def test_a_host_that_cannot_be_reached_is_a_warning(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(uri: str | None, _known: Collection[str]) -> Sequence[LiveDomain]:
        raise HostUnreachableError(uri, "connection refused")

    monkeypatch.setattr(site, "libvirt", fail)
    found = site.overview()
    warning, consequence = found.warnings
    assert warning.startswith("Cannot reach libvirt at the default URI: connection refused.")
    assert consequence.startswith("New domains of job nightly are not known")
    assert found.health is Health.WARNING
    site.jobs["nightly"] = job(domains=("web",)).job
    assert site.overview().warnings == (warning,)
    site.jobs["nightly"] = job().job
    assert site.overview(is_offline=True).warnings == ()
    assert not found.domains[0].is_gone


def test_a_host_that_does_not_answer_holds_nothing_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def wait(uri: str | None, _known: Collection[str]) -> Sequence[LiveDomain]:
        if uri == "qemu+ssh://silent/system":
            release.wait(60)
        return (LiveDomain("web", UUID),)

    monkeypatch.setattr(site, "libvirt", wait)
    site.jobs["nightly"] = job(connect=("qemu+ssh://silent/system", "qemu:///system")).job
    begun = time.monotonic()
    found = site.overview(timeout_s=0.2)
    release.set()
    assert time.monotonic() - begun < 10
    assert found.warnings[0] == "libvirt at qemu+ssh://silent/system did not say within 0.2 s which domains it has."
    assert found.domains[0].job == "nightly"


def test_a_host_that_has_not_answered_is_not_asked_again_meanwhile(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    release, answered, asked = threading.Event(), threading.Event(), []

    def wait(uri: str | None, _known: Collection[str]) -> Sequence[LiveDomain]:
        asked.append(uri)
        release.wait(60)
        answered.set()
        return ()

    monkeypatch.setattr(site, "libvirt", wait)
    for _ in range(3):
        assert "did not say" in site.overview(timeout_s=0.05).warnings[0]
    assert len(asked) == 1
    release.set()
    assert answered.wait(10)
    deadline = time.monotonic() + 10
    while status._UNANSWERED and time.monotonic() < deadline:
        time.sleep(0.01)
    assert site.overview(timeout_s=10.0).warnings == ()
    assert len(asked) == 2


def test_a_real_libvirt_says_which_domains_it_has_and_which_cannot_be_backed_up() -> None:
    """Its driver for tests, which needs no daemon."""
    (domain,) = status._of_libvirt("test:///default", set())
    assert (domain.name, domain.why_not) == ("test", "it runs in test, not in QEMU or KVM")
    (domain,) = status._of_libvirt("test:///default", {domain.uuid})
    assert domain.why_not is None


def test_a_repository_that_is_not_there_is_critical_and_says_why(site: Site) -> None:
    site.repository.path.rename(site.repository.path.with_name("unmounted"))
    found = site.overview()
    (place,) = found.repositories
    assert place.fault is not None
    assert (place.fault.code, place.fault.status) == ("STORAGE_UNUSABLE", 7)
    assert "is the disk mounted?" in place.reasons[0]
    assert found.health is Health.CRITICAL
    assert found.domains == ()


def test_domains_of_a_repository_that_is_not_mounted_stay_and_become_overdue(site: Site) -> None:
    site.targets["offsite"] = TargetEntry("offsite", "s3://bucket/web/", {}, PLACE)
    site.jobs["nightly"] = job(copy_to=("offsite",)).job
    (before,) = site.overview().domains
    site.repository.path.rename(site.repository.path.with_name("unmounted"))
    found = site.overview(NOW + timedelta(minutes=30))
    (domain,), (place,) = found.domains, found.repositories
    assert replace(domain, last_read=None, age_s=before.age_s) == before
    assert domain.last_read == NOW
    assert (domain.health, answer.state_of(domain)) == (Health.OK, Health.UNKNOWN)
    assert place.reasons[1].startswith("What is said of its domains is of ")
    assert "NOT KNOWN whether everything is backed up: main cannot be read." in answer.sentence(found)
    assert "not known whether domains are backed up" in nagios.line(found)
    (late,) = site.overview(NOW + timedelta(days=2)).domains
    assert (late.is_overdue, late.health, late.last_read) == (True, Health.CRITICAL, NOW)
    site.repository.path.with_name("unmounted").rename(site.repository.path)
    (again,) = site.overview(NOW + timedelta(hours=1)).domains
    assert again.last_read is None


def test_what_was_never_backed_up_stays_so_without_the_repository(site: Site) -> None:
    new = LiveDomain("new", "f0000000-0000-4000-8000-000000000002")
    site.libvirt.domains = (*site.libvirt.domains, new)
    site.overview()
    site.repository.path.rename(site.repository.path.with_name("unmounted"))
    assert [(one.name, one.health) for one in site.overview().domains] == [
        ("new", Health.CRITICAL),
        ("web", Health.OK),
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"domains": [{"uuid": 1}]}', '{"domains": [], "targets": [7]}'])
def test_a_memory_that_is_damaged_is_none(site: Site, text: str) -> None:
    site.overview()
    (path,) = (site.state / "seen").iterdir()
    path.write_text(text)
    site.repository.path.rename(site.repository.path.with_name("unmounted"))
    assert site.overview().domains == ()


def test_only_the_jobs_that_are_asked_for_and_their_repositories_are_looked_at(site: Site) -> None:
    site.jobs["other"] = job(name="other", repository="elsewhere").job
    found = site.overview(jobs=("nightly",))
    assert [one.name for one in found.jobs] == ["nightly"]
    with pytest.raises(UsageError, match=r"No job 'daily' in the configuration; it has nightly, other\."):
        site.overview(jobs=("daily",))


def test_what_was_copied_is_taken_from_the_ledger_by_the_place_of_the_target(site: Site, tmp_path: Path) -> None:
    site.targets["offsite"] = TargetEntry("offsite", "s3://bucket/web/", {}, PLACE)
    site.jobs["nightly"] = job(copy_to=("offsite",)).job
    (copy,) = site.overview().domains[0].copies
    assert (copy.target, copy.newest, copy.behind) == ("offsite", None, 1)
    ledger = Ledger(site.repository.path / COPIES / "0123456789ab")
    ledger.note_place("s3://bucket/web")
    ledger.put(UUID, site.backup.id, "{}")
    (copy,) = site.overview().domains[0].copies
    assert (copy.target, copy.newest, copy.behind) == ("offsite", site.backup.id, 0)


def test_what_a_filesystem_takes_is_noted_and_becomes_a_forecast(site: Site) -> None:
    site.overview(NOW - timedelta(days=3))
    log = RoomLog(site.state, str(site.repository.path))
    (entry,) = log.read()
    log.note(Entry(NOW - timedelta(days=1), entry.used_bytes + (2 << 20), entry.size_bytes))
    found = site.overview()
    assert found.repositories[0].growth_bytes_day is not None
    assert len(log.read()) == 3


def test_without_a_configuration_all_of_libvirt_is_to_be_backed_up(site: Site) -> None:
    libvirt = Libvirt(LiveDomain("web", UUID), LiveDomain("new", "f0000000-0000-4000-8000-000000000002"))
    path = site.repository.path
    found = status.of_repository(StatusRequest(max_age_s=3600.0), path, ["qemu:///system"], ask=libvirt, now=NOW)
    check({"schema": documents.SCHEMA, **documents.document(found)})
    assert libvirt.asked[0][0] == "qemu:///system"
    assert [(one.name, one.health) for one in found.domains] == [
        ("new", Health.CRITICAL),
        ("web", Health.CRITICAL),
    ]
    assert found.jobs == ()


def test_without_a_configuration_and_a_promise_nobody_is_asked(site: Site) -> None:
    libvirt = Libvirt()
    found = status.of_repository(StatusRequest(), site.repository.path, ask=libvirt, now=NOW)
    assert (libvirt.asked, found.health, len(found.domains)) == ([], Health.OK, 1)


def test_a_domain_whose_first_backup_was_interrupted_counts_as_never_backed_up(site: Site) -> None:
    stage = site.repository.path / "f0000000-0000-4000-8000-000000000002" / "20261123T101500Z-full.partial"
    stage.mkdir(parents=True)
    (stage.parent / "domain.json").write_text(json.dumps({"names": ["half"]}))
    assert [one.name for one in site.overview(is_offline=True).domains] == ["half", "web"]


def test_the_last_whole_run_is_found_behind_any_number_of_others(site: Site) -> None:
    store = Store(site.state)
    for number in range(status.RUNS + 5):
        started = NIGHT + timedelta(minutes=number)
        begun = store.begin(run(started=started, ended=None))
        store.end(run(id=begun.id, started=started, is_partial=number > 0))
    (one,) = site.overview(NIGHT + timedelta(hours=1)).jobs
    assert (one.last_good, one.health) == (NIGHT, Health.OK)
    assert one.last_run is not None
    assert one.last_run.started == NIGHT


def test_a_state_directory_that_cannot_be_read_is_not_a_job_that_never_ran(site: Site) -> None:
    site.state.write_text("no directory")
    found = site.overview()
    (reason,) = found.jobs[0].reasons
    assert reason.startswith(f"Its runs are not known: Cannot read {site.state}")
    assert (found.jobs[0].health, found.warnings) == (Health.WARNING, ())
