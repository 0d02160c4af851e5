"""``vbackup engine``: what a director calls, and the configuration that makes it call."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.recorded import Recorded
from tests.streams import descriptor
from tests.unit import builders
from tests.unit.builders import UUID, Recorder
from tests.unit.fake_domain import FakeDomain
from vbackup.repository import stream_members
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

Job = Callable[..., "Outcome"]


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    return tmp_path / "stage"


@pytest.fixture
def read(command: Command, domain: FakeDomain, stage: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Job:
    """Run ``vbackup engine read`` of web, as a director calls it; its stream goes to a file, or to ``output``."""
    builders.use_libvirt(monkeypatch, domain)

    def run(job: str, level: str, *, status: int = 0, output: int | Path | None = None) -> Outcome:
        domain.write()
        target = tmp_path / f"{job}.tar" if output is None else output
        with descriptor(1, target):
            return command(
                *("engine", "read", "--domain", "web", "--job-id", job, "--level", level, "--stage", stage),
                status=status,
            )

    return run


@pytest.fixture
def finish(command: Command, stage: Path) -> Job:
    def run(job: str, level: str, how: str = "OK", *, status: int = 0) -> Outcome:
        return command(
            *("engine", "finish", "--domain", "web", "--job-id", job, "--level", level, "--exit", how),
            *("--stage", stage),
            status=status,
        )

    return run


def levels(stage: Path) -> list[str]:
    return [one.level.value for one in Repository.open(stage, is_stage=True).catalogue(UUID).history.backups]


def test_jobs_of_a_week(read: Job, finish: Job, stage: Path) -> None:
    for job, level in enumerate(["Full", "Incremental", "Incremental"]):
        read(str(job), level)
        said = finish(str(job), level).stdout
        assert said.splitlines()[-1].endswith("was committed: the next one starts from it.")
    assert levels(stage) == ["full", "incremental", "incremental"]
    read("4", "Differential")
    finish("4", "Differential")
    assert levels(stage)[-1] == "differential"
    read("5", "Full")
    finish("5", "Full")
    assert levels(stage) == ["full", "differential", "full"]


def test_log_of_the_reader_is_printed_once_by_finish(read: Job, finish: Job, stage: Path) -> None:
    read("1", "Full")
    assert (stage / "web-1.log").stat().st_mode & 0o777 == 0o600
    said = finish("1", "Full").stdout
    assert "Disk vda: full" in said
    assert "it waits for its commit" in said
    assert not (stage / "web-1.log").exists()
    assert len(finish("1", "Full").stdout.splitlines()) == 1


@pytest.mark.parametrize("how", ["Error", "Fatal Error", "Canceled", "OK -- with warnings", "", "ok"])
def test_job_that_is_not_ok_is_undone(read: Job, finish: Job, stage: Path, how: str) -> None:
    read("1", "Full")
    finish("1", "Full")
    read("2", "Incremental")
    assert "was undone; the next backup starts from the one before" in finish("2", "Incremental", how, status=1).stdout
    assert levels(stage) == ["full"]
    assert "nothing of its backup was kept" in finish("2", "Incremental", how, status=1).stdout


def test_job_whose_reader_has_failed_is_no_success(read: Job, finish: Job, stage: Path) -> None:
    """Bacula calls it OK; the exit status of finish makes it an error."""
    read("1", "Full")
    finish("1", "Full")
    reading, writing = os.pipe()
    os.close(reading)
    read("2", "Incremental", status=128 + signal.SIGPIPE, output=writing)
    os.close(writing)
    said = finish("2", "Incremental", status=6).stdout
    assert "The reader of the stream has gone" in said
    assert "does not wait for a commit" in said
    assert levels(stage) == ["full"]


def test_director_that_counts_on_a_base_gets_a_full_where_there_is_none(read: Job, finish: Job, stage: Path) -> None:
    """A job that fails every night until somebody asks for a full would be worse."""
    read("1", "Incremental")
    finish("1", "Incremental")
    read("2", "Differential")
    finish("2", "Differential")
    assert levels(stage) == ["full", "full"]


def test_what_is_no_level_is_refused(read: Job, finish: Job) -> None:
    assert "is no level" in read("1", "VirtualFull", status=2).stderr
    assert "is no level" in finish("1", "Base", status=2).stderr


def test_write_puts_streams_into_a_repository_of_the_restore(
    command: Command, untouched: Recorded, tmp_path: Path
) -> None:
    for one in untouched.backups:
        directory = untouched.repository.directory(UUID, one.id)
        with (tmp_path / "stream").open("wb") as file:
            stream_members.send(one, directory, file.write, reporter=Recorder(), check=lambda: None)
        with descriptor(0, tmp_path / "stream"):
            command("engine", "write", "--domain", "web", "--where", tmp_path / "restore")
    restored = Repository.open(tmp_path / "restore" / "vbackup").catalogue(UUID)
    assert (list(restored.history.backups), restored.broken) == (untouched.backups, ())
    assert "has arrived" in (tmp_path / "restore" / "vbackup.log").read_text()
    with descriptor(0, tmp_path / "stream"):
        command("engine", "write", "--domain", "db", "--where", tmp_path / "restore", status=6)
    assert "and not of db" in (tmp_path / "restore" / "vbackup.log").read_text()


@pytest.mark.parametrize("where", ["/", "relative"])
def test_restore_over_the_original_is_refused(command: Command, where: str) -> None:
    assert (
        "needs a directory for itself"
        in command("engine", "write", "--domain", "web", "--where", where, status=2).stderr
    )


@pytest.mark.parametrize("kind", ["bacula", "bareos"])
def test_config_is_printed_for_the_domains(command: Command, kind: str) -> None:
    said = command("engine", "config", "--for", kind, "--domain", "web", "db", "--program", "/opt/vbackup").stdout
    assert [line for line in said.splitlines() if line.startswith("  Name = vbackup-")] == [
        f"  Name = vbackup-{name}" for domain in ("web", "db") for name in (domain, domain, f"{domain}-restore")
    ]
    assert f"Name = {kind}-dir" in said
    again = command("engine", "config", "--for", kind, "--domain", "web", "db", "--program", "/opt/vbackup").stdout
    passwords = {line for line in (said + again).splitlines() if "Password" in line}
    assert len(passwords) == 2  # a new one each time
    odd = command("engine", "config", "--for", kind, "--domain", "a b", "--program", "/opt/vbackup", status=2)
    assert "needs letters, digits" in odd.stderr


def test_without_domains_the_config_has_all_of_libvirt(command: Command) -> None:
    """libvirt's test driver has one domain, which no QEMU runs."""
    argv = ("-c", "test:///default", "engine", "config", "--for", "bacula", "--program", "/opt/vbackup")
    assert "left out: test: it runs in test, not in QEMU" in command(*argv, status=4).stderr


def test_engine_prints_no_json(command: Command) -> None:
    assert "is no JSON" in command("engine", "config", "--for", "bacula", "--domain", "web", "--json", status=2).stderr
