"""What the standbys are like is what their libvirt says, as far as it says something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import NOON, UUID, backup_id
from vbackup.domain import standby_xml
from vbackup.domain.standby_xml import Mark, State
from vbackup.errors import HostUnreachableError, UnsuitableError
from vbackup.model import Level
from vbackup.operations import standby, standby_status
from vbackup.operations.standby_status import Condition
from vbackup.repository import standbys
from vbackup.repository.repository import Repository
from vbackup.repository.standbys import Record

URI = "qemu+ssh://hv2/system"
XML = f"<domain><name>web</name><uuid>{UUID}</uuid><os><type>hvm</type></os></domain>"


class FakeHost:
    """A libvirt (Host) that has the standby, and the standby in it (DomainHandle)."""

    name, uuid, uri, real_uri, is_local = "web", UUID, URI, URI, True

    def __init__(self, xml: str | None, *, runs: bool = False) -> None:
        self._xml, self._runs = xml, runs
        self.host = self

    def domains(self) -> list[Any]:
        return [] if self._xml is None else [self]

    def definition_xml(self) -> str:
        assert self._xml is not None
        return self._xml

    def is_active(self) -> bool:
        return self._runs


def status(path: Path, host: FakeHost | Exception) -> standby_status.StandbyStatus:
    @contextmanager
    def connect(uri: str) -> Iterator[Any]:
        assert uri == URI
        if isinstance(host, Exception):
            raise host
        yield host

    [found] = standby_status.run([UUID], Repository.open(path), connect)
    return found


@pytest.fixture
def recorded(filled: Path) -> Path:
    """A repository with two backups of web, and a standby that has got the first one."""
    standbys.put(filled / UUID, Record(URI, Path("/standby"), backup_id(1), NOON))
    return filled


def defined(state: State, repository_path: Path, number: int = 1) -> str:
    repository = Repository.open(repository_path)
    text, _ = standby_xml.made(XML, Mark(state, repository.id, backup_id(number), "/standby"))
    if state is State.HALF_APPLIED:
        return standby_xml.half_applied(text, backup_id(2, Level.INCREMENTAL))
    return standby_xml.active(text) if state is State.ACTIVE else text


@pytest.mark.parametrize(
    ("state", "runs", "condition"),
    [
        (State.READY, False, Condition.READY),
        (State.READY, True, Condition.STARTED),
        (State.ACTIVE, True, Condition.ACTIVE),
        (State.ACTIVE, False, Condition.ACTIVE),
        (State.HALF_APPLIED, False, Condition.HALF_APPLIED),
    ],
)
def test_condition_is_that_of_the_definition(recorded: Path, state: State, runs: bool, condition: Condition) -> None:
    found = status(recorded, FakeHost(defined(state, recorded), runs=runs))
    assert (found.condition, found.is_running, found.backup_id) == (condition, runs, backup_id(1))
    assert found.behind == (backup_id(2, Level.INCREMENTAL),)
    assert found.time is not None


def test_what_libvirt_does_not_say(recorded: Path) -> None:
    assert status(recorded, FakeHost(None)).condition is Condition.MISSING
    found = status(recorded, HostUnreachableError(URI, "no route"))
    assert (found.condition, found.backup_id, found.applied) == (Condition.UNREACHABLE, backup_id(1), NOON)
    assert "no route" in (found.reason or "")
    found = status(recorded, FakeHost(XML))
    assert found.condition is Condition.UNKNOWN
    assert "is not a standby" in (found.reason or "")


def test_standby_of_another_repository_is_refused(recorded: Path) -> None:
    text, _ = standby_xml.made(XML, Mark(State.READY, "f" * 12, backup_id(1), "/standby"))
    with pytest.raises(UnsuitableError, match="another repository"):
        standby.find(FakeHost(text), UUID, Repository.open(recorded))  # type: ignore[arg-type]
