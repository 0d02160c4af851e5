"""The disks of a domain that is off are opened when they are asked for, and a refusal comes with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import Recorder, image_file
from tests.unit.domain.conftest import Daemon
from vbackup.domain.offline import identities, open_images
from vbackup.domain.source import open_source
from vbackup.errors import BusyError, DiskError, QmpError
from vbackup.model import BlockDriver, SecretRef
from vbackup.qemu import backing_chain
from vbackup.qemu.backing_chain import Image

SECRET = SecretRef(uuid="5ec4e700-0000-4000-8000-000000000001")


def test_disks_are_opened_once_and_only_those_that_are_asked_for(domain: Any) -> None:
    with open_source(domain, reporter=Recorder()) as opened:
        daemon: Any = opened.monitor
        vda, vdb = opened.domain.disks
        assert daemon.opened == []
        for _ in range(2):
            assert [node.disk for node in opened.disk_nodes([vdb])] == [vdb]
        assert daemon.opened == ["vdb"]
        assert [node.disk for node in opened.disk_nodes([vda, vdb])] == [vda, vdb]
        assert daemon.opened == ["vdb", "vda"]


def test_bitmaps_are_seen_as_they_are_now(domain: Any) -> None:
    with open_source(domain, reporter=Recorder()) as opened:
        (vda, _) = opened.domain.disks
        (node,) = opened.disk_nodes([vda])
        assert (node.top.bitmaps, node.lasting, node.bears_checkpoints) == ({}, False, True)
        action = {
            "type": "block-dirty-bitmap-add",
            "data": {"node": node.top.node_name, "name": "b", "granularity": 65536, "persistent": True},
        }
        opened.monitor.execute("transaction", {"actions": [action]})
        assert list(opened.disk_nodes([vda])[0].top.bitmaps) == ["b"]


def refused_to_open(monkeypatch: pytest.MonkeyPatch, description: str) -> None:
    def refuse() -> None:
        raise QmpError("blockdev-add", "GenericError", description)

    monkeypatch.setattr(Daemon, "opening", refuse)


@pytest.mark.parametrize("lock", ['Failed to get "write" lock', 'Failed to get shared "write" lock'])
@pytest.mark.parametrize("is_started", [True, False])
def test_locked_image_means_that_the_domain_was_started_only_if_it_was(
    domain: Any, monkeypatch: pytest.MonkeyPatch, lock: str, is_started: bool
) -> None:
    said = "Domain web has been started; run the same command again"
    if not is_started:
        said = r"Another process, perhaps on another host, has the image /images/vda.qcow2 open; run .* again"

    def refuse() -> None:
        domain.active = is_started
        raise QmpError("blockdev-add", "GenericError", lock)

    monkeypatch.setattr(Daemon, "opening", refuse)
    with pytest.raises(BusyError, match=said), open_source(domain, reporter=Recorder()) as opened:
        opened.disk_nodes(opened.domain.disks)


def test_image_that_qemu_refuses_is_named(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused_to_open(monkeypatch, "Image is corrupt")
    with (  # fmt: skip
        pytest.raises(DiskError, match=r"Disk vda: its image .*Image is corrupt.*--exclude-disk vda") as caught,
        open_source(domain, reporter=Recorder()) as opened,
    ):
        opened.disk_nodes(opened.domain.disks)
    assert "exclude-disk" not in caught.value.cause  # which a restore in place gives as the reason


def test_image_that_may_not_be_opened_is_told_with_both_remedies(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused_to_open(monkeypatch, "Could not open '/images/vda.qcow2': Permission denied")
    said = r"Disk vda: its image .*Permission denied\. vbackup runs as .*leave the disk out with --exclude-disk vda\."
    with pytest.raises(DiskError, match=said), open_source(domain, reporter=Recorder()) as opened:
        opened.disk_nodes(opened.domain.disks)


def test_domain_started_while_its_images_are_opened_is_noticed_without_locks(
    domain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Daemon, "opening", lambda: setattr(domain, "active", True))
    with pytest.raises(BusyError, match="been started"), open_source(domain, reporter=Recorder()) as opened:
        opened.disk_nodes(opened.domain.disks)


def test_secret_that_libvirt_does_not_give_is_told_with_its_disk(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encrypted = (Image("/images/vda.qcow2", BlockDriver.QCOW2, False, (1, 1), SECRET),)
    monkeypatch.setattr(backing_chain, "images_of", lambda _disk, *, volume_path: encrypted)
    said = f"Disk vda: .*{SECRET.uuid}.*virsh secret-set-value"
    with pytest.raises(DiskError, match=said), open_source(domain, reporter=Recorder()) as opened:
        opened.disk_nodes(opened.domain.disks)


def test_plain_images_are_disks_too(domain: Any, tmp_path: Path) -> None:
    images = [("vda", "/images/vda.qcow2", BlockDriver.QCOW2), ("vdb", "/images/vdb.qcow2", BlockDriver.QCOW2)]
    with open_images(images, reporter=Recorder()) as opened:
        assert [(node.disk.dev, node.disk.path) for node in opened.disk_nodes()] == [one[:2] for one in images]
        assert [node.disk.dev for node in opened.disk_nodes(opened.disks[1:])] == ["vdb"]


def test_plain_image_that_another_program_has_open_is_busy(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused_to_open(monkeypatch, 'Failed to get "write" lock')
    with (
        pytest.raises(BusyError, match=r"Another process, perhaps .* /images/vda.qcow2 open"),
        open_images([("vda", "/images/vda.qcow2", BlockDriver.QCOW2)], reporter=Recorder()),
    ):
        pass


def test_images_of_a_domain_that_is_running_are_not_looked_for(domain: Any) -> None:
    assert len(identities(domain)) == 2
    domain.active = True
    assert identities(domain) == frozenset()


def test_image_that_cannot_be_found_hides_no_other(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(disk: Any, *, volume_path: object) -> Any:
        if disk.dev == "vda":
            raise DiskError("vda", "it is gone")
        return (image_file(disk),)

    monkeypatch.setattr(backing_chain, "images_of", found)
    assert len(identities(domain)) == 1
