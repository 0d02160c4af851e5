"""``vbackup audit`` tells what was read, what that proves, and what was missed; a missed change is status 6."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.builders import NOON, UUID, backup_id, use_libvirt
from vbackup.operations import audit
from vbackup.operations.audit import Audit, AuditRequest, DiskAudit, NotAudited
from vbackup.repository.audit_comparison import Compared, Range
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command

GOOD = DiskAudit("vda", backup_id(2), 1 << 40, False, Compared(clean_data=100_000, read_data=1000, read_zeros=2000))
WHOLE = DiskAudit("vdb", backup_id(2), 1 << 24, True, Compared(clean_data=256, read_data=256))
BAD = DiskAudit(
    "vdc",
    backup_id(2),
    1 << 24,
    False,
    Compared(256, 256, 0, wrong=3, ranges=[Range(65536, 131072, backup_id(0)), Range(0, 65536, backup_id(1))]),
)


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A host and a repository; ``disks`` has what the audit finds, ``request`` gets what was asked for."""
    state: dict[str, Any] = {"disks": (GOOD, WHOLE)}

    def run(request: AuditRequest, **_named: object) -> Audit:
        state["request"] = request
        return Audit("web", UUID, NOON, state["disks"], (NotAudited("vdd", "it is new"),))

    use_libvirt(monkeypatch, None)
    monkeypatch.setattr(audit, "run", run)
    monkeypatch.setenv("VBACKUP_REPOSITORY", str(Repository.create(tmp_path / "repository").path))
    return state


def test_options_are_what_was_asked_for(command: Command, audited: dict[str, Any]) -> None:
    options = ("--disk", "vda", "--sample", "2.5%", "--speed", "1M", "--max-latency", "20", "--wait-lock", "1m")
    command("audit", "web", *options, "--scratch", "/fast", "--exclusive")
    assert audited["request"] == AuditRequest("web", ("vda",), 2.5, 20, 1 << 20, Path("/fast"), 60, True)


@pytest.mark.parametrize("sample", ["0", "101", "-1", "x", "1e2", ""])
def test_percentage_that_is_none_is_refused(command: Command, audited: dict[str, Any], sample: str) -> None:
    assert "percentage" in command("audit", "web", f"--sample={sample}", status=2).stderr


def test_confidence_is_told(command: Command, audited: dict[str, Any]) -> None:
    printed = command("audit", "web").stdout
    assert "tracking missed nothing" in printed
    assert (
        "Disk vda: 1 % of the unchanged data was read. Missed changes of 18.7 MiB (299 blocks, anywhere) would have"
        " been found with a chance of 95 %, one block with 1 %." in printed
    )
    assert "Disk vdb: all data that is unchanged was read." in printed
    assert "Disk vdb: older backups have no block lists" in printed
    assert command("-q", "audit", "web").stdout == ""


def test_missed_change_is_status_6(command: Command, audited: dict[str, Any]) -> None:
    audited["disks"] = (BAD,)
    printed = command("audit", "web", status=6).stdout
    assert "tracking missed changes" in printed
    assert f"Disk vdc: wrong from byte 65536 on, 131072 bytes, since {backup_id(0)}" in printed
    document = command("audit", "web", "--json", status=6).document
    assert document["verdict"] == document["disks"][0]["verdict"] == "missed"
    assert document["disks"][0]["wrong_bytes"] == 3 * 65536
    assert document["disks"][0]["ranges"][1] == {"start_bytes": 0, "length_bytes": 65536, "since": backup_id(1)}
    assert BAD.oldest_doubt == backup_id(0)


def test_document_has_the_chances(command: Command, audited: dict[str, Any]) -> None:
    document = command("audit", "web", "--json").document
    assert (document["schema"], document["verdict"]) == ("vbackup.audit/1", "good")
    assert document["disks"][0]["chance_to_miss"][:2] == [
        {"blocks": 1, "chance": 0.99},
        {"blocks": 10, "chance": 0.904382},
    ]
    assert document["not_audited"] == [{"dev": "vdd", "reason": "it is new"}]
