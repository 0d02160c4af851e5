"""Disks are read from the domain's QEMU while it runs; test_offline.py tests the disks of a domain that is off."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit import builders
from tests.unit.builders import Recorder
from vbackup.domain.source import RunningSource, open_source
from vbackup.errors import HostUnreachableError, UnsuitableError, VbackupError


def test_domain_on_another_host_is_not_opened_here(domain: Any) -> None:
    domain.is_local = False
    with pytest.raises(UnsuitableError, match="run vbackup on that host"), open_source(domain, reporter=Recorder()):
        pass


class Handle:
    """A running domain in libvirt."""

    def __init__(self) -> None:
        self.active: bool | VbackupError = True
        self.io_error = False
        self.resumed = 0

    def is_active(self) -> bool:
        if isinstance(self.active, VbackupError):
            raise self.active
        return self.active

    def is_paused_by_io_error(self) -> bool:
        return self.io_error

    def resume(self) -> None:
        self.resumed += 1


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
