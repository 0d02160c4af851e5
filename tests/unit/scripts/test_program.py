"""A program of the user's gets its input, its deadline and little else, and all that it started ends with it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.unit.scripts.conftest import Write
from vbackup.errors import InterruptedBySignalError
from vbackup.scripts import program
from vbackup.scripts.program import End, How
from vbackup.stop import Stop


def run(path: Path, *, timeout_s: float = 20, **changes: Any) -> tuple[End, list[str]]:
    lines: list[str] = []
    given = {"environment": {"VBACKUP_X": "1"}, "document": b"{}\n", "say": lines.append, **changes}
    return program.run(path, deadline=time.monotonic() + timeout_s, **given), lines


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended, perhaps between open(2) and read(2)
        while Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)


def test_program_gets_its_input_environment_and_a_plain_place(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import json,os,sys; print(json.dumps([sys.stdin.read(), dict(os.environ), os.getcwd(),"
    text += ' sorted(map(int, os.listdir("/proc/self/fd")))]))'
    path = write("x", f"exec {sys.executable} -c '{text}'")
    monkeypatch.setenv("SECRET", "of the caller")
    monkeypatch.setenv("PATH", f"/tmp/evil:{os.environ['PATH']}")
    monkeypatch.setenv("LC_TIME", "C")
    end, lines = run(path, document=b'{"a": 1}\n')
    assert (end.how, end.status, end.is_good) == (How.EXITED, 0, True)
    given, environment, place, fds = json.loads(lines[0])
    assert (given, place) == ('{"a": 1}\n', "/")
    assert environment["VBACKUP_X"] == "1"
    assert environment["LC_TIME"] == "C"
    assert environment["PATH"] == program._PATH
    assert "SECRET" not in environment
    assert fds[:3] == [0, 1, 2]
    assert len(fds) == 4  # the last is that of listdir


def test_input_that_nobody_reads_keeps_nobody_waiting(write: Write) -> None:
    end, _ = run(write("x"), document=b"x" * 10_000_000)
    assert end.is_good


def test_both_outputs_are_reported_line_by_line(write: Write) -> None:
    end, lines = run(write("x", "echo one; echo two >&2; echo; printf 'th\\377ree\\r\\nend'; exit 3"))
    assert lines == ["one", "two", "th\ufffdree", "end"]
    assert end.failure(deadline="") == "ended with exit status 3 (its last line: end)"
    assert end.exit_status == 3


def test_output_without_an_end_is_bounded(write: Write) -> None:
    end, lines = run(write("x", "head -c 3000000 /dev/zero | tr '\\0' a; echo; yes | head -c 3000000"))
    assert end.is_good
    assert sum(map(len, lines)) < program.OUTPUT_BYTES + 2 * program.LINE_BYTES
    assert max(map(len, lines)) <= program.LINE_BYTES
    assert lines[-1] == "(What it prints after these 256 KiB is left out.)"


def test_deadline_ends_the_whole_group(write: Write) -> None:
    path = write("x", "trap 'echo cleaned up; exit 0' TERM; sleep 1000 & echo $!; wait")
    begun = time.monotonic()
    end, lines = run(path, timeout_s=0.3)
    assert 0.3 <= time.monotonic() - begun < 5
    assert lines[1:] == ["cleaned up"]
    assert end.how is How.LATE
    assert end.exit_status is None
    assert end.failure(deadline="within 0.3 s") == (
        "was killed, since it had not ended within 0.3 s (its last line: cleaned up)"
    )
    wait_gone(int(lines[0]))


def test_what_does_not_heed_sigterm_is_killed(write: Write) -> None:
    path = write("x", "trap '' TERM; echo $$; while :; do sleep 1000; done")
    end, lines = run(path, timeout_s=0.2, term_s=0.2)
    assert end.how is How.LATE
    wait_gone(int(lines[0]))


def test_without_time_for_sigterm_it_is_killed_at_once(write: Write) -> None:
    end, lines = run(write("x", "trap 'echo heard' TERM; echo here; sleep 1000"), timeout_s=0.3, term_s=0)
    assert (end.how, lines) == (How.LATE, ["here"])
    assert end.duration_s < 3  # SIGTERM would have 5 s


def test_child_that_is_left_behind_is_not_waited_for(write: Write) -> None:
    end, lines = run(write("x", "setsid sleep 1000 & echo $!"))
    assert end.is_good
    assert end.duration_s < 10
    os.kill(int(lines[0]), signal.SIGKILL)


def test_request_to_stop_ends_it(write: Write) -> None:
    stop = Stop()
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        stop.request(signal.SIGTERM)

    with pytest.raises(InterruptedBySignalError):
        run(write("x", "echo $$; sleep 1000"), say=say, check=stop.check)
    wait_gone(int(lines[0]))


def test_signal_is_named(write: Write) -> None:
    end, _ = run(write("x", "kill -SEGV $$"))
    assert (end.how, end.failure(deadline="")) == (How.KILLED, "was ended by SIGSEGV")
    assert not end.is_good


def test_what_cannot_be_started_says_why(write: Write, directory: Path) -> None:
    no_interpreter = directory / "y"
    no_interpreter.write_text("echo x\n")
    no_interpreter.chmod(0o755)
    bad_interpreter = directory / "z"
    bad_interpreter.write_text("#!/none/sh\n")
    bad_interpreter.chmod(0o755)
    reasons = [run(path)[0] for path in (no_interpreter, bad_interpreter, write("x", mode=0o644))]
    assert [one.how for one in reasons] == [How.NOT_STARTED] * 3
    assert [one.failure(deadline="") for one in reasons] == [
        "could not be started: Exec format error; a script begins with a line such as #!/bin/sh",
        "could not be started: No such file or directory; its first line may name a program that does not exist",
        "could not be started: Permission denied; its filesystem may be mounted noexec",
    ]


def test_kernel_without_pidfd_does_the_same(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    end, lines = run(write("x", "echo one; exec >&- 2>&-; sleep 0.3; exit 4"))
    assert (lines, end.status) == (["one"], 4)
    end, _ = run(write("y", "sleep 1000"), timeout_s=0.3)
    assert end.how is How.LATE


def children() -> set[int]:
    """The children of this process, those that have ended and that nobody has waited for included."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            _state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid():
                found.add(int(entry.parent.name))
    return found


def test_no_descriptor_and_no_process_is_left(write: Write) -> None:
    before, others = sorted(Path("/proc/self/fd").iterdir()), children()  # other tests may have left some
    run(write("x"))
    run(write("y", "sleep 100"), timeout_s=0.1)
    run(write("z", mode=0o644))
    # Tests before may have left some that the collector closes meanwhile.
    assert {*Path("/proc/self/fd").iterdir()} <= {*before}
    assert children() <= others
