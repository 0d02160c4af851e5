"""``vbackup replicate``: what it prints, and what it refuses before anything is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.builders import NOON, UUID, backup, backup_id
from vbackup.api import Connection, ReplicateRequest, StandbyCondition, StandbyStatus
from vbackup.operations.replicate import Replicated
from vbackup.operations.rollback import RolledBack
from vbackup.operations.standby_files import NewImage

if TYPE_CHECKING:
    from tests.conftest import Command

URI = "qemu+ssh://hv2/system"
ROLLED, NEW = RolledBack("vda", backup_id(2), 65536), NewImage("vdb", "there is none yet", 1 << 20)
DONE = Replicated(backup(2), URI, Path("/standby"), backup_id(1), (ROLLED,), (NEW,), False)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[ReplicateRequest]:
    """What is asked of the library, which has written two disks."""
    found: list[ReplicateRequest] = []

    def replicate(_vb: Connection, request: ReplicateRequest, **_named: Any) -> Replicated:
        found.append(request)
        return DONE

    monkeypatch.setattr(Connection, "replicate", replicate)
    return found


def test_what_was_written_is_printed(command: Command, filled: Path, requests: list[ReplicateRequest]) -> None:
    said = command("replicate", "web", "-r", filled, "--to", URI, "--directory", "/standby", "--speed", "1M").stdout
    assert said == (
        f"The standby of domain web at {URI} is as in backup {backup_id(2)}: 1.1 MiB written; it was as in"
        f" {backup_id(1)}.\n"
    )
    assert requests == [ReplicateRequest("web", URI, Path("/standby"), speed_bytes_s=1 << 20)]
    assert command("replicate", "web", "-r", filled, "--to", URI, "--host", "hv1", "-q").stdout == ""
    assert requests[-1] == ReplicateRequest("web", URI, host="hv1")
    document = command("replicate", "web", "-r", filled, "--to", URI, "--json").document
    assert [disk["full"] for disk in document["disks"]] == [None, "there is none yet"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["web"], "No host given"),
        (["--to", URI], "No domain given"),
        (["web", "--to", URI, "--status"], "--to is not for --status"),
        (["--status", "--directory", "/standby"], "--directory is not for --status"),
        (["--status", "--host", "hv1"], "--host is not for --status"),
        (["web", "--to", URI, "--directory", ""], "the path is empty"),
    ],
)
def test_bad_arguments_are_refused(command: Command, filled: Path, words: list[str], said: str) -> None:
    assert said in command("replicate", *words, "-r", filled, status=2).stderr


def test_status_is_a_table(command: Command, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("replicate", "--status", "-r", filled).stdout == "No standbys.\n"
    ready = StandbyStatus(
        *("web", UUID, URI, Path("/standby"), StandbyCondition.READY, False, backup_id(1), NOON, NOON),
        *((backup_id(2),), backup_id(3)),
    )
    lost = StandbyStatus(
        *("web", UUID, URI, Path("/standby"), StandbyCondition.UNREACHABLE, False, None, None, None, (), None, "gone")
    )
    monkeypatch.setattr(Connection, "standbys", lambda _vb, _words, **_named: [ready, lost])
    said = command("replicate", "web", "--status", "-r", filled).stdout
    assert "ready        " in said
    assert f"{URI}: gone\n" in said
    assert f"the original still has to get backup {backup_id(3)}" in said
    document = command("replicate", "--status", "-r", filled, "--json").document
    assert [one["state"] for one in document["standbys"]] == ["ready", "unreachable"]
