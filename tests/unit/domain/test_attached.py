"""A QEMU that the user named: its disks, bitmaps, and the nodes that libvirt tracks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fake_qemu import FakeBitmap, FakeDisk, FakeQemu
from tests.unit import builders
from tests.unit.builders import UUID, Recorder
from tests.unit.domain.conftest import Daemon
from vbackup.domain.attached import AttachedQemu, of_domain, of_images
from vbackup.errors import DiskError, QmpError
from vbackup.model import DiskNode, ImageFormat
from vbackup.qemu.monitor import block_graph


def attach(qemu: FakeQemu, **more: Any) -> AttachedQemu:
    def disks() -> Mapping[str, DiskNode]:
        return {"vda": block_graph(qemu).disk_node(builders.disk())}

    return AttachedQemu("test", qemu, disks, **more)


def test_bitmaps_are_listed_by_node_as_they_are_now() -> None:
    with FakeQemu([FakeDisk()]) as qemu:
        attached, top = attach(qemu), qemu.top("virtio-disk0")
        assert attached.bitmaps()[top] == frozenset()
        qemu.bitmaps(top)["b"] = FakeBitmap("b")
        assert attached.bitmaps()[top] == {"b"}


def test_nodes_of_a_disk_are_libvirt_s_with_its_name() -> None:
    with FakeQemu([FakeDisk(backing_paths=("/images/base.qcow2",))]) as qemu:
        nodes = attach(qemu, domain="web").libvirt_nodes()
        layers = [layer.node_name for layer in attach(qemu).disks()["vda"].layers]
        assert len(layers) == 2
        assert {name for name, dev in nodes.items() if dev == "vda"} == set(layers)
        assert {name for name, dev in nodes.items() if dev == ""} == {
            name for name in block_graph(qemu).node_names() if name not in layers
        }


def test_node_of_somebody_else_is_not_libvirt_s() -> None:
    with FakeQemu([FakeDisk()]) as qemu:
        qemu.execute("blockdev-add", {"driver": "null-co", "node-name": "theirs", "size": 65536})
        assert "theirs" not in attach(qemu, domain="web").libvirt_nodes()
        assert attach(qemu).libvirt_nodes() == {}


def test_images_are_opened_in_a_daemon_that_ends_with_the_command(domain: object) -> None:
    with of_images([("vda", Path("/images/vda.qcow2"), ImageFormat.QCOW2)], reporter=Recorder()) as attached:
        assert list(attached.disks()) == ["vda"]
        assert (attached.ends_with_us, attached.domain, attached.uuid) == (True, None, None)


def test_image_that_cannot_be_opened_is_an_error_of_its_disk(domain: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise QmpError("blockdev-add", "GenericError", "Image is corrupt")

    monkeypatch.setattr(Daemon, "opening", refuse)
    with (
        pytest.raises(DiskError, match=r"Disk vda: its image /images/vda.qcow2 cannot be opened: Image is corrupt"),
        of_images([("vda", Path("/images/vda.qcow2"), ImageFormat.QCOW2)], reporter=Recorder()),
    ):
        pass


def test_domain_that_is_off_is_not_libvirt_s_to_track(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disks are open from the start, so that their nodes can be named."""
    monkeypatch.setattr(type(domain), "checkpoints", lambda _self: frozenset({"daily"}), raising=False)
    monkeypatch.setattr(type(domain), "domain", lambda self, _name: self, raising=False)
    with of_domain(domain, "web", reporter=Recorder()) as attached:
        daemon: Any = attached.monitor
        assert daemon.opened == ["vda", "vdb"]
        assert (attached.name, attached.uuid, attached.domain, attached.ends_with_us) == ("web", UUID, None, True)
        assert attached.libvirt_checkpoints == {"daily"}
        assert list(attached.disks()) == ["vda", "vdb"]
