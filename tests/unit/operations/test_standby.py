"""A standby is found by its mark, and whoever works on it, or on its original meanwhile, is told what that means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import NOON, UUID, Recorder, backup_id
from tests.unit.fake_domain import FakeDomain, run
from vbackup.domain import standby_xml
from vbackup.domain.standby_xml import Mark, State
from vbackup.errors import UnsuitableError, command
from vbackup.operations import failover, replicate, standby
from vbackup.operations.failover import FailoverRequest
from vbackup.operations.replicate import ReplicateRequest
from vbackup.repository import standbys
from vbackup.repository.repository import Repository
from vbackup.repository.standbys import Record
from vbackup.stop import Stop

URI = "qemu+ssh://hv2/system"
RECORD = Record(URI, Path("/standby"), backup_id(1), NOON)
XML = f"<domain><name>web</name><uuid>{UUID}</uuid><os><type>hvm</type></os></domain>"
SAID = f"The standby web at {URI} runs, but has not taken over: it was started by hand."
ADVICE = f"'virsh -c {URI} shutdown web', and run 'vbackup replicate web --to {URI}'"


class FakeHost:
    """A libvirt (Host) that has the standby, and the standby in it (DomainHandle)."""

    name, uuid, uri, real_uri, is_local = "web", UUID, URI, URI, True

    def __init__(self, xml: str, *, runs: bool = True) -> None:
        self.xml, self.runs, self.has_memory = xml, runs, False
        self.host = self

    def domains(self) -> list[Any]:
        return [self]

    def virsh(self, word: str) -> str:
        return command(f"virsh {word} web", URI)

    def definition_xml(self) -> str:
        return self.xml

    def live_xml(self) -> str:
        return self.xml

    def is_active(self) -> bool:
        return self.runs

    def has_managed_save(self) -> bool:
        return self.has_memory


def at(repository: Repository, state: State, *, runs: bool = True) -> Any:
    text, _ = standby_xml.made(XML, Mark(State.READY, repository.id, backup_id(1), "/standby"))
    return FakeHost(standby_xml.active(text) if state is State.ACTIVE else text, runs=runs)


def test_standby_that_was_started_by_hand_is_named_and_no_restore_is_offered(filled: Path) -> None:
    repository = Repository.open(filled)
    host = at(repository, State.READY)
    named: Any = {"host": host, "repository": repository, "reporter": Recorder(), "stop": Stop()}
    for call in (
        lambda: replicate.run(ReplicateRequest("web", URI), **named),
        lambda: failover.run(FailoverRequest("web", URI), original=None, **named),
    ):
        with pytest.raises(UnsuitableError) as caught:
            call()
        assert str(caught.value).startswith(SAID)
        assert ADVICE in str(caught.value)
        assert "--output" not in str(caught.value)


def test_saved_memory_of_a_standby_is_refused_as_that_of_every_domain(filled: Path) -> None:
    repository = Repository.open(filled)
    host = at(repository, State.READY, runs=False)
    found = standby.get(host, UUID, repository)
    standby.refuse_running(found)
    host.has_memory = True
    with pytest.raises(UnsuitableError, match="managed save"):
        standby.refuse_running(found)


def test_failover_is_recorded_until_the_standby_is_one_again(filled: Path) -> None:
    repository = Repository.open(filled)
    standbys.put(filled / UUID, RECORD)
    host = at(repository, State.ACTIVE)
    for _ in range(2):
        failover.run(
            FailoverRequest("web", URI),
            host=host,
            original=None,
            repository=repository,
            reporter=Recorder(),
            stop=Stop(),
        )
    found = standbys.find(filled / UUID, URI)
    assert found is not None
    assert found.taken_over is not None
    assert (found.backup, found.applied) == (RECORD.backup, RECORD.applied)


def warned(repository: Repository, host: Any) -> list[str]:
    recorder = Recorder()
    standby.warn_taken_over(host, repository, recorder)
    return recorder.warnings


def test_backup_of_the_original_says_since_when_its_standby_has_taken_over(filled: Path) -> None:
    repository, original = Repository.open(filled), FakeHost(XML)
    assert warned(repository, original) == []
    standbys.put(filled / UUID, RECORD)
    assert warned(repository, original) == []
    standbys.put(filled / UUID, Record(URI, Path("/standby"), backup_id(1), NOON, taken_over=NOON))
    [warning] = warned(repository, original)
    assert warning == (
        f"The standby at {URI} has taken over since {NOON.astimezone():%Y-%m-%d %H:%M:%S}, and this is a backup of the"
        " original web, whose changes since then are lost with a failback."
    )
    assert warned(repository, at(repository, State.ACTIVE)) == []
    (filled / UUID / standbys.NAME).write_text("{")
    assert warned(repository, original) == []


def test_backup_of_an_original_is_made_all_the_same(domain: FakeDomain, repo: Repository) -> None:
    run(domain, repo)
    standbys.put(repo.path / UUID, Record(URI, Path("/standby"), taken_over=NOON))
    recorder = Recorder()
    two = run(domain, repo, recorder)
    assert two.sequence == 2
    [warning] = [one for one in recorder.warnings if "has taken over since" in one]
    assert URI in warning
