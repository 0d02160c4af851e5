"""Backups of several domains at one moment, all or none: where their threads meet, and who is to blame if they do not.

Each domain's backup runs in a thread of its own and is vbackup.operations.backup's; here are only the points at which
it waits for the others (see vbackup.engine.moment). What fails anywhere ends all: the others see it where they wait,
or, while they copy, at their next look at their request to stop.
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

#: How long the others are waited for once guests are frozen, beside what the freeze may take: an agent is asked
#: whether it is there, a watchdog starts, libvirt may be slow.
SLACK_S = 30.0
#: The longest that a request to stop waits to be seen.
TICK_S = 0.25


class Meeting:
    """A fixed number of threads that wait for each other, again and again, until one of them fails.

    Once all have come nothing can keep any of them from going on, not even a request to stop: what follows the last
    meeting is done by all or by none.
    """

    def __init__(self, members: Sequence[str], *, stop: Stop, clock: Callable[[], float] = time.monotonic) -> None:
        self._members = tuple(members)
        self._stop = stop
        self._clock = clock
        self._changed = threading.Condition()
        self._here: set[str] = set()
        self._held = 0
        self._failure: tuple[str, VbackupError] | None = None

    @property
    def culprit(self) -> tuple[str, VbackupError] | None:
        """Who failed first, and of what."""
        return self._failure

    def wait(self, member: str, *, timeout_s: float | None = None) -> None:
        """Return when all have come.

        Raises GroupError if one has failed, or, naming who has not come, when the time is over; and
        InterruptedBySignalError.
        """
        deadline = None if timeout_s is None else self._clock() + timeout_s
        with self._changed:
            self._check(member)
            meeting = self._held
            self._here.add(member)
            if len(self._here) == len(self._members):
                self._here.clear()
                self._held += 1
                self._changed.notify_all()
            while self._held == meeting:
                self._check(member)
                if deadline is not None and self._clock() >= deadline:
                    self._fail_for_absence(timeout_s or 0)
                    continue
                self._changed.wait(TICK_S)

    def fail(self, member: str, cause: VbackupError) -> None:
        """Have all others end; what fails later is a consequence, or does not matter any more."""
        with self._changed:
            if self._failure is None and not isinstance(cause, GroupError):
                self._failure = (member, cause)
            self._changed.notify_all()

    def check(self, member: str) -> None:
        """Raise GroupError if another one has failed, InterruptedBySignalError after a request to stop."""
        with self._changed:
            self._check(member)

    def _check(self, member: str) -> None:
        self._stop.check()
        if self._failure is not None:
            who, cause = self._failure
            if who == member:
                raise cause
            raise GroupError(who, cause)

    def _fail_for_absence(self, timeout_s: float) -> None:
        who = next(one for one in self._members if one not in self._here)
        self._failure = (
            who,
            VbackupError(
                f"It did not come to the moment of the backup within {timeout_s:.0f} s; is its libvirt hanging?"
            ),
        )
        self._changed.notify_all()


class Moments:
    """The moment of a group: hands each member its own side of it (see ``member``)."""

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
        """Of the member called so."""
        return MemberMoment(self, name)

    def add(self, name: str, member: GroupMember) -> None:
        """A member has its plan."""
        with self._lock:
            self._planned[name] = member
            members = sorted(self._planned.values(), key=lambda one: (one.domain_name, one.domain_uuid))
            self.group = replace(self.group, members=tuple(members))

    def add_times(self, sent: float, returned: float) -> None:
        """A transaction was carried out between these two, which is all that can be known of its moment."""
        with self._lock:
            self._sent.append(sent)
            self._returned.append(returned)
            spread_ms = round((max(self._returned) - min(self._sent)) * 1000, 1)
            self.group = replace(self.group, spread_ms=spread_ms)


class MemberMoment:
    """One member's side (see vbackup.engine.moment.Moment)."""

    def __init__(self, moments: Moments, name: str) -> None:
        self._moments = moments
        self._name = name
        self._wait = moments.meeting.wait

    @property
    def group(self) -> Group:
        """See Moment."""
        return self._moments.group

    def planned(self, member: GroupMember) -> Group:
        """See Moment."""
        self._moments.add(self._name, member)
        self._wait(self._name)
        return self.group

    def ready(self) -> None:
        """See Moment."""
        self._wait(self._name)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """See Moment.

        What is frozen when all are does not change until its own transaction, so each is thawed right after that and
        does not wait for the others'. A failure is told at once, not when all of it is undone.
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
        """See Moment."""
        self._wait(self._name, timeout_s=self._moments.timeout_s)

    def copied(self) -> None:
        """See Moment."""
        self._wait(self._name)


class MemberStop(Stop):
    """A member's request to stop: the one of all, or that another member has failed."""

    def __init__(self, meeting: Meeting, name: str) -> None:
        super().__init__()
        self._meeting = meeting
        self._name = name

    def check(self) -> None:
        """Raise InterruptedBySignalError or GroupError if the member is to end."""
        super().check()
        self._meeting.check(self._name)


class Turns:
    """Has the members lock their domains one after the other, in the order of their UUIDs.

    Two groups with --wait-lock that share domains would otherwise each hold what the other waits for.
    """

    def __init__(self, members: Sequence[str]) -> None:
        self._left = list(members)
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, member: str, stop: Stop) -> Iterator[None]:
        """Run the block when all before have left theirs."""
        with self._changed:
            while self._left[0] != member:
                stop.check()
                self._changed.wait(TICK_S)
        yield
        with self._changed:
            self._left.remove(member)
            self._changed.notify_all()


class MemberRepository(Repository):
    """The repository as a member of a group sees it: no domain is opened before all are locked."""

    def __init__(self, repository: Repository, *, member: str, turns: Turns, meeting: Meeting, stop: Stop) -> None:
        super().__init__(repository.path, repository.id)
        self._member = member
        self._turns = turns
        self._meeting = meeting
        self._stop = stop

    @contextmanager
    def lock(self, uuid: str, *, wait: LockWait | None = None) -> Iterator[None]:
        """See Repository."""
        with ExitStack() as stack:
            with self._turns.turn(self._member, self._stop):
                stack.enter_context(super().lock(uuid, wait=wait))
            self._meeting.wait(self._member)
            yield
