"""The guest's filesystems are frozen around one moment, and never left frozen."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.unit.builders import Recorder
from vbackup.domain.freeze import (
    DEFAULT_LIMIT_S,
    THAW_DEADLINE_S,
    Freeze,
    Thaw,
    Thawed,
    frozen,
    thaw,
    thaw_leftover,
)
from vbackup.errors import ConnectionLostError, DomainGoneError, MonitorError, QmpError, QuiesceError
from vbackup.model import Consistency, Quiesce

PING, FREEZE, THAW, STATUS = "guest-ping", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-fsfreeze-status"
NO_ANSWER = MonitorError("Guest agent is not responding: QEMU guest agent is not connected.")


class Clock:
    """Advances by a second at each call, and as the test wants."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class FakeThawer:
    """A Thawer that records its notifications."""

    def __init__(self, *, reason: str | None = None, limit_s: int = DEFAULT_LIMIT_S) -> None:
        self.limit_s = limit_s
        self.is_blind = False
        self.told: list[str] = []
        self.is_left_frozen = False
        self.did_thaw = False
        self._reason = reason

    def reason_not_to_freeze(self) -> str | None:
        return self._reason

    def may_be_left_frozen(self) -> bool:
        return self.is_left_frozen

    def has_thawed(self) -> bool:
        return self.did_thaw

    def freezing(self) -> None:
        self.told.append("freezing")

    def thawed(self) -> None:
        self.told.append("thawed")


class FakeAgent:
    """A guest agent that gives these answers in turn; the last one is repeated."""

    def __init__(self, **answers: Sequence[Any] | Any) -> None:
        self.asked: list[str] = []
        self.is_frozen = False
        self._answers: dict[str, list[Any]] = {PING: [{}], FREEZE: [2], THAW: [2], STATUS: ["thawed"]}
        for name, given in answers.items():
            self._answers[{"ping": PING, "freeze": FREEZE, "thaw": THAW, "status": STATUS}[name]] = (
                list(given) if isinstance(given, (list, tuple)) else [given]
            )
        self.on_freeze: Callable[[], None] = lambda: None

    def agent(self, command: str, *, timeout_s: int) -> Any:
        assert timeout_s > 0
        self.asked.append(command)
        if command == FREEZE:
            self.on_freeze()
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
    """Remove the pause between two attempts to thaw."""

    class Pause:
        def wait(self, _seconds: float) -> None:
            pass

    monkeypatch.setattr(threading, "Event", Pause)


def moment(
    agent: FakeAgent,
    recorder: Recorder,
    quiesce: Quiesce = Quiesce.AUTO,
    *,
    connected: bool = True,
    thawer: FakeThawer | None = None,
    clock: Clock | None = None,
    transaction_s: float = 0,
) -> tuple[Freeze, bool]:
    """How the freeze went, and whether the guest was frozen at the moment of the backup."""
    thawer = (thawer or FakeThawer()) if connected else None
    clock = clock or Clock()
    with frozen(agent, quiesce, thawer=thawer, reporter=recorder, clock=clock) as made:
        at_the_moment = agent.is_frozen
        clock.now += transaction_s
    return made, at_the_moment


# the freeze works


@pytest.mark.parametrize("quiesce", [Quiesce.AUTO, Quiesce.REQUIRED])
def test_filesystems_are_frozen_at_the_moment_and_thawed_after_it(recorder: Recorder, quiesce: Quiesce) -> None:
    agent = FakeAgent()
    made, at_the_moment = moment(agent, recorder, quiesce)
    assert at_the_moment
    assert not agent.is_frozen
    assert agent.asked == [PING, STATUS, FREEZE, THAW]
    assert made.consistency is Consistency.FILESYSTEM
    assert made.frozen_ms > 0
    assert recorder.warnings == []


def test_agent_is_not_asked_without_quiesce(recorder: Recorder) -> None:
    agent = FakeAgent()
    made, _ = moment(agent, recorder, Quiesce.NO)
    assert agent.asked == []
    assert made == Freeze(Consistency.CRASH, 0)
    assert recorder.warnings == recorder.steps == []


# it fails, and is not required


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
    assert agent.asked[:4] == [PING, STATUS, FREEZE, THAW]
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
def test_time_frozen_is_0_if_nothing_was_frozen(recorder: Recorder, agent: FakeAgent) -> None:
    made, _ = moment(agent, recorder)
    assert made.frozen_ms == 0


# it fails, and is required


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
        assert THAW in agent.asked[agent.asked.index(FREEZE) :]


# thaw


def test_guest_is_thawed_when_the_backup_fails(recorder: Recorder) -> None:
    agent, thawer = FakeAgent(), FakeThawer()

    def fail() -> None:
        with frozen(agent, Quiesce.AUTO, thawer=thawer, reporter=recorder, clock=Clock()):
            assert agent.is_frozen
            raise QmpError("transaction", "GenericError", "no")

    with pytest.raises(QmpError):
        fail()
    assert not agent.is_frozen
    assert thawer.told == ["freezing", "thawed"]


def test_thaw_is_tried_until_it_answers(recorder: Recorder) -> None:
    agent = FakeAgent(thaw=[NO_ANSWER, ConnectionLostError("lost"), NO_ANSWER, 2])
    made, _ = moment(agent, recorder)
    assert agent.asked.count(THAW) == 4
    assert made.consistency is Consistency.FILESYSTEM
    assert recorder.warnings == []


def test_thaw_whose_answer_was_lost_does_not_count_as_the_guests_own(recorder: Recorder) -> None:
    """The second attempt finds nothing frozen, because the first one thawed."""
    made, _ = moment(FakeAgent(thaw=[NO_ANSWER, 0]), recorder)
    assert made.consistency is Consistency.FILESYSTEM


def test_guest_that_thawed_by_itself_is_crash_consistent(recorder: Recorder) -> None:
    """Windows does after ten seconds."""
    made, _ = moment(FakeAgent(thaw=0), recorder)
    assert made.consistency is Consistency.CRASH
    assert "thawed its filesystems by itself" in recorder.warnings[0]


def test_thaw_that_never_answers_is_told_with_the_way_out(recorder: Recorder) -> None:
    agent, thawer = FakeAgent(thaw=NO_ANSWER), FakeThawer()
    moment(agent, recorder, thawer=thawer)
    assert 2 < agent.asked.count(THAW) < 100
    assert "virsh domfsthaw" in recorder.warnings[-1]
    assert thawer.told == ["freezing"]  # the watchdog goes on


def test_thaw_that_is_refused_is_told_once(recorder: Recorder) -> None:
    """Windows does after ten seconds, and has thawed."""
    agent = FakeAgent(thaw=QmpError(THAW, "GenericError", "fsfreeze is limited up to 10 seconds"))
    made, _ = moment(agent, recorder)
    assert agent.asked.count(THAW) == 1
    assert "could not thaw" in recorder.warnings[0]
    assert made.consistency is Consistency.CRASH
    assert "did not keep the filesystems frozen" in recorder.warnings[1]


def test_thaw_that_is_refused_while_something_is_frozen_is_tried_again(recorder: Recorder) -> None:
    agent = FakeAgent(thaw=[QmpError(THAW, "GenericError", "not now"), 2], status=["thawed", "frozen", "thawed"])
    made, _ = moment(agent, recorder)
    assert agent.asked.count(THAW) == 2
    assert made.consistency is Consistency.FILESYSTEM


def test_half_a_freeze_is_thawed_and_told(recorder: Recorder) -> None:
    agent = FakeAgent(freeze=QmpError(FREEZE, "GenericError", "failed to freeze /log: Input/output error"), thaw=1)
    made, _ = moment(agent, recorder)
    assert agent.asked == [PING, STATUS, FREEZE, THAW]
    assert made.consistency is Consistency.CRASH
    assert made.frozen_ms > 0
    assert "failed to freeze /log" in recorder.warnings[0]
    assert "froze 1 filesystem(s) before it failed; they are thawed again" in recorder.warnings[1]


def test_agent_that_freezes_after_the_thaw_is_thawed_again(recorder: Recorder) -> None:
    """It did not answer the freeze in time, so when it freezes is unknown."""
    agent = FakeAgent(freeze=NO_ANSWER, thaw=[0, 2], status=["thawed", "frozen", "thawed"])
    made, _ = moment(agent, recorder)
    assert agent.asked == [PING, STATUS, FREEZE, THAW, STATUS, THAW, STATUS]
    assert made.consistency is Consistency.CRASH


def test_thaw_counts_if_the_agent_refuses_its_status() -> None:
    agent = FakeAgent(status=QmpError(STATUS, "CommandNotFound", "disabled"))
    assert thaw(agent, sure=False, deadline_s=THAW_DEADLINE_S, clock=Clock()) == Thawed(Thaw.DONE, 2)


# the Thawer and the limit


def test_thawer_is_notified_before_the_guest_freezes(recorder: Recorder) -> None:
    thawer, agent = FakeThawer(), FakeAgent()
    agent.on_freeze = lambda: thawer.told.append("frozen")
    moment(agent, recorder, thawer=thawer)
    assert thawer.told == ["freezing", "frozen", "thawed"]


@pytest.mark.parametrize("agent", [FakeAgent(), FakeAgent(ping=NO_ANSWER)], ids=["thawer not ready", "no answer"])
def test_thawer_is_not_notified_if_nothing_is_frozen(recorder: Recorder, agent: FakeAgent) -> None:
    thawer = FakeThawer(reason="it is not ready")
    made, _ = moment(agent, recorder, thawer=thawer)
    assert FREEZE not in agent.asked
    assert thawer.told == []
    assert made == Freeze(Consistency.CRASH, 0)
    assert len(recorder.warnings) == 1


def test_nothing_is_frozen_without_a_guard(recorder: Recorder) -> None:
    thawer = FakeThawer(reason="the watchdog is not ready")
    with pytest.raises(QuiesceError, match="the watchdog is not ready"):
        moment(FakeAgent(), recorder, Quiesce.REQUIRED, thawer=thawer)
    moment(FakeAgent(), recorder, thawer=thawer)
    assert "the watchdog is not ready" in recorder.warnings[0]


def slow(agent: FakeAgent, clock: Clock, freeze_s: float) -> FakeAgent:
    def pass_time() -> None:
        clock.now += freeze_s

    agent.on_freeze = pass_time
    return agent


@pytest.mark.parametrize(
    ("freeze_s", "transaction_s", "thawed", "said"),
    [
        (20, 0, 2, "took all of the 20 s"),
        (20, 0, 0, "took all of the 20 s"),
        (0, 20, 0, "20 s of --freeze-limit expired"),
        (0, 20, NO_ANSWER, "20 s of --freeze-limit expired"),
        (10, 10, 0, "20 s of --freeze-limit expired"),
    ],
)
def test_limit_that_is_over_makes_the_backup_crash_consistent_or_fail(
    freeze_s: int, transaction_s: int, thawed: Any, said: str
) -> None:
    for quiesce in (Quiesce.AUTO, Quiesce.REQUIRED):
        recorder, clock = Recorder(), Clock()
        agent = slow(FakeAgent(thaw=thawed), clock, freeze_s)
        ways = {"thawer": FakeThawer(limit_s=20), "clock": clock, "transaction_s": transaction_s}
        if quiesce is Quiesce.AUTO:
            made, _ = moment(agent, recorder, quiesce, **ways)  # type: ignore[arg-type]
            assert made.consistency is Consistency.CRASH
            assert made.frozen_ms > 20_000
            assert said in recorder.warnings[-1]
        else:
            with pytest.raises(QuiesceError, match=said):
                moment(agent, recorder, quiesce, **ways)  # type: ignore[arg-type]
        assert THAW in agent.asked


def test_late_thaw_that_still_finds_all_frozen_is_consistent(recorder: Recorder) -> None:
    """The watchdog had not yet thawed."""
    made, _ = moment(FakeAgent(), recorder, transaction_s=20)
    assert made.consistency is Consistency.FILESYSTEM
    assert recorder.warnings == []


def test_agent_has_as_long_to_freeze_as_the_limit(recorder: Recorder) -> None:
    given: dict[str, int] = {}

    class Agent(FakeAgent):
        def agent(self, command: str, *, timeout_s: int) -> Any:
            given[command] = timeout_s
            return super().agent(command, timeout_s=timeout_s)

    moment(Agent(), recorder, thawer=FakeThawer(limit_s=77))
    assert given[FREEZE] == 77


def test_required_freeze_that_ended_by_itself_fails_the_backup(recorder: Recorder) -> None:
    with pytest.raises(QuiesceError, match="thawed its filesystems by itself"):
        moment(FakeAgent(thaw=0), recorder, Quiesce.REQUIRED)


def test_limit_is_kept_with_a_blind_thawer(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block hangs, as a transaction can; a timer in this process thaws."""
    monkeypatch.undo()  # real events: a timer needs them
    thawer, agent, thawed = FakeThawer(limit_s=1), FakeAgent(thaw=[2, 0]), threading.Event()
    thawer.is_blind = True
    really = agent.agent

    def noticed(command: str, *, timeout_s: int) -> Any:
        answer = really(command, timeout_s=timeout_s)
        if command == THAW:
            thawed.set()
        return answer

    monkeypatch.setattr(agent, "agent", noticed)
    with frozen(agent, Quiesce.AUTO, thawer=thawer, reporter=recorder) as made:
        assert agent.is_frozen
        assert thawed.wait(30)
        assert not agent.is_frozen
    assert made.consistency is Consistency.CRASH
    assert "1 s of --freeze-limit expired" in recorder.warnings[-1]


# the domain ends


@pytest.mark.parametrize("when", ["ping", "freeze"])
@pytest.mark.parametrize("quiesce", [Quiesce.AUTO, Quiesce.REQUIRED])
def test_end_of_the_domain_is_raised_as_such(recorder: Recorder, when: str, quiesce: Quiesce) -> None:
    agent = FakeAgent(**{when: DomainGoneError("web"), "thaw": DomainGoneError("web")})
    with pytest.raises(DomainGoneError):
        moment(agent, recorder, quiesce)
    assert recorder.warnings == []


def test_end_of_the_domain_needs_no_thaw(recorder: Recorder) -> None:
    agent = FakeAgent(thaw=DomainGoneError("web"))
    moment(agent, recorder)
    assert agent.asked.count(THAW) == 1
    assert recorder.warnings == []


# somebody else has frozen the guest

DISABLED = QmpError(
    FREEZE, "GenericError", "Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state"
)


@pytest.mark.parametrize("quiesce", [Quiesce.AUTO, Quiesce.REQUIRED])
def test_guest_that_somebody_else_froze_is_neither_frozen_nor_thawed(recorder: Recorder, quiesce: Quiesce) -> None:
    agent, thawer = FakeAgent(status="frozen"), FakeThawer()
    made, _ = moment(agent, recorder, quiesce, thawer=thawer)
    assert agent.asked == [PING, STATUS, STATUS]
    assert thawer.told == []
    assert made == Freeze(Consistency.FILESYSTEM, 0)
    [warning] = recorder.warnings
    assert "Another program had frozen" in warning
    assert "virsh domfsthaw" in warning


@pytest.mark.parametrize("after", ["thawed", NO_ANSWER], ids=["thawed", "no answer"])
def test_freeze_of_somebody_else_counts_only_if_it_lasts(recorder: Recorder, after: Any) -> None:
    made, _ = moment(FakeAgent(status=["frozen", after]), recorder)
    assert made == Freeze(Consistency.CRASH, 0)
    assert "another program had frozen them" in recorder.warnings[-1]
    with pytest.raises(QuiesceError, match="another program had frozen them"):
        moment(FakeAgent(status=["frozen", after]), recorder, Quiesce.REQUIRED)


@pytest.mark.parametrize("consistency", [Consistency.FILESYSTEM, Consistency.CRASH], ids=lambda value: value.value)
def test_freeze_of_somebody_else_between_the_look_and_the_freeze_is_theirs(
    recorder: Recorder, consistency: Consistency
) -> None:
    """The agent disables the command while the guest is frozen, so ours did nothing, and nobody thaws for us."""
    after = "frozen" if consistency is Consistency.FILESYSTEM else "thawed"
    agent, thawer = FakeAgent(status=["thawed", "frozen", after], freeze=DISABLED), FakeThawer()
    made, _ = moment(agent, recorder, thawer=thawer)
    assert agent.asked == [PING, STATUS, FREEZE, STATUS, STATUS]
    assert thawer.told == ["freezing", "thawed"]
    assert made == Freeze(consistency, 0)
    assert len(recorder.warnings) == 1


def test_freeze_that_the_owner_of_the_agent_has_disabled_is_no_freeze_of_somebody_else(recorder: Recorder) -> None:
    made, _ = moment(
        FakeAgent(freeze=QmpError(FREEZE, "GenericError", "Command x has been disabled"), thaw=0), recorder
    )
    assert made == Freeze(Consistency.CRASH, 0)
    assert ["could not freeze" in warning for warning in recorder.warnings] == [True]


def test_agent_that_does_not_tell_its_state_is_asked_to_freeze(recorder: Recorder) -> None:
    agent = FakeAgent(status=QmpError(STATUS, "CommandNotFound", "disabled"))
    made, _ = moment(agent, recorder)
    assert agent.asked == [PING, STATUS, FREEZE, THAW]
    assert made.consistency is Consistency.FILESYSTEM


def test_what_a_dead_vbackup_left_frozen_is_thawed_and_frozen_again(recorder: Recorder) -> None:
    agent, thawer = FakeAgent(status=["frozen"]), FakeThawer()
    thawer.is_left_frozen = True
    made, at_the_moment = moment(agent, recorder, thawer=thawer)
    assert agent.asked == [PING, STATUS, STATUS, THAW, FREEZE, THAW]
    assert (made.consistency, at_the_moment) == (Consistency.FILESYSTEM, True)
    assert "An interrupted backup had left" in recorder.warnings[0]


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("frozen", "An interrupted backup had frozen the guest's filesystems before; .* and still are"),
        ("thawed", "an interrupted backup had frozen them, and they were thawed before"),
        (NO_ANSWER, "an interrupted backup had frozen them, and nobody can tell"),
    ],
    ids=["frozen", "thawed", "silent"],
)
def test_freeze_of_a_dead_vbackup_that_is_not_thawed_is_no_other_program_s(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, after: Any, said: str
) -> None:
    monkeypatch.setattr("vbackup.domain.freeze.THAW_DEADLINE_S", 0.05)
    thawer = FakeThawer()
    thawer.is_left_frozen = True
    agent = FakeAgent(status=["frozen", "frozen", after], thaw=NO_ANSWER)
    moment(agent, recorder, thawer=thawer)
    assert "did not answer the thaw" in recorder.warnings[0]
    assert re.search(said, recorder.warnings[-1])
    assert not any("nother program" in warning for warning in recorder.warnings)
    assert FREEZE not in agent.asked


def test_guest_that_the_thawer_has_thawed_is_not_thawed_again(recorder: Recorder) -> None:
    """This process hung; meanwhile somebody else may have frozen the guest."""
    agent, thawer = FakeAgent(), FakeThawer(limit_s=20)
    thawer.did_thaw = True
    made, _ = moment(agent, recorder, thawer=thawer, transaction_s=20)
    assert agent.asked == [PING, STATUS, FREEZE]
    assert made.consistency is Consistency.CRASH
    assert made.frozen_ms > 20_000
    assert "20 s of --freeze-limit expired" in recorder.warnings[-1]


@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "theirs"])
def test_leftover_is_thawed_only_if_a_vbackup_froze_it(recorder: Recorder, is_ours: bool) -> None:
    agent = FakeAgent(status="frozen")
    assert thaw_leftover(agent, recorder, is_ours=is_ours)
    assert (THAW in agent.asked) == is_ours
    assert ["they are thawed now" in warning for warning in recorder.warnings] == [is_ours]


def test_leftover_that_cannot_be_thawed_is_told(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbackup.domain.freeze.THAW_DEADLINE_S", 0.05)
    assert not thaw_leftover(FakeAgent(status="frozen", thaw=NO_ANSWER), recorder, is_ours=True)
    assert not thaw_leftover(FakeAgent(status=NO_ANSWER), recorder, is_ours=True)
    assert len(recorder.warnings) == 2
