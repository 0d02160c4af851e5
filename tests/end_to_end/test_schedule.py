"""A real systemd runs jobs as ``vbackup schedule install`` has it: at their times, closed, with their credentials."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.init import Init, init, reason_not_to_start
from tests.lab import DiskSpec, domain_xml
from vbackup import api

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.daemon import Daemon

TOP = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(bool(reason_not_to_start()), reason=str(reason_not_to_start()))

CONFIG = """
[repository.main]
path = "/srv/backup"

[job.nightly]
at = "01:30"

[notify.ops]
webhook = { credential = "good" }

[notify.dba]
webhook = { credential = "bad" }
"""
#: In place of vbackup: what it was started with, and what it may do.
PROGRAM = """#!/bin/sh
exec > "{directory}/seen.new"
echo "words: $*"
echo "state: $VBACKUP_STATE"
echo "good: $(cat "$CREDENTIALS_DIRECTORY/good")"
echo "bad: $(od -An -tx1 "$CREDENTIALS_DIRECTORY/bad")"
grep -E "^(NoNewPrivs|CapBnd|Seccomp):" /proc/self/status
touch /usr/.vbackup-test 2>&1
touch "{directory}/written" && echo written
echo "umask: $(umask)"
mv "{directory}/seen.new" "{directory}/seen"
"""


@pytest.fixture
def root(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system in which the job is scheduled."""
    monkeypatch.setenv("VBACKUP_STATE", "/var/lib/100% mine")
    config = tmp_path / "vbackup.toml"
    config.write_text(CONFIG)
    program = tmp_path / "my programs" / "vbackup"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(directory=tmp_path))
    program.chmod(0o755)
    path = tmp_path / "root"
    path.mkdir()
    command("schedule", "install", "--root", path, "--with", "systemd", "--config", config, "--program", program)
    drop_in = path / "etc/systemd/system/vbackup@nightly.service.d/60-test.conf"
    # Where a system has it, /etc/credstore/good is the file itself.
    credential = tmp_path / "good"
    credential.write_text("the secret\n")
    drop_in.write_text(f"[Service]\nLoadCredential=good:{credential}\n")
    return path


@contextmanager
def started(root: Path) -> Iterator[Init]:
    with init(root / "etc/systemd/system") as systemd:
        yield systemd


def seen(root: Path, timeout_s: float = 20.0) -> dict[str, str]:
    path = root.parent / "seen"
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, "the job was not started"
        time.sleep(0.05)
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}


def test_job_is_started_closed_and_with_its_credentials(root: Path) -> None:
    with started(root) as systemd:
        systemd.run("systemctl", "start", "vbackup@nightly.service")
        assert systemd.show("vbackup@nightly.service", "Result") == "success"
    found = seen(root)
    assert found["words"] == f"--config {root.parent}/vbackup.toml run --due nightly"
    assert found["state"] == "/var/lib/100% mine"
    assert found["good"] == "the secret"
    assert found["bad"] == "0a"  # it does not exist, and the run starts all the same
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    assert found["touch"].endswith("Read-only file system")
    assert "written" in found
    assert found["umask"] == "0077"
    bounding = int(found["CapBnd"], 16)
    sys_module, sys_time, dac_override, sys_ptrace, linux_immutable = 16, 25, 1, 19, 9
    assert not bounding >> sys_module & 1
    assert not bounding >> sys_time & 1
    for capability in (dac_override, sys_ptrace, linux_immutable):
        assert bounding >> capability & 1


def test_timer_waits_for_the_time_of_the_job(root: Path) -> None:
    with started(root) as systemd:
        systemd.run("systemctl", "start", "timers.target")
        assert systemd.run("systemctl", "is-active", "vbackup@nightly.timer").strip() == "active"
        next_run = systemd.show("vbackup@nightly.timer", "NextElapseUSecRealtime")
        assert " 01:30:" in next_run
        assert systemd.run("systemctl", "is-active", "vbackup-boot@nightly.timer").strip() == "active"
    assert not (root.parent / "seen").exists()  # nothing is run because it was scheduled


def test_run_that_was_missed_is_made_up_for(root: Path) -> None:
    with started(root) as systemd:
        stamp = "/var/lib/systemd/timers/stamp-vbackup@nightly.timer"
        systemd.run("mkdir", "-p", "/var/lib/systemd/timers")
        systemd.run("touch", "-d", "3 days ago", stamp)
        systemd.run("systemctl", "start", "vbackup@nightly.timer")
        assert seen(root)["words"].endswith("run --due nightly")


def test_run_that_the_end_of_the_machine_interrupted_is_looked_for(root: Path) -> None:
    """After a second in place of ten minutes."""
    drop_in = root / "etc/systemd/system/vbackup-boot@nightly.timer.d/60-test.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Timer]\nOnBootSec=\nOnBootSec=1s\nAccuracySec=1ms\n")
    with started(root) as systemd:
        systemd.run("systemctl", "start", "timers.target")
        assert seen(root)["words"].endswith("run --due nightly")


def test_new_times_hold_when_the_timer_is_started_again(root: Path, command: Command) -> None:
    config = root.parent / "vbackup.toml"
    with started(root) as systemd:
        systemd.run("systemctl", "start", "vbackup@nightly.timer")
        config.write_text(CONFIG.replace("01:30", "05:45"))
        command("schedule", "install", "--root", root, "--with", "systemd", "--config", config)
        systemd.run("systemctl", "daemon-reload")
        systemd.run("systemctl", "restart", "vbackup@nightly.timer")
        assert " 05:45:" in systemd.show("vbackup@nightly.timer", "NextElapseUSecRealtime")


def test_nothing_is_left_of_a_schedule_that_is_removed(root: Path, command: Command) -> None:
    (root / "etc/systemd/system/vbackup@nightly.service.d/60-test.conf").unlink()
    command("schedule", "remove", "--root", root, "--with", "systemd")
    assert [path for path in root.rglob("*") if not path.is_dir() or path.is_symlink()] == []


def test_failed_job_is_a_failed_unit(root: Path) -> None:
    program = root.parent / "my programs" / "vbackup"
    program.write_text("#!/bin/sh\nexit 3\n")
    with started(root) as systemd:
        systemd.run("systemctl", "start", "vbackup@nightly.service", check=False)
        assert systemd.show("vbackup@nightly.service", "ActiveState") == "failed"
        assert systemd.show("vbackup@nightly.service", "ExecMainStatus") == "3"


REAL = """#!/bin/sh
export PYTHONPATH='{path}' PATH='{search}'
exec '{python}' -m vbackup "$@" > '{directory}/log' 2>&1
"""
DOMAINS = """
[repository.main]
path = "{repository}"

[job.nightly]
at = "hourly"
connect = "{uri}"
domains = ["running", "off"]
copy-to = "disk"
[job.nightly.prune]
keep-last = 3
[job.nightly.verify]
[job.nightly.audit]
sample = "10%"

[target.disk]
url = "{directory}/copies"

[report]
html = "{directory}/report/index.html"
"""


def test_service_is_not_closed_to_backups(
    daemon: Daemon, images: Path, repository: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps of a run, of a domain that runs and of one that is off, in whose image a bitmap is written."""
    for name in ("running", "off"):
        spec = DiskSpec(images / f"{name}.qcow2", size="8M")
        spec.create()
        xml = domain_xml(name, [spec.xml()])
        (daemon.start if name == "running" else daemon.define)(xml)
    monkeypatch.setenv("VBACKUP_STATE", str(tmp_path / "state"))
    config = tmp_path / "vbackup.toml"
    config.write_text(DOMAINS.format(repository=repository, uri=daemon.uri, directory=tmp_path))
    config.chmod(0o600)
    (tmp_path / "report").mkdir()
    program = tmp_path / "vbackup"
    facts = {"path": TOP, "search": os.environ["PATH"], "python": sys.executable, "directory": tmp_path}
    program.write_text(REAL.format(**facts))
    program.chmod(0o755)
    root = tmp_path / "root"
    root.mkdir()
    command("schedule", "install", "--root", root, "--with", "systemd", "--config", config, "--program", program)
    with started(root) as systemd:
        systemd.run("systemctl", "start", "vbackup@nightly.service", check=False)
        result = systemd.show("vbackup@nightly.service", "Result")
    assert result == "success", (tmp_path / "log").read_text()
    (run,) = api.runs_of("nightly", state=tmp_path / "state")
    assert {step.outcome for step in run.steps} == {api.RunOutcome.DONE}
    assert {one.name for one in run.domains if one.backup} == {"running", "off"}
    assert (tmp_path / "report" / "index.html").exists()
