"""``vbackup failover``: what it prints, and what it refuses before anything is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.builders import NOON, UUID, backup_id
from vbackup.api import BootRequest, Connection, FailoverRequest
from vbackup.operations.failover import FailedOver
from vbackup.operations.failover_test import TriedFailover
from vbackup.repository.boot_result import BootResult

if TYPE_CHECKING:
    from tests.conftest import Command

URI = "qemu+ssh://hv2/system"
DONE = FailedOver("web", UUID, URI, backup_id(1), NOON, (backup_id(2),), True, False)


def test_what_it_goes_on_from_is_printed(command: Command, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[FailoverRequest, bool]] = []

    def failover(_vb: Connection, request: FailoverRequest, *, asks_original: bool, **_named: Any) -> FailedOver:
        asked.append((request, asks_original))
        return DONE

    monkeypatch.setattr(Connection, "failover", failover)
    said = command("failover", "web", "-r", filled, "--to", URI, "--as-is", "--force").stdout
    assert said == f"The standby of web at {URI} has taken over from {backup_id(1)}, and runs.\n"
    document = command("-c", "qemu:///system", "failover", "web", "-r", filled, "--to", URI, "--json").document
    assert document["not_applied"] == [backup_id(2)]
    assert asked == [
        (FailoverRequest("web", URI, is_forced=True, as_is=True), False),
        (FailoverRequest("web", URI), True),
    ]


@pytest.mark.parametrize(("is_good", "status", "verdict"), [(True, 0, "booted"), (False, 6, "failed")])
def test_verdict_of_a_test(
    command: Command, filled: Path, monkeypatch: pytest.MonkeyPatch, is_good: bool, status: int, verdict: str
) -> None:
    result = BootResult(NOON, is_good, "It did.", {"agent": True}, remarks=("vdb: is not there",))

    def tried(_vb: Connection, domain: str, to: str, request: BootRequest, **_named: Any) -> TriedFailover:
        assert (domain, to, request.console) == ("web", URI, "login:")
        return TriedFailover("web", UUID, URI, backup_id(1), result)

    monkeypatch.setattr(Connection, "test_failover", tried)
    words = ("failover", "web", "-r", filled, "--to", URI, "--test", "--boot-console", "login:")
    assert f"A copy of the standby of web: {verdict}. It did." in command(*words, status=status).stdout
    assert command(*words, "--json", status=status).document["boot"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["web"], "--to"),
        (["--to", URI], "No domain given"),
        (["web", "--to", URI, "--test", "--force"], "--force is not for --test"),
        (["web", "--to", URI, "--boot-console", "x"], "--boot-console needs --test"),
    ],
)
def test_bad_arguments_are_refused(command: Command, filled: Path, words: list[str], said: str) -> None:
    assert said in command("failover", *words, "-r", filled, status=2).stderr
