"""Freeze the guest's filesystems around the moment of a backup, through its agent.

A guest must never stay frozen: the thaw is registered before the freeze is sent, and it is tried
again until it answers or its own deadline is over. The thawer (vbackup.domain.watchdog) thaws
when this process cannot, or takes longer than the limit.
Commands: guest-ping, guest-fsfreeze-freeze, guest-fsfreeze-thaw, guest-fsfreeze-status of the QEMU guest
agent's QAPI.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from vbackup.errors import DomainGoneError, QmpError, QuiesceError, VbackupError
from vbackup.model import Consistency, Quiesce
from vbackup.report import Reporter

#: How long a guest may be frozen, counted from the command to freeze: the default, and what can be asked for.
DEFAULT_LIMIT_S, MIN_LIMIT_S, MAX_LIMIT_S = 10, 1, 600
PING_S = 5
THAW_S = 10
THAW_DEADLINE_S = 30.0
#: Between two tries; the agent may answer at once that it is not connected.
TRY_AGAIN_S = 0.5


class Agent(Protocol):
    """What answers guest agent commands; the passthrough monitor does."""

    def agent(self, command: str, *, timeout_s: int) -> Any:
        """Send a command, return its "return"; an error where no answer comes in time."""


class Thawer(Protocol):
    """What thaws when this process cannot, or does not within the limit."""

    @property
    def limit_s(self) -> int:
        """How long the guest may be frozen."""

    @property
    def is_blind(self) -> bool:
        """True if it cannot reach the guest before this process has ended; the limit is then ours to keep."""

    def reason_not_to_freeze(self) -> str | None:
        """Why it cannot thawer; None if it is ready."""

    def freezing(self) -> None:
        """Call before the freeze is sent: from now on the guest may be frozen."""

    def thawed(self) -> None:
        """Call when the guest is known not to be frozen any more."""


@dataclass
class Freeze:
    """How it went; complete once the block is left."""

    consistency: Consistency = Consistency.CRASH
    frozen_ms: int = 0


class Thaw(Enum):
    """How a thaw ended."""

    DONE = "done"  #: the agent has thawed, at this or at an earlier try
    NOTHING_FROZEN = "nothing frozen"  #: the agent says that there was nothing to thaw
    REFUSED = "refused"  #: an error of the agent's, but nothing is frozen any more, as far as it says
    GONE = "gone"  #: the domain has ended, and nothing is frozen
    NO_ANSWER = "no answer"  #: the deadline is over; the guest may be frozen


@dataclass(frozen=True)
class Thawed:
    """How a thaw ended, how many filesystems the agent counted, and what it said where it failed."""

    how: Thaw
    count: int = 0
    error: str = ""


@contextmanager
def frozen(
    agent: Agent,
    quiesce: Quiesce,
    *,
    thawer: Thawer | None,
    reporter: Reporter,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Freeze]:
    """Freeze, run the block, thaw.

    ``thawer`` is None where libvirt says that no agent is connected. Raises QuiesceError where freezing is
    required and does not work, or does not last until the block is left; with ``auto`` it is reported and the
    backup is crash-consistent.
    """
    freeze = Freeze()
    if quiesce is Quiesce.NO:
        yield freeze
        return
    reason = "no guest agent is connected" if thawer is None else _reason_not_to_freeze(agent, thawer)
    if thawer is None or reason is not None:
        _do_without(quiesce, reason or "", reporter, quiet=thawer is None)
        yield freeze
        return
    attempt = _Attempt(agent, thawer, reporter, clock)
    try:
        reason = attempt.freeze()
        if reason is not None:
            _do_without(quiesce, reason, reporter)
        yield freeze
    finally:
        attempt.thaw()
        freeze.frozen_ms = attempt.frozen_ms
    if reason is not None:
        return
    reason = attempt.reason_not_to_trust()
    if reason is not None:
        _do_without(quiesce, reason, reporter)
        return
    freeze.consistency = Consistency.FILESYSTEM


class _Attempt:
    """One freeze, and the thaw that belongs to it."""

    def __init__(self, agent: Agent, thawer: Thawer, reporter: Reporter, clock: Callable[[], float]) -> None:
        self._agent, self._thawer, self._reporter, self._clock = agent, thawer, reporter, clock
        self._begun = clock()
        self._answered = False
        self._refused = False
        self._count = 0
        self._late = False
        self._thaw: Thawed | None = None
        self._timer = threading.Timer(thawer.limit_s, self._thaw_blindly) if thawer.is_blind else None
        self.frozen_ms = 0

    def freeze(self) -> str | None:
        """Returns why filesystems are not (or not surely) frozen. Raises DomainGoneError."""
        limit_s = self._thawer.limit_s
        self._thawer.freezing()
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        try:
            self._count = self._agent.agent("guest-fsfreeze-freeze", timeout_s=limit_s)
        except DomainGoneError:
            raise
        except VbackupError as err:
            self._answered = self._refused = isinstance(err, QmpError)
            return f"the guest agent could not freeze the filesystems: {err}"
        self._answered = True
        if not self._count:
            return "the guest agent found no filesystem to freeze"
        if self._is_over():
            return f"the guest agent needed all of the {limit_s} s that --freeze-limit gives it"
        return None

    def thaw(self) -> None:
        """Thaw, and report what the administrator has to know of it."""
        self._late = self._is_over()
        if self._timer is not None:
            self._timer.cancel()
        done = self._thaw = thaw(self._agent, sure=self._answered, deadline_s=THAW_DEADLINE_S, clock=self._clock)
        if done.how is Thaw.NO_ANSWER:
            self._reporter.warning(
                f"The guest agent did not answer the thaw within {THAW_DEADLINE_S:.0f} s; the guest may be frozen."
                f" A watchdog process goes on trying for some minutes; or run 'virsh domfsthaw' until it answers"
                f" ({done.error})."
            )
        else:
            self._thawer.thawed()
        if done.how is Thaw.REFUSED and not self._refused:  # an agent that refuses the one refuses the other
            self._reporter.warning(f"The guest agent could not thaw the filesystems: {done.error}.")
        if self._refused and done.count:
            self._reporter.warning(
                f"The guest agent had frozen {done.count} filesystems before it failed; they are thawed again."
            )
        if self._count or done.count or not self._answered:  # whoever does not answer may have done it
            self.frozen_ms = max(1, round((self._clock() - self._begun) * 1000))

    def reason_not_to_trust(self) -> str | None:
        """Why filesystems that were frozen may not have been so any more when the block was left; None if they were."""
        done = self._thaw
        assert done is not None
        if done.count:
            return None
        if self._late:  # the thawer may have thawed at any time since
            return f"the {self._thawer.limit_s} s of --freeze-limit were over before QEMU had taken the backup's moment"
        if done.how is Thaw.NOTHING_FROZEN:
            return "the guest thawed its filesystems by itself before it was told to"
        if done.how is Thaw.REFUSED:  # "fsfreeze is limited up to 10 seconds" from Windows, which has thawed by then
            return f"the guest agent did not keep the filesystems frozen: {done.error}"
        return None

    def _is_over(self) -> bool:
        return self._clock() - self._begun >= self._thawer.limit_s

    def _thaw_blindly(self) -> None:
        with contextlib.suppress(VbackupError):  # the thaw that follows tells
            self._agent.agent("guest-fsfreeze-thaw", timeout_s=THAW_S)


def thaw_leftover(agent: Agent, reporter: Reporter, clock: Callable[[], float] = time.monotonic) -> bool:
    """Thaw what a run that has died may have left frozen; true if the agent says that it was.

    An agent that does not answer is told of, and left alone.
    """
    try:
        if agent.agent("guest-fsfreeze-status", timeout_s=PING_S) != "frozen":
            return False
    except DomainGoneError:
        raise
    except VbackupError as err:
        reporter.warning(f"It is not known whether the guest's filesystems are frozen: {err}")
        return False
    return thaw(agent, sure=True, deadline_s=THAW_DEADLINE_S, clock=clock).how is Thaw.DONE


def _reason_not_to_freeze(agent: Agent, thawer: Thawer) -> str | None:
    try:
        agent.agent("guest-ping", timeout_s=PING_S)
    except DomainGoneError:
        raise
    except VbackupError as err:
        return f"the guest agent does not answer: {err}"
    return thawer.reason_not_to_freeze()


def _do_without(quiesce: Quiesce, reason: str, reporter: Reporter, *, quiet: bool = False) -> None:
    if quiesce is Quiesce.REQUIRED:
        raise QuiesceError(
            f"The guest's filesystems cannot be frozen: {reason.rstrip('.')}. See to the qemu-guest-agent in the guest,"
            " or use --quiesce auto for a crash-consistent backup."
        )
    tell = reporter.step if quiet else reporter.warning
    tell(f"Filesystems are not frozen, the backup is crash-consistent: {reason.rstrip('.')}.")


def thaw(agent: Agent, *, sure: bool, deadline_s: float, clock: Callable[[], float] = time.monotonic) -> Thawed:
    """Thaw, again and again until the agent answers or ``deadline_s`` is over; never raises a VbackupError.

    ``sure`` is False where the answer to the freeze did not come: an agent may freeze late, so it is asked after
    the thaw how things are.
    """
    deadline = clock() + deadline_s
    pause = threading.Event()
    first = True
    while True:
        try:
            done = _thaw_once(agent, first=first)
            if (sure and done.how is not Thaw.REFUSED) or _is_thawed(agent):
                return done
            error = done.error or "it says that filesystems are still frozen"
        except DomainGoneError:
            return Thawed(Thaw.GONE)
        except VbackupError as err:
            error = str(err).rstrip(".")
        first = False
        if clock() >= deadline:
            return Thawed(Thaw.NO_ANSWER, error=error)
        pause.wait(TRY_AGAIN_S)


def _thaw_once(agent: Agent, *, first: bool) -> Thawed:
    try:
        count: int = agent.agent("guest-fsfreeze-thaw", timeout_s=THAW_S)
    except QmpError as err:
        return Thawed(Thaw.REFUSED, error=str(err).rstrip("."))
    # An earlier try may have thawed and lost its answer.
    return Thawed(Thaw.DONE if count or not first else Thaw.NOTHING_FROZEN, count)


def _is_thawed(agent: Agent) -> bool:
    try:
        return bool(agent.agent("guest-fsfreeze-status", timeout_s=PING_S) == "thawed")
    except QmpError:
        return True  # an agent that refuses to tell is not the one that has just frozen
