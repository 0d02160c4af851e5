"""Whoever wants to know is told once; whatever happens there changes nothing of the run, and no secret is seen."""

from __future__ import annotations

import json
import logging
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.smtp import smtp
from tests.unit.builders import Recorder
from tests.unit.notices.runs import PLACE, USUAL, config, domain, job, overview, run
from tests.web import Answer, Web, web
from vbackup.config.model import Config, Notifier, Secret, When
from vbackup.notices import sending
from vbackup.notices.memory import Memory, NotKept
from vbackup.notices.sending import announce, jobs_of, send_test
from vbackup.overview.state import Overview
from vbackup.runs.record import Run

SECRET = "s3cr3t-T0ken"  # what must not be seen


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "state")


def notifier(tmp_path: Path, server: Web, kind: str = "webhook", name: str = "ops", **more: Any) -> Notifier:
    path = tmp_path / f"{name}.url"
    path.write_text(f"{server.url}/{name}/{SECRET}\n")
    path.chmod(0o600)
    return replace(Notifier(name, PLACE, USUAL, timeout_s=5), **{kind: Secret(file=path)}, **more)


def tell(
    one: Run | None,
    configuration: Config,
    memory: Memory,
    recorder: Recorder,
    *,
    state: Overview | None = None,
    log: str = "",
) -> tuple[str, ...]:
    return announce(one, state, configuration, memory, phase="end", log_tail=log, reporter=recorder)


def paths(server: Web) -> list[str]:
    return [urlsplit(one.path).path for one in server.asked]


def test_run_is_told_to_a_ping_at_both_ends(server: Web, tmp_path: Path, memory: Memory, recorder: Recorder) -> None:
    configuration = config(notifier(tmp_path, server, "ping"))
    for one in (run(), run("web", number=1), run("web", number=2)):
        assert announce(one, None, configuration, memory, phase="start", log_tail="", reporter=recorder) == ()
        assert tell(one, configuration, memory, recorder, log="the log") == ()
    url = f"/ops/{SECRET}"
    assert paths(server) == [f"{url}/start", url, f"{url}/start", f"{url}/fail", f"{url}/start", f"{url}/fail"]
    rids = [urlsplit(one.path).query for one in server.asked]
    assert rids[0] == rids[1] != rids[2] == rids[3]
    assert b"the log" in server.asked[-1].body
    assert recorder.warnings == []


def test_failure_and_recovery_are_told_once(server: Web, tmp_path: Path, memory: Memory, recorder: Recorder) -> None:
    configuration = config(notifier(tmp_path, server))
    for number, failed in enumerate([(), ("web",), ("web",), (), ()]):
        assert tell(run(*failed, number=number), configuration, memory, recorder) == ()
    assert [json.loads(one.body)["reasons"] for one in server.asked] == [["failure"], ["recovery"]]
    assert [step for step in recorder.steps if "was told" in step] == [
        "Notifier ops was told: vbackup nightly on hv1: FAILED: web not backed up",
        "Notifier ops was told: vbackup nightly on hv1: works again: 3 domains backed up, 3.0 MiB",
    ]


def test_start_is_no_matter_of_other_notifiers(server: Web, tmp_path: Path, memory: Memory, recorder: Recorder) -> None:
    configuration = config(notifier(tmp_path, server))
    assert announce(run(), None, configuration, memory, phase="start", log_tail="", reporter=recorder) == ()
    assert server.asked == []


def test_overdue_is_told_without_a_run_but_not_by_a_ping(
    server: Web, tmp_path: Path, memory: Memory, recorder: Recorder
) -> None:
    configuration = config(notifier(tmp_path, server), notifier(tmp_path, server, "ping", "check"))
    late = overview(domain("web", is_overdue=True))
    for _ in range(2):
        assert tell(None, configuration, memory, recorder, state=late) == ()
    assert paths(server) == [f"/ops/{SECRET}"]


def test_server_that_is_down_is_a_sentence_and_the_next_run_tells(
    server: Web, tmp_path: Path, memory: Memory, recorder: Recorder
) -> None:
    server.answers(Answer(503))
    configuration = config(notifier(tmp_path, server, timeout_s=2))
    found = tell(run("web"), configuration, memory, recorder)
    assert found == ("The message to notifier ops was not sent: the server answers 503 (Service Unavailable).",)
    assert recorder.warnings == list(found)
    assert memory.read("ops").problem == found[0]
    server.answers(Answer())
    assert tell(run("web", number=1), configuration, memory, recorder) == ()
    assert memory.read("ops").problem is None
    assert tell(run("web", number=2), configuration, memory, recorder) == ()
    assert json.loads(server.asked[-1].body)["failed_since"] == "2026-11-30T01:00:00Z"
    assert memory.read("ops").title == "vbackup nightly on hv1: FAILED: web not backed up"


def test_one_that_cannot_be_told_keeps_no_other_waiting(
    server: Web, tmp_path: Path, memory: Memory, recorder: Recorder
) -> None:
    with web() as hanging:
        hanging.answers(Answer(drip_s=0.05))
        slow = [notifier(tmp_path, hanging, name=f"slow{number}", timeout_s=1) for number in range(3)]
        begun = time.monotonic()
        found = tell(run("web"), config(*slow, notifier(tmp_path, server)), memory, recorder)
        assert time.monotonic() - begun < 4
    assert len(found) == 3
    assert paths(server) == [f"/ops/{SECRET}"]


def test_start_waits_for_nobody_long(
    tmp_path: Path, memory: Memory, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "START_S", 0.3)
    with web() as hanging:
        hanging.answers(Answer(drip_s=0.05))
        configuration = config(notifier(tmp_path, hanging, "ping", timeout_s=30))
        begun = time.monotonic()
        found = announce(run(), None, configuration, memory, phase="start", log_tail="", reporter=recorder)
        assert time.monotonic() - begun < 5
    assert len(found) == 1


def test_only_notifiers_of_the_job_are_told(server: Web, tmp_path: Path, memory: Memory, recorder: Recorder) -> None:
    both = (notifier(tmp_path, server, name="ops"), notifier(tmp_path, server, name="dba"))
    jobs = {"nightly": job(notify=("dba",)), "weekly": job("weekly"), "silent": job("silent", notify=())}
    configuration = config(*both, jobs=jobs)
    assert jobs_of(both[0], configuration) == {"weekly"}
    assert tell(run("web"), configuration, memory, recorder) == ()
    assert paths(server) == [f"/dba/{SECRET}"]
    assert tell(run("web", job="silent"), configuration, memory, recorder) == ()
    assert len(server.asked) == 1


def test_job_that_left_the_configuration_is_everybodys(
    server: Web, tmp_path: Path, memory: Memory, recorder: Recorder
) -> None:
    configuration = config(notifier(tmp_path, server), jobs={})
    assert tell(run("web"), configuration, memory, recorder) == ()
    assert len(server.asked) == 1


def test_two_runs_at_once_tell_what_is_overdue_once(
    server: Web, tmp_path: Path, memory: Memory, recorder: Recorder
) -> None:
    server.answer = lambda _asked: (time.sleep(0.2), Answer())[1]  # type: ignore[func-returns-value]
    configuration = config(notifier(tmp_path, server))
    late = overview(domain("web", is_overdue=True))
    threads = [
        threading.Thread(target=tell, args=(None, configuration, memory, recorder), kwargs={"state": late})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1


def test_mail_of_a_failure_arrives(tmp_path: Path, memory: Memory, recorder: Recorder) -> None:
    with smtp(tmp_path) as box:
        mail = Notifier("ops", PLACE, USUAL, mail_to=("ops@example.org",), sendmail=box.sendmail)
        assert tell(run("web"), config(mail), memory, recorder) == ()
        assert b"FAILED: web not backed up" in box.mails[0][2]


def test_memory_that_cannot_be_kept_is_a_sentence_and_the_message_goes_out(
    server: Web, tmp_path: Path, recorder: Recorder
) -> None:
    (tmp_path / "state").write_text("a file")
    found = tell(run("web"), config(notifier(tmp_path, server)), Memory(tmp_path / "state"), recorder)
    assert len(server.asked) == 1
    assert len(found) == 1
    assert "cannot be kept" in found[0]
    assert isinstance(found[0], NotKept)


def test_bug_changes_nothing_and_says_no_secret(
    server: Web, tmp_path: Path, memory: Memory, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(sending.delivery, "deliver", broken)
    found = tell(run("web"), config(notifier(tmp_path, server)), memory, recorder)
    assert found == ("The message to notifier ops was not sent: RuntimeError, a bug in vbackup.",)


@pytest.mark.parametrize("kind", ["ping", "webhook", "apprise"])
@pytest.mark.parametrize("answer", [Answer(), Answer(404), Answer(302, headers={"Location": "http://x.invalid/"})])
def test_no_secret_is_seen_anywhere(
    server: Web,
    tmp_path: Path,
    memory: Memory,
    recorder: Recorder,
    *,
    kind: str,
    answer: Answer,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server.answers(answer)
    path = tmp_path / "url"
    path.write_text(f"{server.url.replace('http', 'json') if kind == 'apprise' else server.url}/{SECRET}\n")
    path.chmod(0o600)
    one = replace(Notifier("ops", PLACE, USUAL, timeout_s=2.5), **{kind: Secret(file=path)})  # type: ignore[arg-type]
    with caplog.at_level(logging.DEBUG):
        found = tell(run("web"), config(one), memory, recorder, log="the log")
    assert server.asked
    kept = [path.read_text() for path in memory.state.rglob("*") if path.is_file()]
    for seen in (*found, *recorder.steps, *recorder.warnings, caplog.text, *capfd.readouterr(), *kept, repr(one)):
        assert SECRET not in seen
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in memory.state.rglob("*"))


def test_always_tells_every_run(server: Web, tmp_path: Path, memory: Memory, recorder: Recorder) -> None:
    configuration = config(notifier(tmp_path, server, when=frozenset((When.ALWAYS,))))
    for number in range(3):
        tell(run(number=number), configuration, memory, recorder)
    assert len(server.asked) == 3


def test_nobody_to_tell(memory: Memory, recorder: Recorder) -> None:
    assert tell(run("web"), config(), memory, recorder) == ()
    assert not memory.state.exists()


# tests


def test_test_is_sent_to_those_that_are_named_and_remembered_by_nobody(
    server: Web, tmp_path: Path, memory: Memory
) -> None:
    configuration = config(*(notifier(tmp_path, server, name=name) for name in ("ops", "dba")))
    assert send_test(configuration, ["dba"]) == {"dba": None}
    assert send_test(configuration) == {"ops": None, "dba": None}
    assert sorted(paths(server)) == sorted((f"/ops/{SECRET}", f"/dba/{SECRET}", f"/dba/{SECRET}"))
    assert not memory.state.exists()


def test_test_that_fails_has_its_error(server: Web, tmp_path: Path) -> None:
    server.answer = lambda asked: Answer(404 if "ops" in asked.path else 200)
    found = send_test(config(*(notifier(tmp_path, server, name=name) for name in ("ops", "dba"))))
    assert found["dba"] is None
    assert "404" in str(found["ops"])


def test_test_without_notifiers() -> None:
    assert send_test(config()) == {}
