"""Jobs of the configuration are run as a timer runs them: the whole command, its steps, and what breaks in a night."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import documents
from tests.lab import DiskSpec, Machine, domain_xml
from vbackup import api

if TYPE_CHECKING:
    from tests.daemon import Daemon

CONFIG = """\
[repository.main]
path = "{repository}"

[target.offsite]
url = "{target}"
[target.offsite.prune]
keep-last = 5
[target.offsite.verify]

[job.nightly]
connect = "{uri}"
domains = {domains}
at = "hourly"
copy-to = "offsite"
[job.nightly.prune]
keep-last = 3
[job.nightly.verify]
sample = "50%"
[job.nightly.audit]
sample = "5%"
"""


@dataclass
class Site:
    """A host with a configuration of one job."""

    daemon: Daemon
    directory: Path
    images: Path
    repository: Path
    machines: dict[str, Machine] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.directory / "vbackup.toml"

    @property
    def target(self) -> Path:
        return self.directory / "offsite"

    def configure(self, *domains: str, **changes: str) -> None:
        values = {
            "repository": os.fspath(self.repository),
            "target": os.fspath(self.target),
            "uri": self.daemon.uri,
            "domains": json.dumps(domains),
        }
        text = CONFIG.format(**values)
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        self.config.write_text(text)
        self.config.chmod(0o600)

    def boot(self, *names: str) -> None:
        for number, name in enumerate(names, start=1):
            spec = DiskSpec(self.images / f"{name}.qcow2", size="8M")
            spec.create()
            self.machines[name] = self.daemon.start(domain_xml(name, [spec.xml()]))
            self.write(name, number, "2M")

    def write(self, name: str, pattern: int, size: str) -> None:
        self.machines[name].write("vda", f"write -P {pattern} 0 {size}")

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "vbackup", "run", "--config", os.fspath(self.config), *arguments]

    @property
    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "VBACKUP_STATE": os.fspath(self.directory / "state")}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )

    def run(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """What ``vbackup run`` prints, with the messages on standard error as ``stderr``."""
        done = subprocess.run(
            self.argv(*arguments, "--json"), capture_output=True, text=True, check=False, env=self.environment
        )
        assert done.returncode == status, done.stdout + done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        documents.check(document)
        return {**document, "stderr": done.stderr}

    def job(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """The run of the only job."""
        found = self.run(*arguments, status=status)
        assert len(found["runs"]) == 1, found
        run: dict[str, Any] = found["runs"][0]
        return run

    def records(self) -> list[dict[str, Any]]:
        """The runs on record, the oldest first."""
        return [json.loads(path.read_text()) for path in sorted(self.directory.glob("state/runs/nightly/[0-9]*.json"))]

    def make_older(self) -> None:
        """The run on record was yesterday's."""
        for path in self.directory.glob("state/runs/nightly/[0-9]*.json"):
            run = json.loads(path.read_text())
            day = timedelta(days=1)
            for name in ("started", "ended"):
                run[name] = (datetime.fromisoformat(run[name].replace("Z", "+00:00")) - day).isoformat()
            path.write_text(json.dumps(run))

    def make_fast(self) -> None:
        self.config.write_text(re.sub('speed = ".*"', "", self.config.read_text()))

    def backups(self) -> list[str]:
        return sorted(path.name for path in self.repository.glob("*/*Z-*"))


@pytest.fixture
def site(daemon: Daemon, tmp_path: Path, images: Path, repository: Path) -> Site:
    return Site(daemon, tmp_path, images, repository)


def outcomes(run: dict[str, Any]) -> dict[str, str]:
    return {step["kind"]: step["outcome"] for step in run["steps"]}


def test_a_night_of_two_domains(site: Site) -> None:
    site.boot("web", "db")
    site.configure("web", "d*")
    run = site.job()
    assert outcomes(run) == dict.fromkeys(
        ("backup", "prune", "copy", "copy-prune", "verify", "copy-verify", "audit"), "done"
    )
    assert [(one["name"], one["outcome"], one["level"]) for one in run["domains"]] == [
        ("web", "done", "full"),
        ("db", "done", "full"),
    ]
    assert (run["status"], run["outcome"], run["unusual"]) == (0, "done", [])
    backup, prune, copy = run["steps"][:3]
    assert backup["summary"].startswith("2 domains, ")
    assert backup["document"]["schema"] == "vbackup.backups/1"
    assert prune["summary"].startswith("0 backups removed, 2 kept, ")
    assert copy["target"] == "offsite"
    assert copy["summary"].startswith("2 backups, ")
    site.write("web", 7, "1M")
    done = subprocess.run(site.argv(), capture_output=True, text=True, check=True, env=site.environment)
    print(done.stdout, done.stderr)
    table = done.stdout.splitlines()
    assert table[0].split() == ["STEP", "TIME", "RESULT"]
    assert any("web" in line and "incremental" in line for line in table)
    assert "Job nightly done in" in table[-1]
    assert "2 of 2 domains backed up" in table[-1]
    assert [one["outcome"] for one in site.records()] == ["done", "done"]
    assert "document" not in site.records()[0]["steps"][0]


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on loopback; yields its URL and the documents that it gets."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", got
        finally:
            server.shutdown()
            thread.join()


def test_what_failed_is_in_status_report_metrics_and_message_once(site: Site) -> None:
    site.boot("web")
    site.configure("web", "gone")
    secret, metrics, page = (site.directory / name for name in ("url", "vbackup.prom", "report.html"))
    more = f"""
[notify.hook]
webhook = {{ file = "{secret}" }}
when = ["failure", "recovery"]
[metrics]
textfile = "{metrics}"
[report]
html = "{page}"
"""
    site.config.write_text(site.config.read_text() + more)
    with webhook() as (url, got):
        secret.write_text(url)
        secret.chmod(0o600)
        run = site.job("--due", status=3)
        assert [step["outcome"] for step in run["steps"][-2:]] == ["done", "done"]
        assert len(got) == 1
        assert json.dumps(got).count("No domain 'gone'") >= 1
        assert 'job="nightly"' in metrics.read_text()
        assert "gone" in page.read_text()
        site.job(status=3)
        assert len(got) == 1  # it was told
        site.configure("web")
        site.config.write_text(site.config.read_text() + more)
        site.job()
        assert len(got) == 2  # it is good again
    assert url not in json.dumps(run) + "".join(path.read_text() for path in site.directory.glob("state/**/*.json"))


def test_a_guest_that_is_gone_hides_no_other(site: Site) -> None:
    site.boot("web")
    site.configure("web", "gone")
    found = site.run("nightly", status=3)
    [run] = found["runs"]
    assert (run["outcome"], outcomes(run)["backup"], outcomes(run)["audit"]) == ("some_failed", "some_failed", "done")
    assert [(one["name"], one["outcome"]) for one in run["domains"]] == [("web", "done"), ("gone", "failed")]
    [fault] = run["steps"][0]["faults"]
    assert (fault["code"], fault["status"], fault["domain"]) == ("DOMAIN_NOT_FOUND", 4, "gone")
    assert run["steps"][0]["warnings"] == []
    done = subprocess.run(site.argv(), capture_output=True, text=True, check=False, env=site.environment)
    assert done.stdout.count(fault["message"]) == 1
    assert "vbackup: Job nightly: 1 of 7 steps failed: backup.\n" in done.stderr


def test_a_pattern_that_matches_nothing_runs_nothing(site: Site) -> None:
    site.boot("web")
    site.configure("web", "nobody*")
    run = site.job(status=2)
    assert list(outcomes(run).values()) == ["failed", *["skipped"] * 6]
    [fault] = run["steps"][0]["faults"]
    assert fault["message"].startswith(f"{site.config}:10: The pattern 'nobody*' matches no domain.")
    assert site.backups() == []


def test_a_repository_that_is_not_mounted_is_told_once(site: Site) -> None:
    site.boot("web")
    site.configure("web")
    site.repository.rename(site.directory / "unmounted")
    site.repository.mkdir()
    run = site.job(status=7)
    assert list(outcomes(run).values()) == ["failed", *["skipped"] * 6]
    messages = [fault["message"] for step in run["steps"] for fault in step["faults"]]
    assert messages == [
        f"{site.repository} is not a vbackup repository; is the disk mounted? 'vbackup init' creates a new one."
    ]
    assert {step["reason"] for step in run["steps"][1:]} == {f"the repository {site.repository} cannot be opened"}
    assert list(site.repository.iterdir()) == []
    assert not site.target.exists()


def test_a_full_disk_is_the_status_of_the_domains_and_what_is_there_is_still_verified(
    site: Site, small_filesystem: Path
) -> None:
    site.repository = small_filesystem / "repository"
    subprocess.run([sys.executable, "-m", "vbackup", "init", "-r", site.repository], check=True)
    site.boot("web")
    site.configure("web")
    site.config.write_text(site.config.read_text().replace('[job.nightly.audit]\nsample = "5%"\n', ""))
    assert site.job()["status"] == 0
    with (small_filesystem / "filler").open("wb") as file:
        file.write(bytes(os.statvfs(small_filesystem).f_bavail * os.statvfs(small_filesystem).f_bsize - 256 * 1024))
    site.write("web", 9, "6M")
    run = site.job(status=7)
    [fault] = run["steps"][0]["faults"]
    assert fault["code"] in ("NO_SPACE", "STORAGE_UNUSABLE")
    assert outcomes(run)["verify"] == "done"
    assert [one["outcome"] for one in run["domains"]] == ["failed"]


def wait_until(is_so: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def slowly(site: Site, speed: str = "2M") -> subprocess.Popen[str]:
    """A run whose backup takes some seconds, after the first night."""
    site.boot("web")
    site.configure("web")
    site.job()
    site.write("web", 5, "7M")
    text = site.config.read_text()
    site.config.write_text(text + f'[job.nightly.backup]\nspeed = "{speed}"\n')
    process = site.start("nightly", "--json")
    wait_until(lambda: list(site.repository.glob("*/*.partial/journal")), "the backup was not begun")
    wait_until(lambda: site.machines["web"].execute("query-jobs"), "no job in QEMU")
    return process


def test_a_run_that_is_killed_is_made_up_for(site: Site) -> None:
    process = slowly(site)
    site.make_older()
    process.kill()
    process.communicate()
    wait_until(lambda: not site.machines["web"].execute("query-jobs"), "the step of a run that was killed goes on")
    assert [one["outcome"] for one in site.records()] == ["done"]
    site.make_fast()
    run = site.job("--due")
    assert [one["level"] for one in run["domains"]] == ["incremental"]
    assert run["scheduled"] is not None
    [sentence] = run["unusual"]
    assert "did not end; this one makes up for it" in sentence
    assert [one["outcome"] for one in site.records()] == ["done", "interrupted", "done"]
    assert site.records()[1]["steps"][0]["outcome"] == "interrupted"
    assert [one["reason"][:22] for one in site.run("--due")["not_run"]] == ["Job nightly was run at"]


def test_a_signal_ends_the_step_cleanly_and_begins_no_other(site: Site) -> None:
    process = slowly(site)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    run = json.loads(out)["runs"][0]
    documents.check(json.loads(out))
    assert (run["outcome"], run["status"]) == ("interrupted", 143)
    assert outcomes(run)["backup"] == "interrupted"
    assert {step["reason"] for step in run["steps"][1:]} == {"the run was stopped"}
    assert site.machines["web"].execute("query-jobs") == []
    assert not list(site.repository.glob("*/*.partial"))
    assert [one["outcome"] for one in site.records()] == ["done", "interrupted"]
    site.make_fast()
    assert site.job()["domains"][0]["level"] == "incremental"


def test_a_step_that_is_killed_is_told_and_the_others_are_done(site: Site) -> None:
    process = slowly(site)
    [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    run = json.loads(out)["runs"][0]
    assert process.returncode == 137
    [fault] = run["steps"][0]["faults"]
    assert fault["message"].startswith("It was killed by SIGKILL: by the kernel, if memory was short")
    assert list(outcomes(run).values()) == ["failed", *["done"] * 5, "skipped"]


def test_two_runs_do_not_work_on_a_repository_at_once(site: Site) -> None:
    first = slowly(site, "4M")
    assert site.run("nightly", status=8)["not_run"][0]["reason"].startswith("Job nightly is running")
    assert site.run("nightly", "--due")["not_run"][0]["error"] is None
    text = site.config.read_text()
    site.config.write_text(text.replace("nightly", "other"))
    refused = site.job("--wait-lock", "0", status=8)
    assert refused["steps"][0]["faults"][0]["message"].startswith("The run of job nightly (pid ")
    second = site.job()
    first.communicate()
    assert first.returncode == 0
    assert second["started"] > site.records()[-1]["ended"]


def test_nothing_is_begun_while_the_window_is_closed(site: Site) -> None:
    site.boot("web")
    site.configure("web")
    hour = (datetime.now().astimezone().hour + 12) % 24
    closed = f"{hour:02}:00-{(hour + 1) % 24:02}:00"
    [missed] = site.run("nightly", "--window", closed, status=8)["not_run"]
    assert missed["reason"].startswith("The window of job nightly is closed: it opens at ")
    assert site.run("nightly", "--window", closed, "--due")["not_run"][0]["error"] is None
    assert (site.backups(), site.records()) == ([], [])
    assert site.job("nightly", "--window", "any", "--no-copy")["status"] == 0


def tree(path: Path) -> dict[str, tuple[int, int]]:
    return {os.fspath(one): (one.stat().st_mtime_ns, one.stat().st_size) for one in path.rglob("*")}


def test_a_dry_run_touches_nothing(site: Site) -> None:
    site.boot("web")
    site.configure("web")
    site.job()
    before, state = tree(site.directory), site.machines["web"].state()
    [planned] = site.run("--dry-run")["jobs"]
    assert [step["kind"] for step in planned["steps"]] == list(outcomes(site.records()[0]))
    assert planned["steps"][0]["commands"][0][:2] == ["backup", "--strict"]
    assert planned["last"]["outcome"] == "done"
    [listed] = site.run("--list")["jobs"]
    assert (listed["due"], listed["job"]) == (False, "nightly")
    printed = subprocess.run(site.argv("--dry-run"), capture_output=True, text=True, check=True, env=site.environment)
    assert f"    vbackup prune --keep-last=3 --repository={site.repository}" in printed.stdout
    assert printed.stdout.endswith("Nothing was executed.\n")
    assert (tree(site.directory), site.machines["web"].state()) == (before, state)


def test_a_clock_that_is_a_year_ahead_is_unusual_and_removes_nothing(site: Site) -> None:
    site.boot("web")
    site.configure("web")
    config, state = api.read_config(site.config), site.directory / "state"
    api.run_jobs(config, state=state)

    def ahead() -> datetime:
        return datetime.now(timezone.utc) + timedelta(days=365)

    [run] = api.run_jobs(config, state=state, now=ahead).runs
    assert (run.status, run.outcome) == (0, api.RunOutcome.DONE)
    assert "the machine was off for long, or the clock is wrong" in run.unusual[0]
    skipped = {step.kind: step.reason or "" for step in run.steps if step.outcome is api.RunOutcome.SKIPPED}
    assert set(skipped) == {api.StepKind.PRUNE, api.StepKind.COPY_PRUNE}
    assert all(reason.endswith("Nothing is removed while the time is in doubt.") for reason in skipped.values())
    [run] = api.run_jobs(config, state=state).runs  # the clock is right again
    assert "which is later: the clock has been set back, or was wrong then" in run.unusual[0]
    assert api.run_jobs(config, state=state).runs[0].unusual == ()
