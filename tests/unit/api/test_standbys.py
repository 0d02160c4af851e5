"""Calls about standbys open the libvirt of the standby, and that of the original where it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder
from vbackup import api
from vbackup.api import Connection, FailbackRequest, FailoverRequest, ReplicateRequest
from vbackup.api.hosts import Hosts
from vbackup.errors import DomainNotFoundError, HostUnreachableError
from vbackup.operations import failback, failover, failover_test, replicate

STANDBY, ORIGINAL = "qemu+ssh://hv2/system", "qemu+ssh://hv1/system"


class FakeHosts:
    """The connections to one URI (Hosts): the host is that URI."""

    unreachable = frozenset[str]()
    closed: list[str]

    def __init__(self, uri: str | None) -> None:
        self._uri = uri

    def one(self) -> FakeHosts:
        if self._uri in FakeHosts.unreachable:
            raise HostUnreachableError(self._uri, "no route")
        return self

    def __enter__(self) -> str | None:
        return self._uri

    def __exit__(self, *_exc: object) -> None:
        pass

    def close(self) -> None:
        FakeHosts.closed.append(self._uri or "")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What reaches the operations, which do nothing."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for module in (replicate, failover, failover_test, failback):
        monkeypatch.setattr(module, "run", lambda *words, **named: calls.append((words, named)))
    monkeypatch.setattr("vbackup.api.standbys.Hosts", FakeHosts)
    monkeypatch.setattr("vbackup.api.connected.Hosts", FakeHosts)
    FakeHosts.unreachable, FakeHosts.closed = frozenset(), []
    return calls


@pytest.fixture
def vb(filled: Path, asked: list[Any]) -> Connection:
    return api.connect(ORIGINAL, repository=filled)


def test_replicate_asks_the_libvirt_of_the_standby_alone(vb: Connection, asked: list[Any]) -> None:
    vb.replicate(ReplicateRequest("web", STANDBY))
    [((request,), named)] = asked
    assert request == ReplicateRequest(UUID, STANDBY)
    assert named["host"] == STANDBY
    assert FakeHosts.closed == [STANDBY]
    with pytest.raises(DomainNotFoundError):
        vb.replicate(ReplicateRequest("db", STANDBY))


def test_failover_goes_on_without_the_original(vb: Connection, asked: list[Any]) -> None:
    vb.failover(FailoverRequest("web", STANDBY))
    vb.failover(FailoverRequest("web", STANDBY), asks_original=False)
    FakeHosts.unreachable = frozenset([ORIGINAL])
    reporter = Recorder()
    vb.failover(FailoverRequest("web", STANDBY), reporter=reporter)
    assert [(named["host"], named["original"]) for _, named in asked] == [
        (STANDBY, ORIGINAL),
        (STANDBY, None),
        (STANDBY, None),
    ]
    assert "cannot be asked" in reporter.warnings[0]
    vb.test_failover("web", STANDBY)
    assert asked[-1][0][1:] == (UUID, STANDBY)


def test_failback_needs_both(vb: Connection, asked: list[Any]) -> None:
    vb.failback(FailbackRequest("web", STANDBY))
    [((request,), named)] = asked
    assert (request.domain, named["host"], named["original"]) == (UUID, STANDBY, ORIGINAL)
    FakeHosts.unreachable = frozenset([ORIGINAL])
    with pytest.raises(HostUnreachableError):
        vb.failback(FailbackRequest("web", STANDBY))


def test_domains_without_standbys(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hosts, "one", lambda _hosts: pytest.fail("libvirt was asked"))
    vb = api.connect(repository=filled)
    assert vb.standbys() == vb.standbys(["web"]) == []
