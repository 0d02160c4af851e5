"""The guest's filesystems are frozen around one moment, and never left frozen."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.builders import Recorder
from vbackup.errors import ConnectionLostError, DomainGoneError, MonitorError, QmpError, QuiesceError
from vbackup.freeze import Freeze, frozen
from vbackup.model import Consistency, Quiesce

PING, FREEZE, THAW = "guest-ping", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"
NO_ANSWER = MonitorError("Guest agent is not responding: QEMU guest agent is not connected.")


class Clock:
    """Advances by a second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class FakeAgent:
    """A guest whose agent gives these answers in turn; the last one stays."""

    def __init__(self, **answers: Sequence[Any] | Any) -> None:
        self.asked: list[str] = []
        self.is_frozen = False
        self._answers: dict[str, list[Any]] = {PING: [{}], FREEZE: [2], THAW: [2]}
        for name, given in answers.items():
            self._answers[{"ping": PING, "freeze": FREEZE, "thaw": THAW}[name]] = (
                list(given) if isinstance(given, (list, tuple)) else [given]
            )

    def agent(self, command: str, *, timeout_s: int) -> Any:
        assert timeout_s > 0
        self.asked.append(command)
        answers = self._answers[command]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        if command == FREEZE:
            self.is_frozen = bool(answer)
        if command == THAW:
            self.is_frozen = False
        return answer


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tries to thaw."""

    class Pause:
        def wait(self, _seconds: float) -> None:
            pass

    monkeypatch.setattr(threading, "Event", Pause)


def moment(
    agent: FakeAgent, recorder: Recorder, quiesce: Quiesce = Quiesce.AUTO, *, connected: bool = True
) -> tuple[Freeze, bool]:
    """How the freeze went, and whether the guest was frozen at the moment of the backup."""
    with frozen(agent, quiesce, connected=connected, reporter=recorder, clock=Clock()) as made:
        at_the_moment = agent.is_frozen
    return made, at_the_moment


# it works


@pytest.mark.parametrize("quiesce", [Quiesce.AUTO, Quiesce.REQUIRED])
def test_filesystems_are_frozen_at_the_moment_and_thawed_after_it(recorder: Recorder, quiesce: Quiesce) -> None:
    agent = FakeAgent()
    made, at_the_moment = moment(agent, recorder, quiesce)
    assert at_the_moment
    assert not agent.is_frozen
    assert agent.asked == [PING, FREEZE, THAW]
    assert made.consistency is Consistency.FILESYSTEM
    assert made.frozen_ms > 0
    assert recorder.warnings == []


def test_agent_is_not_asked_where_nobody_wants_it(recorder: Recorder) -> None:
    agent = FakeAgent()
    made, _ = moment(agent, recorder, Quiesce.NO)
    assert agent.asked == []
    assert made == Freeze(Consistency.CRASH, 0)
    assert recorder.warnings == recorder.steps == []


# it does not, and need not


def test_without_an_agent_the_backup_is_crash_consistent(recorder: Recorder) -> None:
    agent = FakeAgent()
    made, _ = moment(agent, recorder, connected=False)
    assert agent.asked == []
    assert made == Freeze(Consistency.CRASH, 0)
    assert recorder.warnings == []  # most guests have none; that is no news
    assert len(recorder.steps) == 1
    assert "no guest agent is connected" in recorder.steps[0]


def test_agent_that_does_not_answer_is_not_asked_to_freeze(recorder: Recorder) -> None:
    agent = FakeAgent(ping=NO_ANSWER)
    made, _ = moment(agent, recorder)
    assert agent.asked == [PING]
    assert made == Freeze(Consistency.CRASH, 0)
    assert "does not answer" in recorder.warnings[0]


@pytest.mark.parametrize(
    "error", [NO_ANSWER, ConnectionLostError("lost"), QmpError(FREEZE, "GenericError", "no")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_guest_that_may_have_frozen_is_thawed(recorder: Recorder, error: Exception) -> None:
    """The answer to the freeze was lost, or came late."""
    agent = FakeAgent(freeze=error)
    made, _ = moment(agent, recorder)
    assert agent.asked == [PING, FREEZE, THAW]
    assert made.consistency is Consistency.CRASH
    assert "could not freeze" in recorder.warnings[0]


def test_guest_without_a_filesystem_is_crash_consistent(recorder: Recorder) -> None:
    made, _ = moment(FakeAgent(freeze=0, thaw=0), recorder)
    assert made.consistency is Consistency.CRASH
    assert len(recorder.warnings) == 1
    assert "no filesystem to freeze" in recorder.warnings[0]


@pytest.mark.parametrize(
    "agent",
    [FakeAgent(freeze=0, thaw=0), FakeAgent(freeze=QmpError(FREEZE, "GenericError", "disabled"), thaw=0)],
    ids=["no filesystem", "refused"],
)
def test_time_frozen_is_none_where_nothing_was_frozen(recorder: Recorder, agent: FakeAgent) -> None:
    made, _ = moment(agent, recorder)
    assert made.frozen_ms == 0


# it does not, and must


@pytest.mark.parametrize(
    ("agent", "connected", "said"),
    [
        (FakeAgent(), False, "no guest agent is connected"),
        (FakeAgent(ping=NO_ANSWER), True, "does not answer"),
        (FakeAgent(freeze=0, thaw=0), True, "no filesystem to freeze"),
        (FakeAgent(freeze=NO_ANSWER), True, "could not freeze"),
        (FakeAgent(freeze=QmpError(FREEZE, "GenericError", "disabled")), True, "disabled"),
    ],
    ids=["no agent", "no answer", "no filesystem", "late", "refused"],
)
def test_required_freeze_that_fails_stops_the_backup(
    recorder: Recorder, agent: FakeAgent, connected: bool, said: str
) -> None:
    with pytest.raises(QuiesceError, match=said) as caught:
        moment(agent, recorder, Quiesce.REQUIRED, connected=connected)
    assert "--quiesce auto" in str(caught.value)
    if FREEZE in agent.asked:
        assert agent.asked[-1] == THAW


# thaw


def test_guest_is_thawed_when_the_backup_fails(recorder: Recorder) -> None:
    agent = FakeAgent()

    def fail() -> None:
        with frozen(agent, Quiesce.AUTO, connected=True, reporter=recorder, clock=Clock()):
            assert agent.is_frozen
            raise QmpError("transaction", "GenericError", "no")

    with pytest.raises(QmpError):
        fail()
    assert not agent.is_frozen


def test_thaw_is_tried_until_it_answers(recorder: Recorder) -> None:
    agent = FakeAgent(thaw=[NO_ANSWER, ConnectionLostError("lost"), NO_ANSWER, 2])
    made, _ = moment(agent, recorder)
    assert agent.asked.count(THAW) == 4
    assert made.consistency is Consistency.FILESYSTEM
    assert recorder.warnings == []


def test_thaw_whose_answer_was_lost_is_no_thaw_by_itself(recorder: Recorder) -> None:
    """The second try finds nothing frozen, because the first one thawed."""
    made, _ = moment(FakeAgent(thaw=[NO_ANSWER, 0]), recorder)
    assert made.consistency is Consistency.FILESYSTEM


def test_guest_that_thawed_by_itself_is_crash_consistent(recorder: Recorder) -> None:
    """Windows does after ten seconds."""
    made, _ = moment(FakeAgent(thaw=0), recorder)
    assert made.consistency is Consistency.CRASH
    assert "thawed its filesystems by itself" in recorder.warnings[0]


def test_thaw_that_never_answers_is_told_with_the_way_out(recorder: Recorder) -> None:
    agent = FakeAgent(thaw=NO_ANSWER)
    moment(agent, recorder)
    assert 2 < agent.asked.count(THAW) < 100
    assert "virsh domfsthaw" in recorder.warnings[-1]


def test_thaw_that_is_refused_is_told_once(recorder: Recorder) -> None:
    agent = FakeAgent(thaw=QmpError(THAW, "GenericError", "no"))
    moment(agent, recorder)
    assert agent.asked.count(THAW) == 1
    assert "could not thaw" in recorder.warnings[0]


# the domain goes


@pytest.mark.parametrize("when", ["ping", "freeze"])
@pytest.mark.parametrize("quiesce", [Quiesce.AUTO, Quiesce.REQUIRED])
def test_end_of_the_domain_is_told_as_such(recorder: Recorder, when: str, quiesce: Quiesce) -> None:
    agent = FakeAgent(**{when: DomainGoneError("web"), "thaw": DomainGoneError("web")})
    with pytest.raises(DomainGoneError):
        moment(agent, recorder, quiesce)
    assert recorder.warnings == []


def test_end_of_the_domain_needs_no_thaw(recorder: Recorder) -> None:
    agent = FakeAgent(thaw=DomainGoneError("web"))
    moment(agent, recorder)
    assert agent.asked.count(THAW) == 1
    assert recorder.warnings == []
