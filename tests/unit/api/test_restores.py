"""Restores by the library ask libvirt only for what it has to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder, use_libvirt
from vbackup import api
from vbackup.api import (
    AbortRequest,
    Connection,
    DefineRequest,
    DomainScripts,
    InPlaceRequest,
    LiveRequest,
    RestoredInPlace,
    RestoreRequest,
    ResumeRequest,
    ScriptSettings,
)
from vbackup.api.hosts import Hosts
from vbackup.domain import pools
from vbackup.errors import BusyError, DomainNotFoundError, UsageError
from vbackup.operations import live_abort, live_restore, live_resume, restore, restore_in_place, restore_there
from vbackup.repository.choice import Wanted
from vbackup.stop import Stop


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """The requests that reach the operations, which do nothing, and what comes with them."""
    requests: list[tuple[Any, dict[str, Any]]] = []
    for module in (restore, restore_in_place, live_restore, live_resume, live_abort):
        monkeypatch.setattr(module, "run", lambda request, **named: requests.append((request, named)))
    return requests


@pytest.fixture
def vb(filled: Path) -> Connection:
    return api.connect("qemu:///system", repository=filled)


def test_name_and_directory_are_enough(vb: Connection, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hosts, "one", lambda _hosts: pytest.fail("libvirt was asked"))
    vb.restore("web", "/restored")
    [(request, named)] = asked
    assert request == RestoreRequest(UUID, Path("/restored"), uri="qemu:///system")
    assert (named["host"], named["pool"]) == (None, None)


def test_directory_is_given_once(vb: Connection, asked: list[Any]) -> None:
    with pytest.raises(UsageError, match="No directory"):
        vb.restore("web")
    with pytest.raises(UsageError, match="once"):
        vb.restore(RestoreRequest("web", Path("/one")), "/other")
    with pytest.raises(DomainNotFoundError):
        vb.restore("db", "/restored")
    assert asked == []


def test_libvirt_defines_and_has_pools(vb: Connection, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    libvirt = SimpleNamespace(has_link=False)
    use_libvirt(monkeypatch, libvirt)
    monkeypatch.setattr(pools, "opened", lambda host, name, *, by_link: (host, name))
    vb.restore(RestoreRequest("web", Path("/one"), define=DefineRequest("new", True), uri="qemu:///session"))
    vb.restore("web", "/two", pool="default")
    assert [(named["host"], named["pool"]) for _, named in asked] == [(libvirt, None), (libvirt, (libvirt, "default"))]
    assert asked[0][0].uri == "qemu:///session"


def test_domain_is_defined_where_libvirt_is(vb: Connection, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pool of it, too; without a definition, the disks come to this host."""
    use_libvirt(monkeypatch, SimpleNamespace(has_link=True))
    monkeypatch.setattr(pools, "opened", lambda host, name, *, by_link: (name, by_link))
    there: list[Any] = []
    monkeypatch.setattr(restore_there, "run", lambda request, *, pool, **named: there.append((request.output, pool)))
    vb.restore(RestoreRequest("web", Path("/there"), define=DefineRequest()))
    vb.restore(RestoreRequest("web", Path("/there"), define=DefineRequest()), pool="default")
    assert (there, asked) == ([(Path("/there"), None), (Path("/there"), ("default", True))], [])
    vb.restore("web", "/here")
    assert (len(there), [request.output for request, _ in asked]) == (2, [Path("/here")])


def test_others_need_libvirt(vb: Connection, asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_libvirt(monkeypatch, "libvirt")
    vb.restore_in_place("web")
    vb.restore_live(LiveRequest("web", tmp_path, Wanted()))
    vb.resume_live(ResumeRequest("web", tmp_path))
    vb.abort_live(AbortRequest("web", tmp_path, is_confirmed=True))
    assert [request for request, _ in asked] == [
        InPlaceRequest("web"),
        LiveRequest(UUID, tmp_path, Wanted()),
        ResumeRequest("web", tmp_path),
        AbortRequest("web", tmp_path, is_confirmed=True),
    ]
    assert {named["host"] for _, named in asked} == {"libvirt"}


def test_pool_and_scripts_of_a_live_restore(
    vb: Connection, asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_libvirt(monkeypatch, "libvirt")
    monkeypatch.setattr(pools, "opened", lambda host, name: (host, name))
    own = DomainScripts(ScriptSettings(), reporter=Recorder(), stop=Stop(), work="restore", domain="web")
    vb.restore_live(LiveRequest("web", tmp_path, Wanted()), pool="default", scripts=own)
    [(_, named)] = asked
    assert (named["pool"], named["scripts"]) == (("libvirt", "default"), own)


@pytest.mark.parametrize("fails", [False, True])
def test_scripts_run_after_a_restore(
    vb: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, fails: bool
) -> None:
    for phase in ("post-restore", "on-failure"):
        script = tmp_path / "scripts" / f"{phase}.d" / "say"
        script.parent.mkdir(mode=0o755, parents=True)
        script.write_text("#!/bin/sh\ncat >&2\n")
        script.chmod(0o755)
    done = RestoredInPlace("the-backup", "web", UUID, ())

    def run(_request: InPlaceRequest, *, scripts: DomainScripts, **_named: object) -> RestoredInPlace:
        scripts.of_domain("web", UUID, uri="")
        if fails:
            raise BusyError("It is busy.")
        return done

    use_libvirt(monkeypatch, None)
    monkeypatch.setattr(restore_in_place, "run", run)
    recorder, settings = Recorder(), ScriptSettings(tmp_path / "scripts", is_wanted=True)
    if fails:
        with pytest.raises(BusyError):
            vb.restore_in_place("web", scripts=settings, reporter=recorder)
    else:
        assert vb.restore_in_place("web", scripts=settings, reporter=recorder) is done
    [said] = recorder.steps
    phase, schema = ("on-failure", "vbackup.error/1") if fails else ("post-restore", "vbackup.rollback/1")
    assert said.startswith(f"{phase} script say: {{")
    assert schema in said
