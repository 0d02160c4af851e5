"""What every call has: a repository that is opened when it is needed, names of domains, a reporter, a stop."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.unit.builders import UUID, Recorder, backup, commit, use_libvirt
from vbackup import api
from vbackup.api.connected import Connected
from vbackup.errors import AmbiguousNameError, DomainNotFoundError, StorageError, UsageError
from vbackup.report import Labelled, Phase, Silent
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

OTHER = "f0000000-0000-4000-8000-000000000002"


class FakeLibvirt:
    """libvirt with one domain of that name."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid

    def domain(self, _name: str) -> FakeLibvirt:
        return self


def test_repository_is_opened_when_it_is_needed(filled: Path, tmp_path: Path) -> None:
    assert Connected(repository=filled).repository.path == filled
    assert Connected(repository=str(filled)).repository.id == Repository.open(filled).id
    opened = Repository.open(filled)
    assert Connected(repository=opened).repository is opened
    late = Connected(repository=tmp_path / "later")
    assert late.has_repository
    with pytest.raises(StorageError):
        _ = late.repository


@pytest.mark.parametrize("nothing", [None, ""])
def test_call_without_a_repository_is_wrong_usage(nothing: str | None) -> None:
    connected = Connected(repository=nothing)
    assert not connected.has_repository
    with pytest.raises(UsageError, match="give connect"):
        _ = connected.repository


def test_domain_is_known_by_name_and_uuid(filled: Path) -> None:
    connected = Connected(repository=filled)
    assert connected.uuid_of("web") == connected.uuid_of(UUID) == connected.uuid_of(UUID.upper()) == UUID
    assert connected.uuids_of(["web", UUID, "w*"]) == [UUID]
    for word in ("nothing", "n*", OTHER, "../web"):
        with pytest.raises(DomainNotFoundError, match=re.escape(word)):
            connected.uuids_of([word])


def test_single_word_is_not_taken_for_its_letters(filled: Path) -> None:
    with api.connect("test:///default", repository=filled) as vb:
        assert vb.uuids_of("web") == [UUID]
        assert [one.name for one in vb.select("test").chosen] == ["test"]
        assert vb.check("web").domains[0].uuid == UUID
        assert vb.repair("web", dry_run=True).failed == {}


def test_libvirt_decides_between_domains_of_one_name(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(Repository.open(filled), backup(3, domain_uuid=OTHER))
    recorder = Recorder()
    connected = Connected(repository=filled, reporter=recorder)
    use_libvirt(monkeypatch, FakeLibvirt(OTHER))
    assert connected.uuid_of("web") == OTHER
    assert len(recorder.warnings) == 1
    assert connected.uuid_of("web", reporter=Silent()) == OTHER
    assert len(recorder.warnings) == 1
    use_libvirt(monkeypatch, FakeLibvirt("f0000000-0000-4000-8000-000000000003"))
    with pytest.raises(AmbiguousNameError) as caught:
        connected.uuid_of("web")
    assert sorted(caught.value.uuids) == sorted([UUID, OTHER])


def test_stop_of_the_call_comes_before_that_of_the_connection() -> None:
    mine, of_all = Stop(), Stop()
    assert Connected(stop=of_all)._stop(mine) is mine
    assert Connected(stop=of_all)._stop(None) is of_all
    of_all.request(signal.SIGTERM)
    assert Connected()._stop(None).signum is None


def test_reporter_that_knows_no_domains_gets_their_names() -> None:
    recorder = Recorder()
    labelled = Connected(reporter=recorder)._labelling(None).labelled("web")
    labelled.step("one")
    labelled.warning("two")
    labelled.progress("vda", Phase.COPY, 1, 2)
    assert (recorder.steps, recorder.warnings, recorder.told) == (["web: one"], ["web: two"], {"web/vda": [(1, 2)]})
    whole = Connected(reporter=recorder)._labelling(None)
    whole.step("all")
    whole.warning("all")
    whole.progress("vda", Phase.COPY, 2, 2)
    assert recorder.steps[-1] == recorder.warnings[-1] == "all"


def test_reporter_that_knows_domains_is_asked_for_theirs() -> None:
    class Telling(Recorder):
        def labelled(self, domain: str) -> Labelled:
            return Labelled(self, f"<{domain}>")

    recorder = Telling()
    Connected()._labelling(recorder).labelled("web").step("one")
    assert recorder.steps == ["<web>: one"]
