"""The verdict on a guest that boots: what was asked for was seen in time, or why not."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import pytest

from vbackup.domain import boot_watch, screenshot
from vbackup.domain.boot_watch import Goals, Watched
from vbackup.errors import DomainGoneError, InterruptedBySignalError, MonitorError, QmpError

BLACK, TEXT = (screenshot.png(b"P6\n2 1\n255\n" + pixels) for pixels in (bytes(6), b"\0\0\0\7\7\7"))


class FakeCopy:
    """A guest that does something at certain seconds of a clock that only waiting moves."""

    def __init__(self, **at: float) -> None:
        self.now_s = 0.0
        self.at = at
        self.asked: list[tuple[str, Any]] = []
        self.text = ""
        self.status: dict[str, Any] = {"exited": True, "exitcode": 0}
        self.error: Exception | None = None
        self.screen: bytes | None = TEXT
        self.reads = 0

    def clock(self) -> float:
        return self.now_s

    def _has(self, what: str) -> bool:
        return self.now_s >= self.at.get(what, 1e9)

    def is_active(self) -> bool:
        return not self._has("end")

    def agent(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int) -> Any:
        if self._has("end"):
            raise DomainGoneError("copy")
        if not self._has("agent"):
            raise MonitorError("no agent")
        self.asked.append((command, arguments))
        if command == "guest-exec":
            if self.error is not None:
                raise self.error
            return {"pid": 7}
        return self.status if self._has("exited") or "exited" not in self.at else {"exited": False}

    def console(self) -> str:
        return self.text if self._has("console") else "starting"

    def read_bytes(self) -> int:
        return self.reads if self._has("read") else 512

    def picture(self) -> bytes:
        if self.screen is None:
            raise MonitorError("no screen")
        return self.screen

    def wait(self, timeout_s: float) -> None:
        if self._has("signal"):
            raise InterruptedBySignalError(15)
        self.now_s += timeout_s


def watch(copy: FakeCopy, goals: Goals, timeout_s: float = 60.0) -> Watched:
    return boot_watch.watch(copy, goals, timeout_s=timeout_s, clock=copy.clock)


def test_agent_that_answers_is_enough() -> None:
    assert watch(FakeCopy(agent=7), Goals(agent=True)) == Watched(agent_s=7.0)


def test_agent_that_refuses_a_ping_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = FakeCopy()

    def refuse(*_: Any, **__: Any) -> Any:
        raise QmpError("guest-ping", "CommandNotFound", "disabled")

    monkeypatch.setattr(copy, "agent", refuse)
    assert watch(copy, Goals(agent=True)).failure is None


def test_agent_that_does_not_come_in_time() -> None:
    found = watch(FakeCopy(agent=61), Goals(agent=True, console="login:"))
    assert found.failure == "Within 60 s, no guest agent answered and nothing on its consoles matched 'login:'."
    assert found.agent_s is None


def test_command_is_run_once_and_its_status_counts() -> None:
    copy = FakeCopy(agent=5, exited=8)
    copy.status = {"exited": True, "exitcode": 0, "out-data": base64.b64encode(b"fine\n").decode()}
    found = watch(copy, Goals(agent=True, command="/bin/sh -c 'exit 0'"))
    assert found == Watched(agent_s=5.0, command_s=8.0, command_status=0, command_output="fine\n")
    started = [arguments for command, arguments in copy.asked if command == "guest-exec"]
    assert started == [{"path": "/bin/sh", "arg": ["-c", "exit 0"], "capture-output": True}]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"exited": True, "exitcode": 3}, "exited with status 3 in the guest."),
        ({"exited": True, "exitcode": -1073741819}, "exited with status -1073741819"),
        ({"exited": True, "signal": 9}, "was killed by a signal in the guest."),
        ({"exited": True, "exitcode": 1, "err-data": base64.b64encode(b"a\nno /x\n").decode()}, "in the guest: no /x."),
        ({"exited": True, "exitcode": 1, "err-data": "not base64"}, "exited with status 1 in the guest."),
        ({"exited": "yes"}, "wrong answer"),
    ],
)
def test_command_that_fails_ends_the_test_at_once(status: dict[str, Any], said: str) -> None:
    copy = FakeCopy(agent=5)
    copy.status = status
    found = watch(copy, Goals(agent=True, command="check"))
    assert said in (found.failure or "")
    assert copy.now_s == 5.0


def test_command_that_the_agent_refuses_and_one_that_does_not_end() -> None:
    copy = FakeCopy(agent=5)
    for description, cause in (
        ("disabled", "disabled"),
        (
            "Guest agent command failed, error was 'Failed to execute child process “x” (No such file or directory)'",
            "No such file or directory",
        ),
        ("Guest agent command failed, error was 'it cannot (now) be run.'", "it cannot (now) be run"),
    ):
        copy.error = QmpError("guest-exec", "GenericError", description)
        failure = watch(copy, Goals(agent=True, command="check")).failure
        assert failure == f"The guest agent did not run 'check': {cause}."
    found = watch(FakeCopy(agent=5, exited=99), Goals(agent=True, command="check"))
    assert found.failure == "Within 60 s, the command 'check' did not end in the guest."


def test_console_is_searched() -> None:
    copy = FakeCopy(console=4)
    copy.text = "Debian\nlogin: "
    assert watch(copy, Goals(console="^login:|log.n: $")) == Watched(console_s=4.0)


@pytest.mark.parametrize("goals", [Goals(agent=True), Goals(console="x"), Goals(agent=True, command="x")])
def test_guest_that_switches_itself_off(goals: Goals) -> None:
    copy = FakeCopy(end=3, exited=9, agent=2 if goals.command else 9)
    assert watch(copy, goals).failure == "The guest switched itself off, or its QEMU ended, after 3.0 s."


def test_what_is_asked_for_has_all_to_be_reached() -> None:
    copy = FakeCopy(agent=2, console=9, read=0)
    copy.text, copy.reads = "ready", 1 << 21
    found = watch(copy, Goals(agent=True, console="ready", screen=True))
    assert (found.failure, found.agent_s, found.console_s) == (None, 2.0, 9.0)
    assert found.screen_s is not None


# the screen


def test_screen_counts_when_the_guest_has_read_its_disks_and_rests() -> None:
    copy = FakeCopy(read=6)
    copy.reads = boot_watch.MIN_READ_BYTES
    found = watch(copy, Goals(screen=True))
    assert found.failure is None
    assert 6 + boot_watch.REST_S <= (found.screen_s or 0) <= 6 + boot_watch.REST_S + boot_watch.SCREEN_TICK_S


def test_screen_of_a_guest_that_never_rests_counts_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = FakeCopy()
    monkeypatch.setattr(copy, "read_bytes", lambda: 10_000_000 + int(copy.now_s * 1000))
    found = watch(copy, Goals(screen=True))
    assert (found.failure, found.screen_s) == (None, 60.0)


def test_firmware_that_finds_nothing_to_boot_is_no_success() -> None:
    found = watch(FakeCopy(), Goals(screen=True))
    assert found.failure == "Within 60 s, the guest read only 512 bytes of its disks: it did not boot from them."


@pytest.mark.parametrize("screen", [BLACK, None])
def test_screen_without_anything_on_it(screen: bytes | None) -> None:
    copy = FakeCopy(read=0)
    copy.reads, copy.screen = 1 << 30, screen
    found = watch(copy, Goals(screen=True))
    assert found.failure == "Within 60 s, nothing was drawn on its screen."


def test_signal_ends_the_watch() -> None:
    with pytest.raises(InterruptedBySignalError):
        watch(FakeCopy(signal=1), Goals(agent=True))
