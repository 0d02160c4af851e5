"""Freeze the guest's filesystems around the moment of a backup, through its agent.

A guest must never stay frozen: the thaw is registered before the freeze is sent, and it is tried
again until it answers or its own deadline is over.
Commands: guest-ping, guest-fsfreeze-freeze, guest-fsfreeze-thaw of the QEMU guest agent's QAPI.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from vbackup.errors import DomainGoneError, QmpError, QuiesceError, VbackupError
from vbackup.model import Consistency, Quiesce
from vbackup.report import Reporter

PING_S = 5
FREEZE_S = 10
THAW_S = 10
THAW_DEADLINE_S = 30.0


class Agent(Protocol):
    """What answers guest agent commands; the passthrough monitor does."""

    def agent(self, command: str, *, timeout_s: int) -> Any:
        """Send a command, return its "return"; an error where no answer comes in time."""


@dataclass
class Freeze:
    """How it went; complete once the block is left."""

    consistency: Consistency = Consistency.CRASH
    frozen_ms: int = 0


@contextmanager
def frozen(
    agent: Agent, quiesce: Quiesce, *, connected: bool, reporter: Reporter, clock: Callable[[], float] = time.monotonic
) -> Iterator[Freeze]:
    """Freeze, run the block, thaw.

    ``connected`` is what libvirt says of the agent's channel. Raises QuiesceError where freezing is
    required and does not work; with ``auto`` it is reported and the backup is crash-consistent.
    """
    freeze = Freeze()
    if quiesce is Quiesce.NO:
        yield freeze
        return
    reason = _reason_not_to_freeze(agent, connected=connected)
    if reason is not None:
        _do_without(quiesce, reason, reporter, quiet=not connected)
        yield freeze
        return
    begun = clock()
    refused = frozen_once = False
    try:
        try:
            count = agent.agent("guest-fsfreeze-freeze", timeout_s=FREEZE_S)
            frozen_once = bool(count)
            if count:
                freeze.consistency = Consistency.FILESYSTEM
            else:
                _do_without(quiesce, "the guest agent found no filesystem to freeze", reporter)
        except DomainGoneError:
            raise
        except VbackupError as err:
            refused = isinstance(err, QmpError)
            frozen_once = not refused  # whoever does not answer may have done it
            _do_without(quiesce, f"the guest agent could not freeze the filesystems: {err}", reporter)
        yield freeze
    finally:
        if not _thaw(agent, reporter, clock, refused=refused) and freeze.consistency is Consistency.FILESYSTEM:
            freeze.consistency = Consistency.CRASH
            reporter.warning(
                "The guest thawed its filesystems by itself before it was told to; the backup is crash-consistent."
            )
        if frozen_once:
            freeze.frozen_ms = max(1, round((clock() - begun) * 1000))


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
    return _thaw(agent, reporter, clock, refused=False)


def _reason_not_to_freeze(agent: Agent, *, connected: bool) -> str | None:
    if not connected:
        return "no guest agent is connected"
    try:
        agent.agent("guest-ping", timeout_s=PING_S)
    except DomainGoneError:
        raise
    except VbackupError as err:
        return f"the guest agent does not answer: {err}"
    return None


def _do_without(quiesce: Quiesce, reason: str, reporter: Reporter, *, quiet: bool = False) -> None:
    if quiesce is Quiesce.REQUIRED:
        raise QuiesceError(
            f"The guest's filesystems cannot be frozen: {reason.rstrip('.')}. Start qemu-guest-agent in the guest,"
            " or use --quiesce auto for a crash-consistent backup."
        )
    tell = reporter.step if quiet else reporter.warning
    tell(f"Filesystems are not frozen, the backup is crash-consistent: {reason.rstrip('.')}.")


def _thaw(agent: Agent, reporter: Reporter, clock: Callable[[], float], *, refused: bool) -> bool:
    """Thaw; False if the guest says that nothing was frozen any more (Windows thaws itself after 10 s)."""
    deadline = clock() + THAW_DEADLINE_S
    pause = threading.Event()
    first = True
    while True:
        try:
            count = agent.agent("guest-fsfreeze-thaw", timeout_s=THAW_S)
            return bool(count) or not first  # an earlier try may have thawed and lost its answer
        except DomainGoneError:
            return True  # nothing is frozen any more, and the backup ends anyway
        except QmpError as err:
            if not refused:  # an agent that refuses the one refuses the other
                reporter.warning(f"The guest agent could not thaw the filesystems: {err}")
            return True
        except VbackupError as err:
            first = False
            if clock() >= deadline:
                reporter.warning(
                    f"The guest agent did not answer the thaw within {THAW_DEADLINE_S:.0f} s; the guest may be frozen:"
                    f" run 'virsh domfsthaw' until it answers ({str(err).rstrip('.')})."
                )
                return True
            pause.wait(0.5)  # the agent may answer at once that it is not connected
