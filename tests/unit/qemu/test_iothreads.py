"""The iothread of a disk, as QEMU 7.2 and 10.0 answer."""

from __future__ import annotations

import pytest

from tests.fake_qemu import FakeQemu
from vbackup.qemu.iothreads import iothread_of

PERIPHERAL = "/machine/peripheral"


@pytest.fixture
def qemu() -> FakeQemu:
    """With one disk on virtio-blk, one on virtio-scsi and one on SATA."""
    made = FakeQemu()
    made.links = {
        (f"{PERIPHERAL}/virtio-disk0", "parent_bus"): "/machine/i440fx/pci.0",
        (f"{PERIPHERAL}/virtio-disk0", "iothread"): "",
        (f"{PERIPHERAL}/scsi0-0-0-0", "parent_bus"): f"{PERIPHERAL}/scsi0/virtio-backend/scsi0.0",
        (f"{PERIPHERAL}/scsi0/virtio-backend", "iothread"): "",
        (f"{PERIPHERAL}/sata0-0-0", "parent_bus"): f"{PERIPHERAL}/sata0/sata0.0",
    }
    return made


def iothreads(qemu: FakeQemu) -> list[str | None]:
    return [iothread_of(qemu, alias) for alias in ("virtio-disk0", "scsi0-0-0-0", "sata0-0-0")]


def test_qemu_without_iothreads_is_not_asked_for_devices(qemu: FakeQemu) -> None:
    assert iothreads(qemu) == [None, None, None]
    assert {one.command for one in qemu.sent} == {"query-iothreads"}


def test_virtio_blk_has_it_in_the_device(qemu: FakeQemu) -> None:
    qemu.links[f"{PERIPHERAL}/virtio-disk0", "iothread"] = "/objects/iothread2"
    assert iothreads(qemu) == ["iothread2", None, None]


def test_virtio_scsi_has_it_in_the_controller(qemu: FakeQemu) -> None:
    qemu.links[f"{PERIPHERAL}/scsi0/virtio-backend", "iothread"] = "/objects/iothread1"
    assert iothreads(qemu) == [None, "iothread1", None]
