"""When the data of a disk counts as at home, and what becomes of a running guest when its pulls cannot be followed."""

from __future__ import annotations

import errno
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.builders import Recorder, live_state_in
from vbackup import files
from vbackup.domain import lifecycle
from vbackup.engine import live_backing
from vbackup.errors import (
    ConnectionLostError,
    DomainGoneError,
    InterruptedBySignalError,
    LinkLostError,
    LiveRestoreEndedError,
    MonitorError,
    Retry,
    StorageError,
    UnsuitableError,
)
from vbackup.operations import live_pull
from vbackup.operations.live_place import Here
from vbackup.repository import live_state
from vbackup.repository.live_state import LiveState
from vbackup.stop import Stop


@pytest.fixture
def state(tmp_path: Path) -> LiveState:
    made = live_state_in(tmp_path)
    live_state.write(made)
    made.image("vda").touch()
    return made


def pulls(handle: Any, state: LiveState, **options: float) -> live_pull._Pulls:
    overlays: Any = {"vda": None}
    return live_pull._Pulls(handle, state, overlays, SimpleNamespace(), Recorder(), place=Here(), **options)  # type: ignore[arg-type]


def test_disk_is_at_home_only_when_the_host_has_flushed_it(state: LiveState, monkeypatch: pytest.MonkeyPatch) -> None:
    """With cache='unsafe' QEMU leaves that to nobody."""
    done: list[str] = []
    flush = files.fsync

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    def fsync(path: Path) -> None:
        done.append(path.name)
        flush(path)

    monkeypatch.setattr(live_backing, "store", lambda *_: done.append("store"))
    monkeypatch.setattr(live_backing, "remove", lambda *_: None)
    with monkeypatch.context() as broken:
        broken.setattr(files, "fsync", fail)
        with pytest.raises(StorageError, match=r"vda\.qcow2"):
            pulls(None, state)._keep("vda")
    assert live_state.read(state.output).home == set()
    done.clear()
    monkeypatch.setattr(files, "fsync", fsync)
    pulls(None, state)._keep("vda")
    assert done[:2] == ["store", "vda.qcow2"]
    assert live_state.read(state.output).home == {"vda"}


def test_link_that_is_lost_while_an_image_is_flushed_is_used_again(
    state: LiveState, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(Here):
        times = 0

        def flush(self, image: Path) -> None:
            self.times += 1
            if self.times <= 2:
                raise LinkLostError("hv1", "has ended")

    monkeypatch.setattr(live_backing, "store", lambda *_: None)
    monkeypatch.setattr(live_backing, "remove", lambda *_: None)
    monkeypatch.setattr(lifecycle, "pull_of", lambda *_: None)
    handle: Any = SimpleNamespace(live_xml=lambda: "<domain/>", is_active=lambda: True)
    monitor: Any = SimpleNamespace(next_event=lambda _timeout_s: None)
    place, overlays = Away(), cast("Any", {"vda": None})
    live_pull._Pulls(handle, state, overlays, monitor, Recorder(), place=place).follow(None, Stop())
    assert place.times == 3
    assert live_state.read(state.output).home == {"vda"}
    place.times = -2
    with pytest.raises(LinkLostError):
        live_pull._Pulls(handle, state, overlays, monitor, Recorder(), place=place).follow(None, Stop())


def test_snapshot_of_the_disk_gets_no_pull(state: LiveState, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fill the snapshot, and leave the restore's image with holes that nobody fills."""
    disk = "<domain><devices><disk><source file='{}'/><target dev='vda'/></disk></devices></domain>"
    started: list[str] = []
    monkeypatch.setattr(lifecycle, "start_pull", lambda _handle, dev, _speed: started.append(dev))
    for path, is_ours in ((state.output / "vda.snap", False), (state.image("vda"), True)):
        guest = SimpleNamespace(name="web", live_xml=lambda path=path: disk.format(path))
        if is_ours:
            pulls(guest, state)._start("vda", None)
        else:
            with pytest.raises(UnsuitableError, match="blockcommit"):
                pulls(guest, state)._start("vda", None)
            with pytest.raises(UnsuitableError, match="blockcommit"):
                live_pull.secure(cast("Any", guest), state)
        assert bool(started) is is_ours


def test_guest_that_boots_has_no_pull_beside_it(state: LiveState, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = "<channel><target name='org.qemu.guest_agent.0' state='{}'/></channel>"
    disk = "<disk><source file='{}'/><target dev='vda'/></disk>"
    started: list[str] = []
    monkeypatch.setattr(lifecycle, "start_pull", lambda _handle, dev, _speed: started.append(dev))
    now = [100.0]
    monkeypatch.setattr(live_pull.time, "monotonic", lambda: now[0])

    def begun(channels: str, *, head_start_s: float = 60.0, after_s: float = 0) -> bool:
        started.clear()
        devices = f"<devices>{disk.format(state.image('vda'))}{channels}</devices>"
        guest = SimpleNamespace(name="web", live_xml=lambda: f"<domain>{devices}</domain>")
        made = pulls(guest, state, head_start_s=head_start_s)
        now[0] += after_s
        made._start("vda", None)
        return started == ["vda"]

    assert not begun(channel.format("disconnected"))
    assert begun(channel.format("connected"))
    assert begun("")
    assert begun(channel.format("disconnected"), head_start_s=0)
    assert begun(channel.format("disconnected"), after_s=60)


class Guest:
    """A domain that may be off, may not be paused, or whose libvirt may be away."""

    name = "web"

    def __init__(self, *, is_on: bool = True, is_away: bool = False) -> None:
        self.is_on, self.is_away, self.is_paused = is_on, is_away, False

    def is_active(self) -> bool:
        if self.is_away:
            raise ConnectionLostError("libvirt is away.")
        return self.is_on

    def suspend(self, *_words: object) -> None:
        if self.is_away:
            raise ConnectionLostError("libvirt is away.")
        self.is_paused = True


@pytest.mark.parametrize(
    ("guest", "is_paused", "is_left"),
    [(Guest(), True, False), (Guest(is_away=True), False, True), (Guest(is_on=False), False, False)],
)
def test_guest_that_still_runs_keeps_its_server(
    guest: Guest, is_paused: bool, is_left: bool, state: LiveState, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[bool] = []
    point = SimpleNamespace(leave=lambda: left.append(True), is_reached=True, after="It is still served.")
    reporter, handle = Recorder(), cast("Any", guest)
    monkeypatch.setattr(lifecycle, "end_pull", lambda *_: None)
    monkeypatch.setattr(lifecycle, "suspend", Guest.suspend)
    with pytest.raises(MonitorError, match="first"), live_pull.guarded(handle, state, cast("Any", point), reporter):
        raise MonitorError("The first error.")
    assert (guest.is_paused, bool(left)) == (is_paused, is_left)
    assert all("--resume" in one for one in reporter.warnings)
    assert len(reporter.warnings) == guest.is_on


def test_guest_whose_link_is_lost_is_not_paused(state: LiveState, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU would wait for the end of its reads, with all of the guest, and libvirt for QEMU."""
    guest, reporter, left = Guest(), Recorder(), list[bool]()
    point = SimpleNamespace(leave=lambda: left.append(True), is_reached=False, after="Nobody serves it any more.")
    monkeypatch.setattr(lifecycle, "end_pull", lambda *_: pytest.fail("QEMU was asked"))
    monkeypatch.setattr(lifecycle, "suspend", Guest.suspend)
    far = replace(state, uri="qemu+ssh://root@hv1/system")
    with (
        pytest.raises(LinkLostError),
        live_pull.guarded(cast("Any", guest), far, cast("Any", point), reporter),
    ):
        raise LinkLostError("hv1", "has ended")
    assert not guest.is_paused
    assert left == [True]
    (said,) = reporter.warnings
    assert "is not paused. Nobody serves it any more." in said
    assert f"'vbackup -c qemu+ssh://root@hv1/system restore {state.uuid} --live --resume" in said


@pytest.mark.parametrize(("is_resumed", "retry"), [(False, Retry.NEVER), (True, Retry.SAME)])
def test_signal_leaves_a_restore_to_resume(
    state: LiveState, monkeypatch: pytest.MonkeyPatch, is_resumed: bool, retry: Retry
) -> None:
    """It is not said that nothing was kept; and the command that began it would be refused."""
    monkeypatch.setattr(lifecycle, "end_pull", lambda *_: None)
    monkeypatch.setattr(lifecycle, "suspend", Guest.suspend)
    guest, point = cast("Any", Guest()), cast("Any", SimpleNamespace(is_reached=True))
    with (
        pytest.raises(InterruptedBySignalError, match="SIGTERM; the live restore of domain web is not") as caught,
        live_pull.guarded(guest, state, point, Recorder(), is_resumed=is_resumed),
    ):
        raise InterruptedBySignalError(signal.SIGTERM)
    assert (caught.value.status, caught.value.retry) == (128 + signal.SIGTERM, retry)


def test_guest_that_has_ended_is_named_as_the_reason(state: LiveState) -> None:
    guest, point = cast("Any", Guest(is_on=False)), cast("Any", None)
    with pytest.raises(LiveRestoreEndedError), live_pull.guarded(guest, state, point, Recorder()):
        raise DomainGoneError("web")
