"""Members of a group meet, fail together, lock in turn, and go on once nothing can hold them up any more."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.builders import Recorder
from vbackup.engine.group import Meeting, MemberRepository, MemberStop, Moments, Turns
from vbackup.errors import BusyError, GroupError, InterruptedBySignalError, NoSpaceError, VbackupError
from vbackup.model import GroupMember
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

UUIDS = {name: f"f0000000-0000-4000-8000-00000000000{number}" for number, name in enumerate("abc")}


def each(members: str, work: Callable[[str], object]) -> dict[str, BaseException | None]:
    """Run it for each member in a separate thread; how each ended."""
    with ThreadPoolExecutor(max_workers=len(members)) as pool:
        running: dict[str, Future[object]] = {member: pool.submit(work, member) for member in members}
    return {member: one.exception() for member, one in running.items()}


def test_nobody_goes_on_before_all_have_come() -> None:
    meeting = Meeting("abc", stop=Stop())
    here: list[str] = []

    def work(member: str) -> None:
        for number in range(20):
            here.append(member)
            meeting.wait(member)
            assert len(here) >= 3 * (number + 1)

    assert each("abc", work) == dict.fromkeys("abc")


def test_failure_of_one_ends_the_wait_of_the_others_and_names_it() -> None:
    meeting = Meeting("abc", stop=Stop())
    cause = NoSpaceError("the disk is full")

    def work(member: str) -> None:
        if member == "b":
            meeting.fail("b", cause)
        meeting.wait(member)

    ended = each("abc", work)
    assert ended["b"] is cause
    for member in "ac":
        error = ended[member]
        assert isinstance(error, GroupError)
        assert (error.domain, error.status) == ("b", cause.status)
        assert "the disk is full" in str(error)


def test_first_failure_counts_and_a_consequence_is_none() -> None:
    meeting = Meeting("ab", stop=Stop())
    first = VbackupError("first")
    meeting.fail("a", GroupError("c", VbackupError("of another group")))
    meeting.check("a")
    meeting.fail("b", first)
    meeting.fail("a", VbackupError("second"))
    with pytest.raises(GroupError, match=r"Domain b .*: first"):
        meeting.check("a")
    with pytest.raises(VbackupError) as caught:
        meeting.check("b")
    assert caught.value is first


def test_who_does_not_come_in_time_is_to_blame() -> None:
    meeting = Meeting("abc", stop=Stop())
    ended = each("ac", lambda member: meeting.wait(member, timeout_s=0.1))
    assert {type(error) for error in ended.values()} == {GroupError}
    assert all("Domain b" in str(error) and "within 0 s" in str(error) for error in ended.values())
    with pytest.raises(VbackupError, match="Domain b was not ready within"):
        meeting.wait("b")  # when it comes at last


def test_signal_ends_the_wait() -> None:
    stop = Stop()
    meeting = Meeting("ab", stop=stop)
    timer = threading.Timer(0.1, lambda: stop.request(signal.SIGTERM))
    timer.start()
    begun = time.monotonic()
    with pytest.raises(InterruptedBySignalError):
        meeting.wait("a")
    assert time.monotonic() - begun < 5
    timer.join()


def test_nothing_keeps_those_from_going_on_who_have_all_come() -> None:
    """What follows the last meeting are the commits: all of them or none."""
    stop = Stop()
    meeting = Meeting("abc", stop=stop)

    def work(member: str) -> None:
        try:
            meeting.wait(member)
        finally:
            stop.request(signal.SIGTERM)  # by the first that is let go, while the others are still waking up
            meeting.fail(member, VbackupError("late"))

    for _ in range(50):
        stop = Stop()
        meeting = Meeting("abc", stop=stop)
        assert each("abc", work) == dict.fromkeys("abc")


def test_member_that_copies_sees_the_failure_at_its_next_look() -> None:
    stop = Stop()
    meeting = Meeting("ab", stop=stop)
    member_stop = MemberStop(meeting, "a")
    member_stop.check()
    meeting.fail("b", VbackupError("broken"))
    with pytest.raises(GroupError, match="Domain b"):
        member_stop.check()
    stop.request(signal.SIGHUP)
    with pytest.raises(InterruptedBySignalError):
        member_stop.check()


# the moment


def test_spread_is_from_the_first_sending_to_the_last_return() -> None:
    times = iter([10.0, 10.004])
    moments = Moments(["a"], stop=Stop(), freeze_limit_s=1, clock=lambda: next(times, 99.0))
    moments.add_times(9.998, 10.001)
    moments.add_times(9.9995, 10.0105)
    assert moments.group.spread_ms == 12.5


def test_all_know_all_members_and_the_same_spread() -> None:
    moments = Moments(["a", "b"], stop=Stop(), freeze_limit_s=1)

    def work(member: str) -> None:
        mine = moments.member(member)
        planned = mine.planned(GroupMember(member, UUIDS[member], f"backup of {member}"))
        assert [one.backup_id for one in planned.members] == ["backup of a", "backup of b"]
        mine.ready()
        with mine.taken():
            time.sleep(0.01)
        mine.sent()
        spreads.append(mine.group.spread_ms)
        mine.copied()

    spreads: list[float] = []
    assert each("ab", work) == dict.fromkeys("ab")
    assert spreads[0] == spreads[1] >= 10


def test_nobody_sends_before_all_are_frozen_nor_copies_before_all_have_sent() -> None:
    moments = Moments(["a", "b"], stop=Stop(), freeze_limit_s=1)
    frozen: list[str] = []
    sent: list[str] = []

    def work(member: str) -> None:
        mine = moments.member(member)
        if member == "b":
            time.sleep(0.1)
        frozen.append(member)
        with mine.taken():
            assert len(frozen) == 2
            if member == "a":
                time.sleep(0.1)
            sent.append(member)
        mine.sent()
        assert len(sent) == 2

    assert each("ab", work) == dict.fromkeys("ab")


def test_transaction_that_fails_is_told_to_the_others_at_once() -> None:
    moments = Moments(["a", "b"], stop=Stop(), freeze_limit_s=1)
    told = threading.Event()

    def work(member: str) -> None:
        if member == "a":
            with moments.member("a").taken():
                pass
            moments.member("a").sent()
            return
        try:
            with moments.member("b").taken():
                raise VbackupError("refused")
        finally:
            assert told.wait(10)  # its own thaw and undo can take long

    def observed(member: str) -> None:
        try:
            work(member)
        except GroupError:
            told.set()
            raise

    ended = each("ab", observed)
    assert isinstance(ended["a"], GroupError)
    assert str(ended["b"]) == "refused"


# locks


def test_domains_are_locked_in_one_order_and_all_before_any_goes_on(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "repository")
    meeting, turns, order = Meeting("abc", stop=Stop()), Turns("abc"), list[str]()

    def work(member: str) -> None:
        if member == "a":
            time.sleep(0.05)
        own = MemberRepository(repository, member=member, turns=turns, meeting=meeting, stop=Stop())
        with own.lock(UUIDS[member]):
            order.append(member)
            for uuid in UUIDS.values():
                with pytest.raises(BusyError), repository.lock(uuid):
                    pass
            meeting.wait(member)

    assert each("abc", work) == dict.fromkeys("abc")
    assert sorted(order) == ["a", "b", "c"]


def test_lock_that_somebody_has_ends_the_others_turns(tmp_path: Path) -> None:
    repository, stop = Repository.create(tmp_path / "repository"), Stop()
    meeting, turns = Meeting("abc", stop=stop), Turns("abc")

    def work(member: str) -> None:
        member_stop = MemberStop(meeting, member)
        own = MemberRepository(repository, member=member, turns=turns, meeting=meeting, stop=member_stop)
        try:
            with own.lock(UUIDS[member], wait=LockWait(0, Recorder(), member_stop)):
                raise AssertionError("nobody goes on")
        except VbackupError as err:
            meeting.fail(member, err)
            raise

    with repository.lock(UUIDS["b"]):
        ended = each("abc", work)
    assert isinstance(ended["b"], BusyError)
    assert isinstance(ended["a"], GroupError)
    assert isinstance(ended["c"], GroupError)
    with repository.lock(UUIDS["a"]), repository.lock(UUIDS["c"]):
        pass
