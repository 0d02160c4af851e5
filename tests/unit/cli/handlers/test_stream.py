"""``vbackup stream``: a stream on standard output, the word about it, and the way back from standard input."""

from __future__ import annotations

import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.recorded import Recorded
from tests.streams import descriptor
from tests.unit import builders
from tests.unit.builders import UUID, Recorder
from tests.unit.fake_domain import FakeDomain
from vbackup.errors import DomainNotFoundError
from vbackup.repository import stream_members
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def here(domain: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> FakeDomain:
    builders.use_libvirt(monkeypatch, domain)
    return domain


@pytest.fixture
def streamed(command: Command, tmp_path: Path, here: FakeDomain) -> Callable[..., str]:
    """Run ``vbackup stream backup`` of web into stream.tar, and return the log."""

    def run(job: str, *arguments: str | Path, status: int = 0, output: Path | int | None = None) -> str:
        here.write()
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        target = tmp_path / "stream.tar" if output is None else output
        with descriptor(1, target):
            done = command(
                *("stream", "backup", "web", "--stage", tmp_path / "stage", "--job", job, "--log", log, *arguments),
                status=status,
            )
        return log.read_text() + done.stderr

    return run


def end(command: Command, tmp_path: Path, which: str, job: str, *more: str, status: int = 0) -> Any:
    return command("stream", which, "web", "--stage", tmp_path / "stage", "--job", job, *more, status=status)


def test_stream_commit_and_the_next_one(command: Command, streamed: Callable[..., str], tmp_path: Path) -> None:
    assert "it waits for its commit" in streamed("1")
    with tarfile.open(tmp_path / "stream.tar", "r|") as archive:
        first = archive.next()
        assert first is not None
        assert first.name.endswith("-full/manifest.json")
    said = end(command, tmp_path, "commit", "1").stdout
    assert said == f"Backup {first.name.split('/')[1]} of job 1 was committed.\n"
    assert end(command, tmp_path, "commit", "1").stdout.endswith("was committed already.\n")
    streamed("2", "--level", "incremental")
    said = end(command, tmp_path, "abort", "2", "--json").document
    assert (said["schema"], said["state"], said["changed"], said["job"]) == ("vbackup.stream/1", "undone", True, "2")
    said = end(command, tmp_path, "abort", "2").stdout
    assert said == "No backup of job 2 is left to be undone.\n"
    assert "does not wait for a commit" in end(command, tmp_path, "commit", "2", status=6).stderr


def test_reader_that_has_gone_is_status_141(command: Command, streamed: Callable[..., str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    said = streamed("1", status=128 + signal.SIGPIPE, output=writing)
    os.close(writing)
    assert "The reader of the stream has gone" in said
    assert "its commit" in streamed("2")


def test_what_cannot_be_is_refused(command: Command, here: FakeDomain, tmp_path: Path, repository: Path) -> None:
    backup = ("stream", "backup", "web", "--job", "1", "--stage")
    assert "not JSON" in command(*backup, tmp_path / "s", "--json", status=2).stderr
    assert "cannot name a job" in command(*backup, tmp_path / "s", "--job", "a/b", status=2).stderr
    assert "invalid choice: 'copy'" in command(*backup, tmp_path / "s", "--level", "copy", status=2).stderr
    assert "is a repository and not a stage" in command(*backup, repository, status=7).stderr
    assert "is not a stage of streams" in end(command, tmp_path, "commit", "1", status=7).stderr
    assert not (tmp_path / "s").exists()


def test_stage_is_refused_by_all_other_commands(command: Command, streamed: Callable[..., str], tmp_path: Path) -> None:
    streamed("1")
    for words in (
        ["list"],
        ["verify", "--all"],
        ["recover", "web"],
        ["backup", "web"],
        ["restore", "web", "--output", "x"],
    ):
        assert "is a stage of streams" in command(*words, "-r", tmp_path / "stage", status=7).stderr


def script(directory: Path, phase: str, text: str) -> None:
    path = directory / f"{phase}.d" / "10-x"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_scripts_run_around_a_stream(
    command: Command, streamed: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who flushes a database before each backup does not expect that a stream goes without."""
    directory = tmp_path / "scripts.d"
    script(directory, "pre-backup", "echo $VBACKUP_LEVEL $VBACKUP_REPOSITORY")
    script(directory, "post-backup", "echo sent $VBACKUP_BACKUP_ID")
    monkeypatch.setenv("VBACKUP_SCRIPTS", str(directory))
    log = streamed("1")
    assert f"pre-backup script 10-x: full {tmp_path / 'stage'}" in log
    assert "post-backup script 10-x: sent 2" in log
    with tarfile.open(tmp_path / "stream.tar") as archive:  # what they print is not in it
        assert archive.getnames()[-1].endswith("SHA256SUMS")
    end(command, tmp_path, "commit", "1")
    script(tmp_path / "failing", "pre-backup", "exit 3")
    script(tmp_path / "failing", "on-failure", "echo failed with $VBACKUP_STATUS")
    log = streamed("2", "--scripts", tmp_path / "failing", status=9)
    assert "on-failure script 10-x: failed with 9" in log
    assert (tmp_path / "stream.tar").read_bytes() == b""
    assert "script" not in streamed("3", "--no-scripts")


@pytest.fixture
def given(untouched: Recorded, tmp_path: Path) -> Path:
    """A file with the streams of all recorded backups."""
    path = tmp_path / "streams"
    with path.open("wb") as file:
        for one in untouched.backups:
            directory = untouched.repository.directory(UUID, one.id)
            stream_members.send(one, directory, file.write, reporter=Recorder(), check=lambda: None)
    return path


def restore(command: Command, given: Path, *arguments: str | Path, status: int = 0) -> Any:
    with descriptor(0, given):
        return command("stream", "restore", *arguments, status=status)


def test_streams_are_restored_into_a_repository(
    command: Command, untouched: Recorded, given: Path, repository: Path
) -> None:
    said = restore(command, given, "-r", repository).stdout
    assert said.splitlines() == [f"Backup {one.id} of domain web was received." for one in untouched.backups]
    assert list(Repository.open(repository).catalogue(UUID).history.backups) == untouched.backups
    again = restore(command, given, "-r", repository, "--domain", "web", "--json").document
    assert again["schema"] == "vbackup.streams/1"
    assert [(one["id"], one["new"]) for one in again["backups"]] == [(one.id, False) for one in untouched.backups]
    assert again["files"] == []
    assert "and not of db" in restore(command, given, "-r", repository, "--domain", "db", status=6).stderr


def test_streams_are_restored_into_a_directory(command: Command, given: Path, tmp_path: Path) -> None:
    said = restore(command, given, tmp_path / "out").stdout
    for name in ("vda.qcow2", "vdb.qcow2", "domain.xml"):
        assert f"  {tmp_path / 'out' / name}\n" in said
        assert (tmp_path / "out" / name).exists()
    assert f"virsh define {tmp_path / 'out' / 'domain.xml'}\n" in said
    assert "is not empty" in restore(command, given, tmp_path / "out", status=7).stderr
    written = restore(command, given, tmp_path / "more", "--json").document["files"]
    assert {Path(path).name for path in written} == {path.name for path in (tmp_path / "more").iterdir()}


def test_directory_and_repository_at_once_are_refused(
    command: Command, given: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not to both" in restore(command, given, tmp_path / "out", "-r", repository, status=2).stderr
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("VBACKUP_REPOSITORY", str(repository))  # only the default
    restore(command, given, tmp_path / "out")
    assert Repository.open(repository).uuids() == []


def test_stream_that_is_cut_is_status_6(command: Command, given: Path, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(given.read_bytes()[:70_000])
    log = tmp_path / "log"
    assert "is cut off" in restore(command, tmp_path / "cut", "-r", repository, "--log", log, status=6).stderr
    assert "No repository given" in restore(command, given, status=2).stderr


def test_log_can_lie_in_a_stage_that_the_first_backup_makes(command: Command, here: FakeDomain, tmp_path: Path) -> None:
    here.write()
    stage = tmp_path / "new" / "stage"
    log = stage / "web.log"
    with descriptor(1, tmp_path / "stream.tar"):
        done = command("stream", "backup", "web", "--stage", stage, "--job", "1", "--log", log)
    assert "it waits for its commit" in log.read_text()
    assert done.stderr == ""


def test_stream_of_an_unknown_domain_runs_the_scripts_for_failures(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Empty:
        real_uri = "qemu:///system"

        def domain(self, name: str) -> None:
            raise DomainNotFoundError(name, self.real_uri, "x")

    builders.use_libvirt(monkeypatch, Empty())
    script = tmp_path / "scripts.d" / "on-failure.d" / "tell"
    script.parent.mkdir(mode=0o755, parents=True)
    script.write_text('#!/bin/sh\necho "told: $VBACKUP_STATUS $VBACKUP_DOMAIN"\n')
    script.chmod(0o755)
    with descriptor(1, tmp_path / "stream.tar"):
        done = command(
            *("stream", "backup", "nix", "--stage", tmp_path / "stage", "--job", "1"),
            *("--scripts", tmp_path / "scripts.d"),
            status=4,
        )
    assert done.stderr.count("told: 4 nix") == 1
