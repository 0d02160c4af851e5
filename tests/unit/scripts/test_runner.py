"""Which scripts stop the work, what they know, and what becomes of their failures."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

import vbackup
from tests.unit.builders import UUID, Recorder
from tests.unit.scripts.conftest import Write
from vbackup.errors import BusyError, InterruptedBySignalError, ScriptError, UnsafeScriptError, error_document
from vbackup.scripts import runner
from vbackup.scripts.finding import ScriptPhase
from vbackup.scripts.runner import DomainScripts, Settings
from vbackup.stop import Stop


def scripts(directory: Path, recorder: Recorder, *, stop: Stop | None = None, timeout_s: float = 20) -> DomainScripts:
    made = DomainScripts(
        Settings(directory, timeout_s=timeout_s), reporter=recorder, stop=stop or Stop(), work="backup", domain="web"
    )
    made.of_domain("web", UUID, uri="qemu:///system")
    return made


def test_script_knows_the_documented_variables(directory: Path, write: Write, recorder: Recorder) -> None:
    write("pre-backup.d/x", "env | grep ^VBACKUP_ | sort")
    made = scripts(directory, recorder, timeout_s=90)
    made.know(backup_id="X-full", level="full", repository="/r")
    made.before(ScriptPhase.PRE_BACKUP, {})
    known = dict(line.removeprefix("pre-backup script x: ").split("=", 1) for line in recorder.steps)
    assert known == {
        "VBACKUP_BACKUP_ID": "X-full",
        "VBACKUP_CONNECT": "qemu:///system",
        "VBACKUP_DOMAIN": "web",
        "VBACKUP_LEVEL": "full",
        "VBACKUP_OUTPUT": "",
        "VBACKUP_PHASE": "pre-backup",
        "VBACKUP_REPOSITORY": "/r",
        "VBACKUP_STATUS": "",
        "VBACKUP_TIMEOUT": "90.0",
        "VBACKUP_UUID": UUID,
        "VBACKUP_VERSION": vbackup.__version__,
        "VBACKUP_WORK": "backup",
    }
    assert tuple(known) == runner.VARIABLES


def test_first_that_fails_before_the_work_stops_it(directory: Path, write: Write, recorder: Recorder) -> None:
    write("pre-backup.d/1", "echo one")
    path = write("pre-backup.d/2", "echo no room; exit 4")
    write("pre-backup.d/3", "echo three")
    made = scripts(directory, recorder)
    with pytest.raises(ScriptError) as stopped:
        made.before(ScriptPhase.PRE_BACKUP, {})
    assert stopped.value.status == 9
    assert stopped.value.evidence() == {"phase": "pre-backup", "script": str(path), "exit_status": 4}
    assert str(stopped.value) == (
        f"The pre-backup script {path} ended with exit status 4 (its last line: no room). No backup was made, and"
        " nothing was changed."
    )
    assert recorder.steps == ["pre-backup script 1: one", "pre-backup script 2: no room"]
    assert recorder.warnings == []
    assert [(one.script.path.name, one.exit_status) for one in made.outcomes] == [("1", 0), ("2", 4)]


def test_late_script_before_the_work_stops_it(directory: Path, write: Write, recorder: Recorder) -> None:
    write("pre-backup.d/x", "exec sleep 1000")
    made = scripts(directory, recorder, timeout_s=0.2)
    with pytest.raises(
        ScriptError, match=r"was killed, since it had not ended within 0\.2 s\. No backup was made"
    ) as end:
        made.before(ScriptPhase.PRE_BACKUP, {})
    assert end.value.exit_status is None


def test_request_to_stop_ends_what_comes_before_the_work(directory: Path, write: Write, recorder: Recorder) -> None:
    write("pre-backup.d/x", "exec sleep 1000")
    stop = Stop()
    made = scripts(directory, recorder, stop=stop)
    stop.request(signal.SIGTERM)
    with pytest.raises(InterruptedBySignalError):
        made.before(ScriptPhase.PRE_BACKUP, {})


def test_those_after_the_work_all_run_and_only_warn(directory: Path, write: Write, recorder: Recorder) -> None:
    path = write("post-backup.d/1", "exit 1")
    write("post-backup.d/2", "cat")
    stop = Stop()
    made = scripts(directory, recorder, stop=stop)
    stop.request(signal.SIGTERM)
    made.after(ScriptPhase.POST_BACKUP, {"schema": "x", "when": time.localtime})
    assert recorder.warnings == [f"The post-backup script {path} ended with exit status 1."]
    assert json.loads(recorder.steps[0].removeprefix("post-backup script 2: "))["schema"] == "x"
    assert [(one["status"], one["failure"]) for one in made.documents()] == [(1, "ended with exit status 1"), (0, None)]
    assert {*made.documents()[0]} == {"phase", "script", "status", "failure", "duration_s"}


def test_frozen_guest_waits_for_nobody(directory: Path, write: Write, recorder: Recorder) -> None:
    write("post-freeze.d/1", "echo one")
    write("post-freeze.d/2", "echo two; exec sleep 1000")
    write("post-freeze.d/3", "echo three")
    made = scripts(directory, recorder)
    begun = time.monotonic()
    made.while_frozen(ScriptPhase.POST_FREEZE, {}, deadline=begun + 0.5)
    assert time.monotonic() - begun < 3  # SIGTERM would have 5 s
    assert (recorder.steps, recorder.warnings) == ([], [])
    made.report()
    made.report()
    assert recorder.steps == ["post-freeze script 1: one", "post-freeze script 2: two"]
    in_time = "in the time that scripts may take while the guest is frozen"
    phase = f"The post-freeze script {directory}/post-freeze.d"
    no_time = "no time was left of what scripts may take while it is frozen"
    assert recorder.warnings == [
        f"{phase}/2 was killed, since it had not ended {in_time} (its last line: two).",
        f"{phase}/3 could not be started: {no_time}.",
    ]
    assert [one.exit_status for one in made.outcomes] == [0, None, None]


def test_what_is_begun_has_ended_after_the_block(directory: Path, write: Write, recorder: Recorder) -> None:
    write("post-thaw.d/x", "sleep 0.3; echo thawed")
    made = scripts(directory, recorder)
    with made.attended():
        made.begin(ScriptPhase.POST_THAW, {})
        assert recorder.steps == []
    assert recorder.steps == ["post-thaw script x: thawed"]


def test_failure_is_told_to_the_scripts_for_it(directory: Path, write: Write, recorder: Recorder) -> None:
    write("on-failure.d/x", "cat; echo; echo $VBACKUP_STATUS $VBACKUP_PHASE")
    write("post-thaw.d/x", "sleep 0.2; echo thawed")
    made = scripts(directory, recorder)

    def fail() -> None:
        with made.attended():
            made.begin(ScriptPhase.POST_THAW, {})
            raise BusyError("Busy.")

    with pytest.raises(BusyError):
        fail()
    thawed, document, words = recorder.steps
    assert thawed == "post-thaw script x: thawed"
    assert json.loads(document.removeprefix("on-failure script x: ")) == error_document(BusyError("Busy."))
    assert words == "on-failure script x: 8 on-failure"


def test_failure_within_several_blocks_is_told_once(directory: Path, write: Write, recorder: Recorder) -> None:
    write("on-failure.d/x", "echo told")
    made = scripts(directory, recorder)
    with pytest.raises(BusyError), made.attended(), made.attended():
        raise BusyError("Busy.")
    assert recorder.steps == ["on-failure script x: told"]


def test_others_hear_of_a_failure_before_its_scripts_run(directory: Path, write: Write, recorder: Recorder) -> None:
    write("on-failure.d/x", "echo ran")
    steps_by_then: list[list[str]] = []

    def fail() -> None:
        with scripts(directory, recorder).attended(failed=lambda _err: steps_by_then.append([*recorder.steps])):
            raise BusyError("Busy.")

    with pytest.raises(BusyError):
        fail()
    assert steps_by_then == [[]]
    assert recorder.steps == ["on-failure script x: ran"]


def test_bug_is_told_as_an_error(directory: Path, write: Write, recorder: Recorder) -> None:
    write("on-failure.d/x", "cat")
    with pytest.raises(ZeroDivisionError), scripts(directory, recorder).attended():
        raise ZeroDivisionError("x")
    assert "Unexpected ZeroDivisionError: x." in recorder.steps[0]


def test_unsafe_script_of_the_domain_is_told_to_those_for_all(
    directory: Path, write: Write, recorder: Recorder
) -> None:
    write("on-failure.d/x", "echo told")
    write("domains/web/post-backup.d/x", mode=0o777)
    made = DomainScripts(Settings(directory), reporter=recorder, stop=Stop(), work="backup", domain="web")
    with pytest.raises(UnsafeScriptError), made.attended():
        made.of_domain("web", UUID, uri="")
    assert recorder.steps == ["on-failure script x: told"]


def test_warning_that_was_reported_is_not_repeated(directory: Path, write: Write, recorder: Recorder) -> None:
    write("pre-backup.d/x", mode=0o644)
    write("domains/web/pre-backup.d/y", mode=0o644)
    reported = Settings(directory).find().warnings
    settings = Settings(directory, reported=reported)
    made = DomainScripts(settings, reporter=recorder, stop=Stop(), work="backup", domain="web")
    made.of_domain("web", UUID, uri="")
    assert len(reported) == len(recorder.warnings) == 1
    assert "domains/web/pre-backup.d/y is not executable" in recorder.warnings[0]


def test_without_a_directory_there_are_none(recorder: Recorder) -> None:
    made = DomainScripts(Settings(), reporter=recorder, stop=Stop(), work="backup", domain="web")
    made.of_domain("web", UUID, uri="")
    assert not made.has(*ScriptPhase)
