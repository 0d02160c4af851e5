"""Backups of several domains at one moment, all or none: how their threads wait for each other and fail together.

Each backup runs vbackup.operations.backup in a separate thread; this module has only the points at which it waits for
the others (vbackup.engine.moment). The first failure ends all backups: the others notice it when they wait, or, while
they copy, the next time they check for a request to stop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from vbackup import names
from vbackup.errors import GroupError, VbackupError
from vbackup.model import Group, GroupMember
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: How long a frozen guest waits for the others, in addition to the time limit of a freeze: an agent is pinged, a
#: watchdog starts, libvirt may be slow.
SLACK_S = 30.0
#: The longest delay until a request to stop is noticed.
TICK_S = 0.25


class Meeting:
    """A barrier that a fixed set of threads can pass any number of times, until one of them fails.

    When all have arrived, nothing can hold up any of them, not even a request to stop: so what follows the last meeting
    (the commits) is done by all or by none.
    """

    def __init__(self, members: Sequence[str], *, stop: Stop, clock: Callable[[], float] = time.monotonic) -> None:
        self._members = tuple(members)
        self._stop = stop
        self._clock = clock
        self._changed = threading.Condition()
        self._arrived: set[str] = set()
        self._past_meetings = 0
        self._failure: tuple[str, VbackupError] | None = None

    def wait(self, member: str, *, timeout_s: float | None = None) -> None:
        """Wait until all members have called this.

        Raises GroupError if another member has failed, or has not arrived at the end of the timeout, the member's own
        error if it failed itself, and InterruptedBySignalError.
        """
        deadline = None if timeout_s is None else self._clock() + timeout_s
        with self._changed:
            self._check(member)
            meeting = self._past_meetings
            self._arrived.add(member)
            if len(self._arrived) == len(self._members):
                self._arrived.clear()
                self._past_meetings += 1
                self._changed.notify_all()
            while self._past_meetings == meeting:
                self._check(member)
                if deadline is not None and self._clock() >= deadline:
                    self._fail_for_absence(timeout_s or 0)
                    continue
                self._changed.wait(TICK_S)

    def fail(self, member: str, cause: VbackupError) -> None:
        """Make all other members fail. Only the first failure counts: later ones follow from it or no longer matter."""
        with self._changed:
            if self._failure is None and not isinstance(cause, GroupError):
                self._failure = (member, cause)
            self._changed.notify_all()

    def check(self, member: str) -> None:
        """Raise GroupError if another member has failed, InterruptedBySignalError after a request to stop."""
        with self._changed:
            self._check(member)

    def _check(self, member: str) -> None:
        self._stop.check()
        if self._failure is not None:
            culprit, cause = self._failure
            if culprit == member:
                raise cause
            raise GroupError(culprit, cause)

    def _fail_for_absence(self, timeout_s: float) -> None:
        absent = next(member for member in self._members if member not in self._arrived)
        self._failure = (
            absent,
            VbackupError(f"Domain {absent} was not ready within {timeout_s:.0f} s; is its libvirt hanging?"),
        )
        self._changed.notify_all()


class Moments:
    """The shared state of a group's moment; ``member`` returns the Moment of each member."""

    def __init__(
        self,
        members: Sequence[str],
        *,
        stop: Stop,
        freeze_limit_s: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.meeting = Meeting(members, stop=stop, clock=clock)
        self.timeout_s = freeze_limit_s + SLACK_S
        self.clock = clock
        self.group = Group(names.new_group_id(), ())
        self._lock = threading.Lock()
        self._planned: dict[str, GroupMember] = {}
        self._sent: list[float] = []
        self._returned: list[float] = []

    def member(self, name: str) -> MemberMoment:
        """Return the Moment of the member with that name."""
        return MemberMoment(self, name)

    def add(self, name: str, member: GroupMember) -> None:
        """Record that a member has its plan."""
        with self._lock:
            self._planned[name] = member
            members = sorted(self._planned.values(), key=lambda planned: (planned.domain_name, planned.domain_uuid))
            self.group = replace(self.group, members=tuple(members))

    def add_times(self, sent: float, returned: float) -> None:
        """Record that QEMU carried out a transaction between these two times; its exact moment cannot be known."""
        with self._lock:
            self._sent.append(sent)
            self._returned.append(returned)
            spread_ms = round((max(self._returned) - min(self._sent)) * 1000, 1)
            self.group = replace(self.group, spread_ms=spread_ms)


class MemberMoment:
    """The Moment of one member: each method waits for all members of the group."""

    def __init__(self, moments: Moments, name: str) -> None:
        self._moments = moments
        self._name = name
        self._wait = moments.meeting.wait

    @property
    def group(self) -> Group:
        """The members that are planned so far, and the spread of the transactions that were sent so far."""
        return self._moments.group

    def planned(self, member: GroupMember) -> Group:
        """Add this member to the group, wait until all are added, and return the group."""
        self._moments.add(self._name, member)
        self._wait(self._name)
        return self.group

    def ready(self) -> None:
        """Wait until all members are prepared."""
        self._wait(self._name)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait until the guests of all members are frozen, run the block, and note its time.

        A frozen guest does not change before its own transaction. So each guest is thawed right after its transaction,
        without waiting for those of the others. A failure is reported to the others at once, before it is undone.
        """
        clock, timeout_s = self._moments.clock, self._moments.timeout_s
        self._wait(self._name, timeout_s=timeout_s)
        sent = clock()
        try:
            yield
        except VbackupError as err:
            self._moments.meeting.fail(self._name, err)
            raise
        self._moments.add_times(sent, clock())

    def sent(self) -> None:
        """Wait until the transactions of all members were carried out."""
        self._wait(self._name, timeout_s=self._moments.timeout_s)

    def copied(self) -> None:
        """Wait until the backups of all members are complete except for their final names."""
        self._wait(self._name)

    def failed(self, cause: VbackupError) -> None:
        """Make all other members fail."""
        self._moments.meeting.fail(self._name, cause)


class MemberStop(Stop):
    """A member's request to stop: that of the whole command, or the failure of another member."""

    def __init__(self, meeting: Meeting, name: str) -> None:
        super().__init__()
        self._meeting = meeting
        self._name = name

    def check(self) -> None:
        """Raise InterruptedBySignalError or GroupError if the member has to stop."""
        super().check()
        self._meeting.check(self._name)


class Turns:
    """Makes the members lock their domains one after the other, in the order of ``members``.

    That has to be the order of the domains' UUIDs: otherwise, two groups with --wait-lock that share domains could each
    hold the lock that the other waits for.
    """

    def __init__(self, members: Sequence[str]) -> None:
        self._pending = list(members)
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, member: str, stop: Stop) -> Iterator[None]:
        """Run the block when all earlier members have completed theirs."""
        with self._changed:
            while self._pending[0] != member:
                stop.check()
                self._changed.wait(TICK_S)
        yield
        with self._changed:
            self._pending.remove(member)
            self._changed.notify_all()


class MemberRepository(Repository):
    """The repository for one member of a group: ``lock`` returns when the domains of all members are locked."""

    def __init__(self, repository: Repository, *, member: str, turns: Turns, meeting: Meeting, stop: Stop) -> None:
        super().__init__(repository.path, repository.id)
        self._member = member
        self._turns = turns
        self._meeting = meeting
        self._stop = stop

    @contextmanager
    def lock(self, uuid: str, *, wait: LockWait | None = None, presume_dead: bool = False) -> Iterator[None]:
        """Lock the domain in this member's turn, and wait until all members have locked theirs."""
        with ExitStack() as stack:
            with self._turns.turn(self._member, self._stop):
                stack.enter_context(super().lock(uuid, wait=wait, presume_dead=presume_dead))
            self._meeting.wait(self._member)
            yield
