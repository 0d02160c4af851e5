"""A backup is held when all of it was sent, and not a moment earlier."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.builders import UUID, Recorder
from tests.unit.fake_domain import FakeDomain, partial
from vbackup.engine import delivery
from vbackup.engine.delivery import Delivery
from vbackup.errors import StorageError
from vbackup.model import Backup, Level
from vbackup.operations import backup
from vbackup.operations.backup import BackupRequest
from vbackup.repository import journal, stream_record
from vbackup.repository.journal import Step
from vbackup.repository.repository import Repository
from vbackup.repository.stream_record import StreamRecord
from vbackup.stop import Stop


def deliver(domain: FakeDomain, stage: Repository, given: Delivery) -> Backup:
    return backup.run(
        BackupRequest("web"),
        host=domain,  # type: ignore[arg-type]
        repository=stage,
        reporter=Recorder(),
        stop=Stop(),
        delivery=given,
    )


@pytest.fixture
def stage(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "stage", is_stage=True)


def test_all_files_are_there_while_it_is_sent_and_only_records_afterwards(
    domain: FakeDomain, stage: Repository
) -> None:
    seen: dict[str, object] = {}

    def send(made: Backup, directory: Path) -> None:
        entry = journal.read(directory, backup_id=made.id, domain_uuid=UUID)
        assert entry is not None
        seen.update(
            names={path.name for path in directory.iterdir()}, step=entry.step, open=domain.qemu.state()["fdsets"]
        )

    made = deliver(domain, stage, Delivery(StreamRecord("7", Level.FULL), send))
    images = {"vda.qcow2", "vda.blocks", "vdb.qcow2", "vdb.blocks"}
    assert seen == {"names": {*delivery._KEPT, *images, "domain.xml", "live.xml"}, "step": Step.FLUSHED, "open": []}
    path = stage.stage_path(UUID, made.id)
    assert {one.name for one in path.iterdir()} == delivery._KEPT
    entry = journal.read(path, backup_id=made.id, domain_uuid=UUID)
    assert entry is not None
    assert (entry.step, entry.is_of(path)) == (Step.STREAMED, True)
    record = stream_record.read(path)
    assert record is not None
    assert (record.job, record.asked) == ("7", Level.FULL)


def test_what_cannot_be_sent_is_not_held(domain: FakeDomain, stage: Repository) -> None:
    def send(_made: Backup, _directory: Path) -> None:
        raise StorageError("no")

    with pytest.raises(StorageError):
        deliver(domain, stage, Delivery(StreamRecord("7", Level.FULL), send))
    assert partial(stage) == []
    assert domain.bitmaps() == {"vda": {}, "vdb": {}}
