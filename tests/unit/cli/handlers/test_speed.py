"""``vbackup speed`` tells the old and the new rate of each job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import REPOSITORY, UUID, backup_id, use_libvirt
from vbackup.names import JobName
from vbackup.operations import speed
from vbackup.operations.speed import Changed, SpeedChanged, SpeedRequest
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Sequence[SpeedRequest]:
    """A host on which two jobs run; the list gets the requests."""
    got: list[SpeedRequest] = []

    def run(request: SpeedRequest, *, host: object) -> SpeedChanged:
        got.append(request)
        jobs = [
            Changed(JobName(REPOSITORY, backup_id(1), dev), before) for dev, before in (("vda", None), ("vdb", 1024))
        ]
        return SpeedChanged("web", UUID, tuple(jobs))

    use_libvirt(monkeypatch, None)
    monkeypatch.setattr(speed, "run", run)
    return got


@pytest.mark.parametrize(
    "arguments", [("web", "2M"), ("--domain", "web", "2M"), ("2M", "--domain", "web")], ids=" ".join
)
def test_rate_is_the_last_word_however_the_domain_is_named(
    command: Command, requests: Sequence[SpeedRequest], arguments: tuple[str, ...]
) -> None:
    command("speed", *arguments)
    assert requests == [SpeedRequest("web", 2 * 1024 * 1024, disks=(), repository_id=None)]


def test_old_and_new_rate_are_told(command: Command, requests: Sequence[SpeedRequest]) -> None:
    lines = command("speed", "web", "2M").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["DISK", "BACKUP", "REPOSITORY", "OLD", "NEW"],
        ["vda", backup_id(1), REPOSITORY, "unlimited", "2.0", "MiB/s"],
        ["vdb", backup_id(1), REPOSITORY, "1.0", "KiB/s", "2.0", "MiB/s"],
    ]


def test_unlimited_is_null_in_the_document(command: Command, requests: Sequence[SpeedRequest]) -> None:
    document = command("speed", "web", "unlimited", "--json").document
    assert document == {
        "schema": "vbackup.speed/1",
        "domain": {"name": "web", "uuid": UUID},
        "speed_bytes_s": None,
        "jobs": [
            {"dev": dev, "backup": backup_id(1), "repository": REPOSITORY, "speed_before_bytes_s": before}
            for dev, before in (("vda", None), ("vdb", 1024))
        ],
    }


def test_repository_and_disks_narrow_it(command: Command, requests: Sequence[SpeedRequest], repository: Path) -> None:
    command("speed", "web", "1M", "-r", repository, "--disk", "vda")
    assert [(one.disks, one.repository_id) for one in requests] == [(("vda",), Repository.open(repository).id)]


def test_missing_rate_is_wrong_usage(command: Command, requests: Sequence[SpeedRequest]) -> None:
    assert "No rate given" in command("speed", "web", status=2).stderr
    assert requests == []
