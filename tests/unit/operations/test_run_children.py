"""A step is a process: its document, events and end are seen, whatever they are, and signals reach it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.operations.run_examples import Labels
from vbackup.errors import VbackupError
from vbackup.operations import run_children
from vbackup.operations.run_children import Ended
from vbackup.stop import Stop

EVENT = {"schema": "vbackup.event/1", "time": 1.0}


def does(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A step does this in place of vbackup."""
    monkeypatch.setattr(run_children, "_START", f"import sys, os, json, time, signal; sys.argv.pop(1)\n{script}")


def execute(reporter: Labels | None = None, stop: Stop | None = None, argv: Sequence[str] = ("backup", "x")) -> Ended:
    return run_children.execute(argv, reporter or Labels(), stop or Stop())


def test_the_real_command_prints_its_document_and_its_error(tmp_path: Path) -> None:
    ended = execute(argv=("list", f"--repository={tmp_path}"))
    assert ended.status == 7
    assert ended.document is not None
    assert ended.document["code"] == "STORAGE_UNUSABLE"
    assert ended.last_words == (ended.document["message"],)


def test_nothing_is_imported_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vbackup").mkdir()
    (tmp_path / "vbackup" / "__init__.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert execute(argv=("schema",)).status == 0


def test_arguments_are_those_of_the_step_and_what_a_program_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    does(monkeypatch, "print(json.dumps({'argv': sys.argv[1:]}))")
    assert execute(argv=("backup", "--", "-x")).document == {
        "argv": ["backup", "--json", "--progress=json", "--", "-x"]
    }


def test_events_are_reported_with_their_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = [
        {**EVENT, "event": "step", "message": "Begun."},
        {**EVENT, "event": "step", "message": "Frozen.", "domain": "web"},
        {**EVENT, "event": "warning", "message": "Slow.", "domain": "web"},
        {**EVENT, "event": "progress", "dev": "vda", "phase": "copy", "done_bytes": 1, "total_bytes": 2, "domain": "w"},
        {**EVENT, "event": "of the future"},
        {**EVENT, "event": "step", "text": "With another member."},
        {**EVENT, "event": "progress", "dev": "vda", "phase": "of the future", "done_bytes": 1, "total_bytes": 2},
        {**EVENT},
    ]
    lines = [*map(json.dumps, events), "vbackup: warning: Old.", "vbackup: It failed.", "{broken", "no end"]
    does(monkeypatch, f"sys.stderr.write({chr(10).join(lines)!r}); sys.exit(3)")
    reporter = Labels()
    ended = execute(reporter)
    assert (ended.status, ended.document) == (3, None)
    assert ended.warnings == ("web: Slow.", "Old.")
    assert ended.last_words == ("It failed.", "{broken", "no end")
    assert reporter.steps == ["Begun.", "web: Frozen.", "It failed.", "{broken", "no end"]
    assert reporter.warnings == ["web: Slow.", "Old."]
    assert reporter.told == {"w/vda": [(1, 2)]}


def test_a_large_document_is_read_while_there_are_many_events(monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({**EVENT, "event": "step", "message": "x" * 1000})
    script = f"for _ in range(2000): sys.stderr.write({line!r} + chr(10)); sys.stdout.write(' ' * 1000)"
    does(monkeypatch, f"{script}\nsys.stdout.write('{{}}')")
    reporter = Labels()
    assert execute(reporter).document == {}
    assert len(reporter.steps) == 2000


@pytest.mark.parametrize("output", ["", "[]", "no JSON", '{"a": ', "\\xff"])
def test_output_that_is_no_document_is_none(monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    does(monkeypatch, f"sys.stdout.buffer.write(b'{output}')")
    assert execute() == Ended(0, None)


def test_a_step_that_is_killed_has_the_status_of_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    does(monkeypatch, "os.kill(os.getpid(), signal.SIGKILL)")
    ended = execute()
    assert (ended.status, ended.killed_by) == (137, signal.SIGKILL)


def test_a_signal_is_passed_on_and_the_end_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun, undone = tmp_path / "begun", tmp_path / "undone"
    script = f"""
def end(signum, _frame):
    time.sleep(0.3)
    open({os.fspath(undone)!r}, "w").close()
    sys.exit(128 + signum)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end)
open({os.fspath(begun)!r}, "w").close()
time.sleep(60)
"""
    does(monkeypatch, script)
    stop = Stop()

    def request() -> None:
        deadline = time.monotonic() + 20
        while not begun.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.request(signal.SIGINT)

    thread = threading.Thread(target=request)
    thread.start()
    ended = execute(stop=stop)
    thread.join()
    assert (ended.status, ended.killed_by) == (130, None)
    assert undone.exists()


def test_what_a_step_leaves_in_the_background_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    does(monkeypatch, "print('{}', flush=True); os.fork() or (time.sleep(20), os._exit(0))")
    begun_s = time.monotonic()
    assert execute().document == {}
    assert time.monotonic() - begun_s < 15


def test_a_step_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(VbackupError, match="Cannot start vbackup backup: No such file or directory"):
        execute()
