"""A mark is there as long as the device, whatever becomes of the chain below it."""

from __future__ import annotations

from tests.fake_qemu import FakeDisk, FakeQemu
from vbackup.qemu import device_mark


def with_disks() -> FakeQemu:
    return FakeQemu([FakeDisk("virtio-disk0"), FakeDisk("sata0-0-0", path="/images/b", in_peripheral=False)])


def test_each_device_gets_a_mark_of_its_own_and_keeps_it() -> None:
    with with_disks() as qemu:
        assert device_mark.read(qemu) == {}
        device_mark.ensure(qemu, ["virtio-disk0", "sata0-0-0"])
        marks = device_mark.read(qemu)
        assert len({*marks.values()}) == 2
        device_mark.ensure(qemu, ["virtio-disk0", "sata0-0-0"])
        qemu.snapshot("virtio-disk0", "/images/over")
        assert device_mark.read(qemu) == marks


def test_device_that_is_plugged_in_again_has_another() -> None:
    with with_disks() as qemu:
        device_mark.ensure(qemu, ["virtio-disk0"])
        before = device_mark.read(qemu)
        qemu.detach("virtio-disk0")
        qemu.attach(FakeDisk("virtio-disk0"))
        assert device_mark.read(qemu) == {}
        device_mark.ensure(qemu, ["virtio-disk0"])
        assert device_mark.read(qemu) != before


def test_only_the_devices_that_are_backed_up_are_marked() -> None:
    with with_disks() as qemu:
        device_mark.ensure(qemu, ["sata0-0-0", "gone"])
        assert list(device_mark.read(qemu)) == ["sata0-0-0"]
        qemu.sent.clear()
        device_mark.ensure(qemu, [])
        assert qemu.sent == []


def test_histogram_of_somebody_else_stays() -> None:
    for boundaries in ([1000, 2000], [5], [2**64 - 1]):
        with with_disks() as qemu:
            qdev = "/machine/peripheral/virtio-disk0/virtio-backend"
            qemu.execute("block-latency-histogram-set", {"id": qdev, "boundaries-flush": boundaries})
            device_mark.ensure(qemu, ["virtio-disk0"])
            assert device_mark.read(qemu) == {}
            shown = qemu.execute("query-blockstats")[0]["stats"]["flush_latency_histogram"]["boundaries"]
            assert shown == boundaries


def test_qemu_that_refuses_stays_without_a_mark() -> None:
    with with_disks() as qemu:
        qemu.refuse("block-latency-histogram-set", "no")
        device_mark.ensure(qemu, ["virtio-disk0"])
        assert device_mark.read(qemu) == {}
