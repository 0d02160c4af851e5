"""``vbackup metrics`` prints metrics, writes them, and serves them until a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from tests.documents import check
from tests.unit.builders import backup, commit
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command


def test_metrics_are_printed(command: Command, repository: Path) -> None:
    commit(Repository.open(repository), backup(1))
    out = command("metrics", "-r", repository, "--offline").stdout
    assert "# TYPE vbackup_domain_backups gauge\n" in out
    assert f'vbackup_repository_up{{path="{repository}",repository="{repository}"}} 1.0\n' in out


def test_metrics_are_written(command: Command, repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "vbackup.prom"
    assert command("metrics", "-r", repository, "--output", path).stdout == f"Metrics of 0 domains written to {path}.\n"
    assert "vbackup_health 3.0" in path.read_text()
    document = command("metrics", "-r", repository, "--output", path, "--json").document
    assert document == {"schema": "vbackup.metrics/1", "path": str(path), "health": "unknown"}
    assert command("metrics", "-r", repository, "--output", path, "-q").stdout == ""


def test_a_repository_that_is_gone_is_in_the_metrics_and_no_error(command: Command, tmp_path: Path) -> None:
    assert " 0.0\n" in command("metrics", "-r", tmp_path / "gone").stdout.partition("vbackup_repository_up{")[2]


def test_metrics_are_no_json(command: Command, repository: Path) -> None:
    assert "'vbackup status --json' is" in command("metrics", "-r", repository, "--json", status=2).stderr


def test_only_loopback_is_listened_on(command: Command, repository: Path) -> None:
    assert "loopback only" in command("metrics", "-r", repository, "--listen", "0.0.0.0:0", status=2).stderr


def test_metrics_are_served_until_a_signal(repository: Path) -> None:
    argv = [sys.executable, "-m", "vbackup", "metrics", "-r", repository, "--listen", "127.0.0.1:0", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        document = json.loads(process.stdout.readline())
        check(document)
        with urllib.request.urlopen(document["url"], timeout=10) as answer:
            assert b"vbackup_repository_up" in answer.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
