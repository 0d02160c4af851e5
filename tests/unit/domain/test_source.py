"""Disks are read from the domain's QEMU while it runs; test_offline.py tests the disks of a domain that is off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit import builders
from tests.unit.builders import Recorder
from vbackup.domain import freeze_turn
from vbackup.domain.freeze import Freeze
from vbackup.domain.freeze_turn import FreezeTurn
from vbackup.domain.source import RunningSource, open_source
from vbackup.errors import HostUnreachableError, QuiesceError, UnsuitableError, VbackupError
from vbackup.model import Consistency, FreezeMark, Quiesce


def test_domain_on_another_host_is_not_opened_here(domain: Any) -> None:
    domain.is_local = False
    with pytest.raises(UnsuitableError, match="run vbackup on that host"), open_source(domain, reporter=Recorder()):
        pass


class Handle:
    """A running domain in libvirt."""

    def __init__(self) -> None:
        self.active: bool | VbackupError = True
        self.io_error = False
        self.is_halted: str | None = None
        self.resumed = 0
        self.uuid = ""

    def is_active(self) -> bool:
        if isinstance(self.active, VbackupError):
            raise self.active
        return self.active

    def is_paused_by_io_error(self) -> bool:
        return self.io_error

    def halted(self) -> str | None:
        return self.is_halted

    def resume(self) -> None:
        self.resumed += 1

    def virsh(self, word: str) -> str:
        return f"virsh -c qemu+ssh://hv1/system {word} web"


def running(handle: Handle, monitor: object = None) -> RunningSource:
    return RunningSource(handle, builders.domain("vda"), monitor)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("active", "has_ended"),
    [(True, False), (False, True), (HostUnreachableError("x:///", "gone"), False)],
    ids=["runs", "has ended", "libvirt does not answer"],
)
def test_domain_has_ended_only_if_libvirt_says_so(active: bool | VbackupError, has_ended: bool) -> None:
    handle = Handle()
    handle.active = active
    assert running(handle).has_ended() == has_ended


@pytest.mark.parametrize(
    ("before", "now", "resumed"),
    [(False, True, 1), (False, False, 0), (True, True, 0)],
    ids=["ours", "runs", "earlier"],
)
def test_guest_is_resumed_only_if_the_backup_stopped_it(before: bool, now: bool, resumed: int) -> None:
    handle, recorder = Handle(), Recorder()
    handle.io_error = now
    running(handle).resume(recorder, guest_was_stopped=before)
    assert (handle.resumed, len(recorder.warnings)) == (resumed, resumed)


def test_detached_disks_of_a_qemu_that_does_not_answer_are_none() -> None:
    with FakeQemu([FakeDisk()]) as qemu:
        qemu.lose_connection()
        assert running(Handle(), qemu).close_detached({"vda": "libvirt-1-format"}) == []


def test_disks_of_a_running_domain_are_found_in_its_qemu() -> None:
    with FakeQemu([FakeDisk(path="/images/vda.qcow2")]) as qemu:
        source = running(Handle(), qemu)
        (node,) = source.disk_nodes(source.domain.disks)
        assert (node.top.node_name, node.lasting) == (qemu.top("virtio-disk0"), True)


# a guest that does not run


class Agent:
    """One that nobody may ask."""

    def agent(self, command: str, *, timeout_s: int) -> Any:
        raise AssertionError(f"{command} within {timeout_s} s")


def halted(how: str) -> RunningSource:
    handle = Handle()
    handle.is_halted = how
    source = running(handle, Agent())
    source.domain = replace(source.domain, agent_connected=True)
    return source


def test_agent_of_a_paused_domain_is_not_asked() -> None:
    recorder, source = Recorder(), halted("paused")
    source.prepare_freeze(Quiesce.AUTO, limit_s=10)
    with source.frozen(Quiesce.AUTO, recorder) as freeze:
        pass
    assert freeze == Freeze(Consistency.CRASH)
    assert recorder.warnings == [
        "The domain is paused, so its guest agent cannot freeze the filesystems: the backup is crash-consistent."
    ]
    source.close()


def test_guest_that_is_resumed_after_the_journal_was_written_is_not_frozen() -> None:
    """A recovery would not know that a freeze of it has to be undone."""
    recorder, source = Recorder(), halted("paused")
    source.prepare_freeze(Quiesce.AUTO, limit_s=10)
    assert source.freeze_mark is FreezeMark.NONE
    source.handle.is_halted = None  # type: ignore[attr-defined]
    with source.frozen(Quiesce.AUTO, recorder) as freeze:
        pass
    assert freeze == Freeze(Consistency.CRASH)
    (warning,) = recorder.warnings
    assert warning.startswith("The domain is just being resumed, so its guest agent cannot freeze the filesystems")


def test_paused_domain_cannot_be_frozen_if_that_is_required() -> None:
    said = r"the domain is paused, so its guest agent cannot answer\. Let it run \('virsh -c \S+ resume web'\)"
    source, recorder = halted("paused"), Recorder()
    with pytest.raises(QuiesceError, match=said), source.frozen(Quiesce.REQUIRED, recorder):
        raise AssertionError("the transaction would be sent")


def test_guest_that_shall_not_be_frozen_is_not_asked_whether_it_runs() -> None:
    source, recorder = halted("paused"), Recorder()
    with source.frozen(Quiesce.NO, recorder):
        pass
    assert recorder.warnings == []


# the freeze of a dead run

FROZEN, THAW = "guest-fsfreeze-status", "guest-fsfreeze-thaw"


class FrozenGuest:
    """The agent of a guest that is frozen."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def agent(self, command: str, *, timeout_s: int) -> Any:
        assert timeout_s > 0
        self.asked.append(command)
        return "frozen" if command == FROZEN else 1


@pytest.fixture
def turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FreezeTurn]:
    """That of another process."""
    monkeypatch.setattr(freeze_turn, "directory", lambda: tmp_path / "run" / "freeze")
    made = FreezeTurn(builders.UUID)
    yield made
    made.close()


def thaw(mark: FreezeMark, *, is_connected: bool = True) -> tuple[list[str], Recorder]:
    guest, recorder, handle = FrozenGuest(), Recorder(), Handle()
    handle.uuid = builders.UUID
    domain = builders.domain("vda", agent_connected=is_connected)
    RunningSource(handle, domain, guest).thaw(recorder, mark=mark)  # type: ignore[arg-type]
    return guest.asked, recorder


def test_paused_guest_of_a_dead_run_is_left_with_the_command_that_thaws_it(turn: FreezeTurn) -> None:
    recorder, source = Recorder(), halted("crashed")
    source.handle.uuid = builders.UUID  # type: ignore[misc]
    source.thaw(recorder, mark=FreezeMark.UNMARKED)
    assert "'virsh -c qemu+ssh://hv1/system domfsthaw web' thaws them" in recorder.warnings[0]
    turn.frozen()
    source.thaw(recorder, mark=FreezeMark.MARKED)
    assert "'virsh -c qemu+ssh://hv1/system domfsthaw web' thaws them" in recorder.warnings[1]
    assert turn.may_be_left_frozen(), "the next backup asks again"


def test_run_that_froze_nothing_left_nothing_frozen(turn: FreezeTurn) -> None:
    turn.frozen()
    assert thaw(FreezeMark.NONE)[0] == []
    assert thaw(FreezeMark.MARKED, is_connected=False)[0] == []


def test_marked_freeze_is_thawed_once_and_one_without_a_mark_is_somebody_else_s(turn: FreezeTurn) -> None:
    turn.frozen()
    asked, recorder = thaw(FreezeMark.MARKED)
    assert asked == [FROZEN, THAW]
    assert "they are thawed now" in recorder.warnings[0]
    assert not turn.may_be_left_frozen()
    asked, recorder = thaw(FreezeMark.MARKED)
    assert asked == [FROZEN]
    assert "but not by vbackup, which leaves them so" in recorder.warnings[0]


@pytest.mark.parametrize("mark", [FreezeMark.UNMARKED, FreezeMark.MARKED])
def test_freeze_is_thawed_if_nobody_could_mark_it(
    turn: FreezeTurn, monkeypatch: pytest.MonkeyPatch, mark: FreezeMark
) -> None:
    if mark is FreezeMark.MARKED:
        monkeypatch.setattr(freeze_turn, "directory", lambda: None)
    assert turn.marks
    assert thaw(mark)[0] == [FROZEN, THAW]


def test_freeze_that_another_process_deals_with_is_left_to_it(
    turn: FreezeTurn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FreezeTurn.take, "__defaults__", (0.1,))
    assert turn.take()
    asked, recorder = thaw(FreezeMark.UNMARKED)
    assert asked == []
    assert "the guest's freeze is left to it" in recorder.steps[0]
