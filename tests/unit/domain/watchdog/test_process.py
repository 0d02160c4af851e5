"""What the watchdog reads from its pipe, and when it thaws the guest, which is a fake here."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from tests.unit.domain.test_freeze import NO_ANSWER, STATUS, THAW, FakeAgent
from vbackup.domain import freeze
from vbackup.domain.watchdog import process
from vbackup.domain.watchdog.process import BLIND, FREEZING, READY, THAWED, Pipe, watch
from vbackup.errors import DomainGoneError, DomainNotFoundError, HostUnreachableError, VbackupError

LONG_S = 60


class Watched:
    """A watchdog in a thread, with the test at the other end of its pipe."""

    def __init__(self, agent: FakeAgent, **options: Any) -> None:
        self.agent = agent
        self.told: list[str] = []
        self.logged: list[str] = []
        self._read_fd, self._write_fd = os.pipe()
        self._ready = threading.Event()
        failures: list[VbackupError] = options.pop("connect_fails", [])

        def connect() -> FakeAgent:
            if failures:
                raise failures.pop(0)
            return agent

        def tell(line: str) -> None:
            self.told.append(line)
            self._ready.set()

        options = {"limit_s": LONG_S, "is_blind": False, "give_up_s": LONG_S, **options}
        arguments = (Pipe(self._read_fd), connect, tell, self.logged.append)
        self._thread = threading.Thread(target=watch, args=arguments, kwargs=options, daemon=True)
        self._thread.start()
        assert self._ready.wait(LONG_S)

    def say(self, *lines: str) -> None:
        for line in lines:
            os.write(self._write_fd, f"{line}\n".encode())

    def die(self) -> None:
        if self._write_fd >= 0:
            os.close(self._write_fd)
        self._write_fd = -1

    def wait(self) -> list[str]:
        """Wait until it has ended; return the commands that it sent to the agent."""
        self._thread.join(LONG_S)
        assert not self._thread.is_alive()
        self.die()
        os.close(self._read_fd)
        return self.agent.asked


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "TRY_AGAIN_S", 0.01)
    monkeypatch.setattr(process, "CONNECT_AGAIN_S", 0.01)


@pytest.mark.parametrize("is_blind", [False, True], ids=["connected", "blind"])
def test_dead_vbackup_s_guest_is_thawed(is_blind: bool) -> None:
    watched = Watched(FakeAgent(), is_blind=is_blind)
    watched.say(FREEZING)
    watched.die()
    assert watched.wait() == [THAW, STATUS]
    assert watched.told == [BLIND if is_blind else READY]
    assert watched.logged == ["was left frozen by a vbackup process that ended: thawed by the watchdog"]


def test_guest_is_thawed_when_the_limit_is_over_and_vbackup_lives() -> None:
    watched = Watched(FakeAgent(), limit_s=0.05)
    watched.say(FREEZING)
    assert watched.wait() == [THAW, STATUS]
    assert watched.logged == ["was not thawed within the limit: thawed by the watchdog"]


def test_blind_one_waits_for_the_end_of_vbackup() -> None:
    watched = Watched(FakeAgent(), limit_s=0.05, is_blind=True)
    watched.say(FREEZING)
    watched._thread.join(0.2)
    assert watched.agent.asked == []
    watched.die()
    assert watched.wait() == [THAW, STATUS]


@pytest.mark.parametrize("lines", [(), (FREEZING, THAWED)], ids=["nothing frozen", "thawed"])
@pytest.mark.parametrize("is_blind", [False, True], ids=["connected", "blind"])
def test_guest_that_is_not_frozen_is_left_alone(lines: tuple[str, ...], is_blind: bool) -> None:
    watched = Watched(FakeAgent(), is_blind=is_blind)
    watched.say(*lines)
    watched.die()
    assert watched.wait() == []
    assert watched.logged == []


def test_agent_is_asked_until_it_answers_and_says_that_nothing_is_frozen() -> None:
    agent = FakeAgent(thaw=[NO_ANSWER, NO_ANSWER, 0, 2], status=["frozen", "thawed"])
    watched = Watched(agent)
    watched.say(FREEZING)
    watched.die()
    assert watched.wait() == [THAW, THAW, THAW, STATUS, THAW, STATUS]


def test_agent_that_never_answers_is_given_up_and_logged() -> None:
    watched = Watched(FakeAgent(thaw=NO_ANSWER), give_up_s=0.05)
    watched.say(FREEZING)
    watched.die()
    assert 1 < watched.wait().count(THAW) < 50
    assert "run 'virsh domfsthaw'" in watched.logged[0]


def test_domain_that_has_ended_needs_no_thaw() -> None:
    for agent, options in (
        (FakeAgent(thaw=DomainGoneError("web")), {}),
        (FakeAgent(), {"is_blind": True, "connect_fails": [DomainNotFoundError("web", "there", "look")]}),
    ):
        watched = Watched(agent, **options)
        watched.say(FREEZING)
        watched.die()
        assert watched.wait().count(THAW) <= 1
        assert watched.logged == ["was left frozen by a vbackup process that ended: it has ended"]


def test_driver_that_the_dead_process_still_holds_is_tried_again() -> None:
    failures = [HostUnreachableError("qemu:///embed", "Failed to acquire pid file") for _ in range(3)]
    watched = Watched(FakeAgent(), is_blind=True, connect_fails=failures)
    watched.say(FREEZING)
    watched.die()
    assert watched.wait() == [THAW, STATUS]


def test_driver_that_stays_held_is_given_up() -> None:
    failures = [HostUnreachableError("qemu:///embed", "Failed to acquire pid file") for _ in range(50)]
    watched = Watched(FakeAgent(), is_blind=True, connect_fails=failures, give_up_s=0.05)
    watched.say(FREEZING)
    watched.die()
    assert watched.wait() == []
    assert "it may be frozen" in watched.logged[0]


def test_one_that_cannot_connect_says_why_in_one_line() -> None:
    watched = Watched(FakeAgent(), connect_fails=[HostUnreachableError("x:///", "no\nroute")])
    assert watched.wait() == []
    assert watched.told == ["Cannot reach libvirt at x:///: no route. 'virsh -c x:/// list' has to work first."]
