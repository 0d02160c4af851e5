"""Backups by the library, on the fake QEMU: one, several, and what else is done to a running domain."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder, use_libvirt
from tests.unit.fake_domain import SIZE_BYTES, FakeDomain
from vbackup import api
from vbackup.api import BackupRequest, Connection, DomainScripts, ScriptSettings
from vbackup.domain.selection import Chosen, Selection
from vbackup.engine.total_rate import Share
from vbackup.errors import BusyError, DomainNotFoundError, InterruptedBySignalError, UsageError
from vbackup.model import Level
from vbackup.operations import audit, backup, batch, forget, recovery, speed
from vbackup.report import Phase
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@pytest.fixture
def vb(domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch) -> Connection:
    """Connected to a host with the running domain web, and a new repository."""
    use_libvirt(monkeypatch, domain)
    return api.connect(repository=repo)


def test_name_is_enough_for_a_backup(vb: Connection, domain: FakeDomain) -> None:
    made = vb.backup("web")
    domain.write()
    second = vb.backup(BackupRequest("web", note="the second"))
    assert [made.level, second.level] == [Level.FULL, Level.INCREMENTAL]
    [record] = vb.records("web")
    assert [one.id for one in record.backups] == [made.id, second.id]
    assert record.conditions[second.id].note == "the second"


def test_plan_keeps_nothing(vb: Connection) -> None:
    plan = vb.plan("web")
    assert [disk.dev for disk in plan.disks] == ["vda", "vdb"]
    assert vb.records() == []


def test_reporter_of_the_call_is_told(vb: Connection) -> None:
    recorder, silent = Recorder(), Recorder()
    vb._reporter_of_calls = silent
    vb.backup("web", reporter=recorder)
    assert recorder.told["vda"][-1] == (SIZE_BYTES, SIZE_BYTES)
    assert recorder.phases >= {Phase.COPY}
    assert not silent.told


def test_stop_ends_a_backup_that_leaves_nothing(vb: Connection) -> None:
    stop = Stop()
    with pytest.raises(InterruptedBySignalError) as caught:
        vb.backup("web", reporter=Recorder(stop.request), stop=stop)
    assert caught.value.signum == signal.SIGTERM
    assert vb.records() == []
    assert vb.backup("web").level is Level.FULL


def test_total_speed_is_a_throttle(vb: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(backup, "run", lambda request, **named: seen.append((request, named["throttle"])))
    vb.backup(BackupRequest("web", speed_bytes_s=1000), total_speed_bytes_s=500)
    vb.backup("web")
    (request, share), (_, none) = seen
    assert (request.speed_bytes_s, none) == (1000, None)
    assert isinstance(share, Share)
    assert share.first_bytes_s(2) == 250


@pytest.fixture
def batches(vb: Connection, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any, Any]]:
    """What the batch of several domains was asked for."""
    asked: list[tuple[str, Any, Any, Any]] = []
    for name in ("run", "run_group", "dry_run"):

        def work(work: Any, domains: Any, *, name: str = name, parallel: int | None = None) -> list[str]:
            asked.append((name, work, domains, parallel))
            return [one.name for one in domains]

        monkeypatch.setattr(batch, name, work)
    return asked


@pytest.mark.parametrize(
    ("call", "name", "parallel"),
    [
        (lambda vb, *what: vb.backup_all(*what), "run", batch.PARALLEL),
        (lambda vb, *what: vb.backup_all(*what, parallel=7), "run", 7),
        (lambda vb, *what: vb.plan_all(*what), "dry_run", batch.PARALLEL),
        (lambda vb, *what: vb.backup_group(*what), "run_group", None),
    ],
)
def test_several_domains_have_one_request(
    vb: Connection, batches: list[tuple[str, Any, Any, Any]], call: Callable[..., Any], name: str, parallel: int | None
) -> None:
    chosen = (Chosen("web", UUID), Chosen("db", None))
    assert call(vb, Selection(chosen), BackupRequest("", level=Level.FULL)) == ["web", "db"]
    assert call(vb, Selection(chosen)) == ["web", "db"]
    [(got, work, domains, at_once), (_, other, *_)] = batches
    assert (got, tuple(domains), at_once) == (name, chosen, parallel)
    assert (work.request.level, other.request) == (Level.FULL, BackupRequest(""))
    assert work.scripts == ScriptSettings()
    assert work.repository is vb.repository


def test_scripts_of_several_domains_are_settings(vb: Connection, batches: list[tuple[str, Any, Any, Any]]) -> None:
    scripts = ScriptSettings(Path("/scripts"), is_wanted=True)
    chosen = Selection((Chosen("web", UUID),))
    vb.backup_all(chosen, scripts=scripts)
    vb.backup_group(chosen, scripts=scripts)
    assert [work.scripts for _, work, *_ in batches] == [scripts, scripts]


def test_scripts_run_around_a_backup(vb: Connection, tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "post-backup.d" / "note"
    script.parent.mkdir(mode=0o755, parents=True)
    script.write_text('#!/bin/sh\nread -r _ && echo "$VBACKUP_DOMAIN $VBACKUP_WORK"\n')
    script.chmod(0o755)
    settings, recorder = ScriptSettings(script.parents[1], is_wanted=True), Recorder()
    vb.backup("web", scripts=settings, reporter=recorder)
    assert "post-backup script note: web backup" in recorder.steps
    own = DomainScripts(settings, reporter=recorder, stop=Stop(), work="backup", domain="web")
    vb.backup("web", scripts=own)
    assert [(one.script.path, one.failure) for one in own.outcomes] == [(script, None)]
    with pytest.raises(UsageError, match="no directory"):
        vb.backup("web", scripts=ScriptSettings(tmp_path / "none", is_wanted=True))


def test_words_select_domains(
    vb: Connection, domain: FakeDomain, batches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain, "domains", lambda: [domain], raising=False)
    assert vb.backup_all(["w*"], total_speed_bytes_s=9) == ["web"]  # type: ignore[comparison-overlap]
    assert batches[0][1].total_bytes_s == 9
    assert vb.select(["web"]).chosen == (Chosen("web", UUID),)


def test_domains_of_the_host_are_selected(repo: Repository) -> None:
    """By libvirt's own test driver, whose domain runs in no QEMU."""
    with api.connect("test:///default", repository=repo) as vb:
        assert [one.name for one in vb.select(["t*"]).chosen] == ["test"]
        assert (vb.is_one("test"), vb.is_one("t*")) == (True, False)
        with pytest.raises(DomainNotFoundError, match="not in QEMU or KVM"):
            vb.select_all()
        with pytest.raises(DomainNotFoundError, match="excluded by the user"):
            vb.select_all(["t*"])


def test_domain_that_several_ask_for_is_busy_for_the_second(vb: Connection) -> None:
    with vb.repository.lock(UUID), pytest.raises(BusyError):
        vb.backup("web")


def test_audit_and_speed_pass_their_requests_on(vb: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    for module in (audit, speed):
        monkeypatch.setattr(module, "run", lambda request, **_named: asked.append(request))
    vb.audit("web")
    vb.audit(api.AuditRequest("web", percent=1))
    vb.set_speed(api.SpeedRequest("web", None))
    assert asked == [api.AuditRequest("web"), api.AuditRequest("web", percent=1), api.SpeedRequest("web", None)]


def test_recovery_is_of_the_domain_that_libvirt_or_the_repository_has(
    vb: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(recovery, "run", lambda uuid, **named: asked.append((uuid, named["abort"])))
    vb.recover("web", abort=True)
    vb.backup("web")
    vb.recover(UUID)
    assert asked == [(UUID, True), (UUID, False)]


# forgetting


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> list[Repository | None]:
    """The repositories whose locks are used."""
    used: list[Repository | None] = []
    monkeypatch.setattr(forget, "run", lambda _request, *, repository, **_named: used.append(repository))
    return used


def test_repository_of_the_connection_is_locked(vb: Connection, locked: list[Repository | None]) -> None:
    vb.forget(api.ForgetRequest("web", vb.repository.id))
    vb.forget(api.ForgetRequest("web", vb.repository.id, is_by_id=True))
    assert locked == [vb.repository, vb.repository]


def test_another_repository_has_to_be_meant(vb: Connection, locked: list[Repository | None]) -> None:
    with pytest.raises(UsageError, match="is_by_id"):
        vb.forget(api.ForgetRequest("web", "0123456789ab"))
    assert locked == []
    vb.forget(api.ForgetRequest("web", "0123456789ab", is_by_id=True))
    assert locked == [None]


def test_repository_that_is_gone_can_be_forgotten(
    domain: FakeDomain, locked: list[Repository | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_libvirt(monkeypatch, domain)
    with nullcontext(Connection(repository=tmp_path / "gone")) as gone, nullcontext(Connection()) as none:
        for one in (gone, none):
            one.forget(api.ForgetRequest("web", "0123456789ab", is_by_id=True))
            with pytest.raises((UsageError, api.VbackupError)):
                one.forget(api.ForgetRequest("web", "0123456789ab"))
    assert locked == [None, None]
