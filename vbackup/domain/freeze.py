"""Freeze the guest's filesystems around the moment of a backup, through the guest agent.

A guest must never stay frozen: the thaw is registered before the freeze is sent, and it is retried until the
agent answers or the thaw's own deadline expires. The Thawer (vbackup.domain.watchdog) thaws when this process cannot,
or takes longer than the limit.
Who freezes owns the thaw: a guest that somebody else has frozen is neither frozen nor thawed here.
Commands: guest-ping, guest-fsfreeze-freeze, guest-fsfreeze-thaw, guest-fsfreeze-status (qga/qapi-schema.json).
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
from vbackup.model import MAX_FREEZE_LIMIT_S, MIN_FREEZE_LIMIT_S, Consistency, Quiesce
from vbackup.report import Reporter

#: How long a guest may be frozen, counted from the freeze command: the default and the accepted range.
DEFAULT_LIMIT_S, MIN_LIMIT_S, MAX_LIMIT_S = 10, MIN_FREEZE_LIMIT_S, MAX_FREEZE_LIMIT_S
#: How long the agent may take to answer a ping or a status query.
PING_S = 5
#: How long the agent may take to answer one thaw, and how long the thaw is retried.
THAW_S = 10
THAW_DEADLINE_S = 30.0
#: Pause between two attempts: libvirt may report at once that the agent is not connected.
TRY_AGAIN_S = 0.5


class Agent(Protocol):
    """A channel to the guest agent; the passthrough monitor is one."""

    def agent(self, command: str, *, timeout_s: int) -> Any:
        """Send a guest agent command and return the "return" member of its reply.

        Raises QmpError if the agent answers with an error, another VbackupError if no answer comes within
        ``timeout_s`` seconds, DomainGoneError if the domain ended.
        """


class Thawer(Protocol):
    """Thaws the guest if this process does not do so within the limit (vbackup.domain.watchdog.Watchdog)."""

    @property
    def limit_s(self) -> int:
        """How long the guest may be frozen, in seconds."""

    @property
    def is_blind(self) -> bool:
        """True if it cannot reach the guest before this process ends; this process then enforces the limit."""

    def reason_not_to_freeze(self) -> str | None:
        """Return why it could not thaw the guest, or None if it is ready and it is this vbackup's turn to freeze."""

    def may_be_left_frozen(self) -> bool:
        """Return True if a vbackup that is dead may have left the guest frozen. Call before ``freezing``."""

    def freezing(self) -> None:
        """Note that the guest may be frozen from now on. Call before the freeze is sent."""

    def thawed(self) -> None:
        """Note that the guest is no longer frozen. Call once that is certain."""

    def has_thawed(self) -> bool:
        """Return True if it has thawed the guest itself; whoever may have frozen it since is somebody else."""


#: Makes a command of virsh about the domain, such as "domfsthaw", for people.
Virsh = Callable[[str], str]


def _of_no_domain(word: str) -> str:
    return f"virsh {word}"


@dataclass
class Freeze:
    """The result of a freeze; complete once the block of ``frozen`` is left."""

    consistency: Consistency = Consistency.CRASH
    frozen_ms: int = 0  #: from the freeze command to the answer to the thaw; 0 if nothing was frozen
    begun: float | None = None  #: time of the freeze command on ``clock``; None if vbackup has not frozen the guest


class Thaw(Enum):
    """How a thaw ended."""

    DONE = "done"  #: the agent thawed, at this or an earlier attempt
    NOTHING_FROZEN = "nothing frozen"  #: the agent reports that nothing was frozen
    REFUSED = "refused"  #: the agent answered with an error, but reports that nothing is frozen
    GONE = "gone"  #: the domain ended
    NO_ANSWER = "no answer"  #: the deadline expired; the guest may still be frozen


@dataclass(frozen=True)
class Thawed:
    """The result of a thaw."""

    how: Thaw
    count: int = 0  #: thawed filesystems, as counted by the agent
    error: str = ""  #: of an agent that refused or did not answer, without the full stop


@contextmanager
def frozen(
    agent: Agent,
    quiesce: Quiesce,
    *,
    thawer: Thawer | None,
    reporter: Reporter,
    virsh: Virsh = _of_no_domain,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Freeze]:
    """Freeze the guest's filesystems, run the block, thaw them. Yields the result, complete after the block.

    ``thawer`` is None if libvirt reports no connected agent; ``virsh`` makes the commands that messages name. If the
    freeze fails, or does not last until the end of the block, ``Quiesce.AUTO`` reports it and the backup is
    crash-consistent, and ``Quiesce.REQUIRED`` raises QuiesceError: fix the agent, or do without. A guest that somebody
    else has frozen counts as frozen if it is so before and after the block, and stays frozen. Raises DomainGoneError if
    the domain ends.
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
    who = _who_froze(agent, thawer, reporter, virsh)
    if who is not None:
        yield freeze
        _look_after(who, agent, quiesce, freeze=freeze, reporter=reporter, virsh=virsh)
        return
    attempt = _Attempt(agent, thawer, reporter, clock, virsh)
    try:
        reason = attempt.freeze()
        if reason is not None and not attempt.was_too_late:
            _do_without(quiesce, reason, reporter)
        freeze.begun = attempt.begun if reason is None else None
        yield freeze
    finally:
        attempt.thaw()
        freeze.frozen_ms = attempt.frozen_ms
    if attempt.was_too_late:
        _look_after(_ANOTHER, agent, quiesce, freeze=freeze, reporter=reporter, virsh=virsh)
        return
    if reason is not None:
        return
    reason = attempt.reason_not_to_trust()
    if reason is not None:
        _do_without(quiesce, reason, reporter)
        return
    freeze.consistency = Consistency.FILESYSTEM


def without_freeze(quiesce: Quiesce, reporter: Reporter, *, halted: str, virsh: Virsh = _of_no_domain) -> Freeze:
    """Report that the guest does not run, and is not asked to freeze; ``halted`` completes "the domain is ...".

    Raises QuiesceError if freezing is required: let the domain run, or do without.
    """
    if quiesce is Quiesce.REQUIRED:
        raise QuiesceError(
            f"The guest's filesystems cannot be frozen: the domain is {halted}, so its guest agent cannot answer. Let"
            f" it run ('{virsh('resume')}'), or use --quiesce auto for a crash-consistent backup."
        )
    reporter.warning(
        f"The domain is {halted}, so its guest agent cannot freeze the filesystems: the backup is crash-consistent."
    )
    return Freeze()


class _Attempt:
    """One freeze and its thaw."""

    def __init__(
        self, agent: Agent, thawer: Thawer, reporter: Reporter, clock: Callable[[], float], virsh: Virsh
    ) -> None:
        self._virsh = virsh
        self._agent, self._thawer, self._reporter, self._clock = agent, thawer, reporter, clock
        self.begun = clock()  #: when the freeze command is sent
        self._answered = False
        self._refused = False
        self._was_thawed_blindly = False
        self.was_too_late = False  #: somebody else froze between the look and the freeze, which did nothing
        self._count = 0
        self._late = False
        self._thaw: Thawed | None = None
        self._timer = threading.Timer(thawer.limit_s, self._thaw_blindly) if thawer.is_blind else None
        self.frozen_ms = 0

    def freeze(self) -> str | None:
        """Freeze; return why filesystems are not, or may not be, frozen. Raises DomainGoneError."""
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
            self._look_for_another(err)
            return f"the guest agent could not freeze the filesystems: {err}"
        self._answered = True
        if not self._count:
            return "the guest agent found no filesystem to freeze"
        if self._is_over():
            return f"the guest agent took all of the {limit_s} s that --freeze-limit allows"
        return None

    def _look_for_another(self, err: VbackupError) -> None:
        """Find out whether the agent froze nothing because somebody else had frozen the guest since it was asked."""
        if isinstance(err, QmpError) and err.description.is_of_disabled_command:
            with contextlib.suppress(VbackupError):
                self.was_too_late = _is_frozen(self._agent)
        if self.was_too_late:  # whoever would thaw for this process must not
            if self._timer is not None:
                self._timer.cancel()
            self._thawer.thawed()

    def thaw(self) -> None:
        """Thaw, and report whatever the administrator should know about it."""
        self._late = self._is_over()
        if self._timer is not None:
            self._timer.cancel()
        if self.was_too_late:
            return
        if self._late and self._answered and (self._was_thawed_blindly or self._thawer.has_thawed()):
            self._thawer.thawed()
            self._thaw = Thawed(Thaw.NOTHING_FROZEN)
            self.frozen_ms = max(1, round((self._clock() - self.begun) * 1000))
            return
        thawed = self._thaw = thaw(self._agent, sure=self._answered, deadline_s=THAW_DEADLINE_S, clock=self._clock)
        if thawed.how is Thaw.NO_ANSWER:
            self._reporter.warning(
                f"The guest agent did not answer the thaw within {THAW_DEADLINE_S:.0f} s; the guest may still be"
                " frozen. A watchdog process keeps trying for some minutes; or run"
                f" '{self._virsh('domfsthaw')}' until it answers ({thawed.error})."
            )
        else:
            self._thawer.thawed()
        if (
            thawed.how is Thaw.REFUSED and not self._refused
        ):  # an agent that refused the freeze refuses the thaw as well
            self._reporter.warning(f"The guest agent could not thaw the filesystems: {thawed.error}.")
        if self._refused and thawed.count:
            self._reporter.warning(
                f"The guest agent froze {thawed.count} filesystem(s) before it failed; they are thawed again."
            )
        if self._count or thawed.count or not self._answered:  # without an answer it may have frozen them
            self.frozen_ms = max(1, round((self._clock() - self.begun) * 1000))

    def reason_not_to_trust(self) -> str | None:
        """Return why the filesystems may have thawed before the end of the block, or None if they were frozen."""
        thawed = self._thaw
        assert thawed is not None
        if thawed.count:
            return None
        if self._late:  # the Thawer may have thawed at any time since
            return f"the {self._thawer.limit_s} s of --freeze-limit expired before QEMU had started the backup"
        if thawed.how is Thaw.NOTHING_FROZEN:
            return "the guest thawed its filesystems by itself before the backup started"
        if thawed.how is Thaw.REFUSED:  # "fsfreeze is limited up to 10 seconds": Windows has thawed by then
            return f"the guest agent did not keep the filesystems frozen: {thawed.error}"
        return None

    def _is_over(self) -> bool:
        return self._clock() - self.begun >= self._thawer.limit_s

    def _thaw_blindly(self) -> None:
        with contextlib.suppress(VbackupError):  # the thaw at the end of the block reports errors
            self._agent.agent("guest-fsfreeze-thaw", timeout_s=THAW_S)
            self._was_thawed_blindly = True


def thaw_leftover(agent: Agent, reporter: Reporter, *, is_ours: bool, virsh: Virsh = _of_no_domain) -> bool:
    """Thaw what a killed run may have left frozen; return False if the guest may still be frozen by it.

    ``is_ours`` is False if the killed run cannot have frozen what is frozen now: that is reported, and stays. If the
    agent does not answer, that is reported and nothing else is tried. Raises DomainGoneError.
    """
    try:
        if not _is_frozen(agent):
            return True
    except DomainGoneError:
        raise
    except VbackupError as err:
        reporter.warning(f"Cannot tell whether the guest's filesystems are frozen: {err}")
        return False
    if not is_ours:
        reporter.warning(
            f"The guest's filesystems are frozen, but not by vbackup, which leaves them so. {_how_to_thaw(virsh)}"
        )
        return True
    if thaw(agent, sure=True, deadline_s=THAW_DEADLINE_S).how is Thaw.NO_ANSWER:
        reporter.warning(
            f"The guest agent did not answer the thaw; the guest may still be frozen. {_how_to_thaw(virsh)}"
        )
        return False
    reporter.warning("An interrupted backup had left the guest's filesystems frozen; they are thawed now.")
    return True


def _how_to_thaw(virsh: Virsh) -> str:
    return f"If nothing else is at work on this guest, '{virsh('domfsthaw')}' thaws them."


def _is_frozen(agent: Agent) -> bool:
    """Return what the agent says; False if it does not tell its state. Raises a VbackupError if it does not answer."""
    try:
        return bool(agent.agent("guest-fsfreeze-status", timeout_s=PING_S) == "frozen")
    except QmpError:
        return False  # as configured in the guest (block-rpcs)


#: Who has frozen a guest that this process finds frozen.
_ANOTHER, _DEAD_RUN = "another program", "an interrupted backup"


def _who_froze(agent: Agent, thawer: Thawer, reporter: Reporter, virsh: Virsh) -> str | None:
    """Return who has frozen the guest, or None if it is not frozen; what a dead vbackup left frozen is thawed."""
    try:
        if not _is_frozen(agent):
            return None
    except DomainGoneError:
        raise
    except VbackupError:
        return None  # it has just answered a ping; the freeze will tell
    if not thawer.may_be_left_frozen():
        return _ANOTHER
    return None if thaw_leftover(agent, reporter, is_ours=True, virsh=virsh) else _DEAD_RUN


def _look_after(who: str, agent: Agent, quiesce: Quiesce, *, freeze: Freeze, reporter: Reporter, virsh: Virsh) -> None:
    """Look whether the guest that was frozen before the moment still is: ``who`` had frozen it, and did not wait."""
    try:
        is_frozen = _is_frozen(agent)
        reason = f"{who} had frozen them, and they were thawed before QEMU had started the backup"
    except DomainGoneError:
        raise
    except VbackupError as err:
        is_frozen, reason = False, f"{who} had frozen them, and nobody can tell whether they stayed so: {err}"
    if not is_frozen:
        _do_without(quiesce, reason, reporter)
        return
    freeze.consistency = Consistency.FILESYSTEM
    after = "vbackup leaves them so" if who == _ANOTHER else "still are"
    reporter.warning(
        f"{who.capitalize()} had frozen the guest's filesystems before; they were frozen at the moment of the backup,"
        f" and {after}. {_how_to_thaw(virsh)}"
    )


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
            f"The guest's filesystems cannot be frozen: {reason.rstrip('.')}. Check qemu-guest-agent in the guest, or"
            " use --quiesce auto for a crash-consistent backup."
        )
    report = reporter.step if quiet else reporter.warning
    report(f"Filesystems are not frozen, the backup is crash-consistent: {reason.rstrip('.')}.")


def thaw(agent: Agent, *, sure: bool, deadline_s: float, clock: Callable[[], float] = time.monotonic) -> Thawed:
    """Thaw, retrying until the agent answers or ``deadline_s`` seconds have passed. Never raises a VbackupError.

    ``sure`` is True if the freeze was answered. Otherwise the agent may freeze late, so its status is queried after
    the thaw, and the thaw is retried while anything is frozen.
    """
    deadline = clock() + deadline_s
    pause = threading.Event()
    first = True
    while True:
        try:
            thawed = _thaw_once(agent, first=first)
            if (sure and thawed.how is not Thaw.REFUSED) or _is_thawed(agent):
                return thawed
            error = thawed.error or "it reports that filesystems are still frozen"
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
    # An earlier attempt may have thawed, and its answer was lost.
    return Thawed(Thaw.DONE if count or not first else Thaw.NOTHING_FROZEN, count)


def _is_thawed(agent: Agent) -> bool:
    try:
        return bool(agent.agent("guest-fsfreeze-status", timeout_s=PING_S) == "thawed")
    except QmpError:
        return True  # an agent that refuses guest-fsfreeze-status has not just frozen anything
