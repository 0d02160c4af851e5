"""``vbackup notify`` lists notifiers, and says who got a test message and who did not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.web import Answer, Web, web

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as made:
        yield made


@pytest.fixture
def config(tmp_path: Path, filled: Path, server: Web, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VBACKUP_STATE", str(tmp_path / "state"))
    for name in ("ops", "check"):
        (tmp_path / name).write_text(f"{server.url}/{name}/s3cr3t\n")
        (tmp_path / name).chmod(0o600)
    path = tmp_path / "vbackup.toml"
    path.write_text(f"""
[repository.main]
path = "{filled}"
[job.nightly]
at = "01:30"
connect = "qemu+unix:///system?socket=/no/such/socket"
[notify.ops]
webhook = {{ file = "{tmp_path}/ops" }}
timeout = "2s"
[notify.check]
ping = {{ file = "{tmp_path}/check" }}
timeout = "2s"
""")
    return path


def test_list(command: Command, config: Path) -> None:
    lines = command("notify", "list", "--config", config).stdout.splitlines()
    assert lines[0].split() == ["NOTIFIER", "BY", "WHEN", "JOBS", "LAST", "TOLD", "LAST", "MESSAGE"]
    assert lines[1].startswith("ops       webhook  failure, recovery, overdue, unusual  nightly  -")
    assert lines[2].startswith("check     ping     every run")
    document = command("notify", "list", "check", "--json", "--config", config).document
    assert [one["name"] for one in document["notifiers"]] == ["check"]


def test_test(command: Command, config: Path, server: Web) -> None:
    done = command("notify", "test", "--config", config)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == "ops: a test message was sent.\ncheck: a test message was sent.\n"
    assert sorted(one.path for one in server.asked) == ["/check/s3cr3t/log", "/ops/s3cr3t"]
    assert command("notify", "test", "-q", "--config", config, "ops").stdout == ""


@pytest.mark.parametrize(("refused", "status"), [("ops", 3), ("", 1)])
def test_test_that_fails(command: Command, config: Path, server: Web, refused: str, status: int) -> None:
    server.answer = lambda asked: Answer(404 if f"/{refused}" in asked.path else 200)
    done = command("notify", "test", "--config", config, status=status)
    assert "The message to notifier ops was not sent: the server answers 404" in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr
    document = command("notify", "test", "--json", "--config", config, status=status).document
    assert [one["sent"] for one in document["notifiers"]] == [False, status == 3]
    assert document["notifiers"][0]["error"]["code"] == "NOTICE_NOT_SENT"
    assert "s3cr3t" not in json.dumps(document)


def test_overdue_is_told_once(command: Command, config: Path, server: Web) -> None:
    """The backups of the fixture are of one day, which is long ago."""
    for _ in range(2):
        command("notify", "overdue", "--config", config)
    (asked,) = server.asked
    assert asked.path == "/ops/s3cr3t"
    assert [one["domain"] for one in json.loads(asked.body)["overdue"]] == ["web"]
    listed = command("notify", "overdue", "--json", "--config", config).document
    assert listed["notifiers"][0]["title"].endswith("OVERDUE: web")
    assert "OVERDUE: web" in command("notify", "list", "--config", config).stdout


def test_overdue_that_cannot_be_told_is_status_1(command: Command, config: Path, server: Web) -> None:
    server.answers(Answer(403))
    done = command("notify", "overdue", "--config", config, status=1)
    assert "the server answers 403" in done.stderr
    assert "the server answers 403" in command("notify", "list", "--config", config).stdout


def test_unknown_name_and_no_notifier(command: Command, config: Path) -> None:
    command("notify", "test", "opps", "--config", config, status=2)
    config.write_text(config.read_text().partition("[notify.ops]")[0])
    assert command("notify", "list", "--config", config).stdout.startswith("No notifiers")
    done = command("notify", "test", "--config", config, status=2)
    assert "has no notifier" in done.stderr
