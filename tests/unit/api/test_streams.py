"""Backups as streams by the library, on the fake QEMU: sent, committed, undone, received and restored."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.recorded import Recorded
from tests.unit.builders import UUID, Recorder, use_libvirt
from tests.unit.fake_domain import FakeDomain
from vbackup import api
from vbackup.api import BackupRequest, Connection, Level, StreamRequest
from vbackup.api.hosts import Hosts
from vbackup.errors import StorageError, StreamError, StreamNotPendingError, UsageError
from vbackup.operations import stream_restore
from vbackup.repository import stream_members
from vbackup.repository.repository import Repository


@pytest.fixture
def vb(domain: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> Connection:
    """Connected to a host with the running domain web, without a repository."""
    use_libvirt(monkeypatch, domain)
    return api.connect()


def test_backup_is_a_base_after_its_commit(vb: Connection, domain: FakeDomain, tmp_path: Path) -> None:
    stage, sent = tmp_path / "stage", io.BytesIO()
    first = vb.backup_stream(StreamRequest(BackupRequest("web"), "1"), sent.write, stage=stage)
    assert first.level is Level.FULL
    assert sent.getvalue()[:100].rstrip(b"\0").decode() == f"{UUID}/{first.id}/manifest.json"
    assert vb.commit_stream("web", "1", stage=stage).backup_id == first.id
    domain.write()
    opened = api.open_stage(stage)
    second = vb.backup_stream(StreamRequest(BackupRequest("web"), "2"), sent.write, stage=opened)
    assert second.level is Level.INCREMENTAL
    assert vb.abort_stream("web", "2", stage=opened).backup_id == second.id
    with pytest.raises(StreamNotPendingError):
        vb.commit_stream("web", "2", stage=opened)


def test_end_of_a_job_makes_no_stage(vb: Connection, tmp_path: Path) -> None:
    for end in (vb.commit_stream, vb.abort_stream):
        with pytest.raises(StorageError, match="is not a stage"):
            end("web", "1", stage=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.fixture
def stream(untouched: Recorded, monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """The streams of all recorded backups."""
    monkeypatch.setattr(Hosts, "one", lambda _hosts: pytest.fail("libvirt was asked"))
    file = io.BytesIO()
    for one in untouched.backups:
        directory = untouched.repository.directory(UUID, one.id)
        stream_members.send(one, directory, file.write, reporter=Recorder(), check=lambda: None)
    file.seek(0)
    return file


def test_streams_are_received_into_the_repository(stream: io.BytesIO, untouched: Recorded, tmp_path: Path) -> None:
    with api.connect(repository=Repository.create(tmp_path / "copy")) as vb:
        received = vb.receive_stream(stream.read, domain="web")
        assert [one.backup.id for one in received] == [one.id for one in untouched.backups]
        assert all(one.is_new for one in received)
        assert [len(one.backups) for one in vb.records("web")] == [len(untouched.backups)]
        stream.seek(0)
        with pytest.raises(StreamError):
            vb.receive_stream(stream.read, domain="db")
    stream.seek(0)
    with pytest.raises(UsageError, match="repository"):
        api.connect().receive_stream(stream.read)


def test_restore_of_a_stream_needs_no_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    got: list[object] = []

    def run(read: object, output: Path, *, domain: str | None, **_named: object) -> str:
        got.append((read, output, domain))
        return "restored"

    monkeypatch.setattr(stream_restore, "run_to_directory", run)
    assert api.connect().restore_stream(bytes, str(tmp_path / "out"), domain="web") == "restored"  # type: ignore[comparison-overlap]
    assert got == [(bytes, tmp_path / "out", "web")]
