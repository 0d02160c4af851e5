"""What may not be written, or cannot be, is opened for reading only, with a true reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import Recorder
from tests.unit.domain.conftest import Daemon
from vbackup import process
from vbackup.domain import access
from vbackup.domain.access import Access, ImagesInUse
from vbackup.domain.source import open_source
from vbackup.errors import BusyError, DiskError, QmpError, UnsuitableError
from vbackup.model import BlockDriver
from vbackup.qemu import backing_chain
from vbackup.qemu.backing_chain import Image

LOCKED = 'Failed to get "write" lock'


def refusing(*descriptions: str) -> Callable[[], None]:
    """Refuse once with each of them; for ever with the last."""
    left = list(descriptions)

    def refuse() -> None:
        raise QmpError("blockdev-add", "GenericError", left.pop(0) if len(left) > 1 else left[0])

    return refuse


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (LOCKED, "its image /images/vda.qcow2 is open in another process, so it is only read"),
        ("Could not open '/images/vda.qcow2': Read-only file system", "cannot be written (Read-only file system)"),
        ("Could not open '/images/vda.qcow2': Operation not permitted", "cannot be written (Operation not permitted)"),
        ("Could not open '/images/vda.qcow2': Permission denied", "cannot be written (Permission denied)"),
    ],
)
def test_image_that_cannot_be_written_is_read(
    domain: Any, monkeypatch: pytest.MonkeyPatch, said: str, reason: str
) -> None:
    monkeypatch.setattr(Daemon, "writing", refusing(said))
    with open_source(domain, reporter=Recorder()) as opened:
        daemon: Any = opened.monitor
        node, _ = opened.disk_nodes(opened.domain.disks)
        assert daemon.read_only == {"vda": True, "vdb": True}
        assert reason in (node.read_only_reason or "")
        assert not node.bears_checkpoints
        with pytest.raises(UnsuitableError, match="so it is only read"):
            opened.writable(node.top)


def test_who_has_it_open_is_named(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Daemon, "writing", refusing(LOCKED))
    monkeypatch.setattr(process, "users_of", lambda _path: ["qemu-system-x86 (pid 7)"])
    with open_source(domain, reporter=Recorder()) as opened:
        (node, _) = opened.disk_nodes(opened.domain.disks)
        assert "is open in qemu-system-x86 (pid 7), so it is only read" in (node.read_only_reason or "")
    monkeypatch.setattr(Daemon, "opening", refusing(LOCKED))
    said = r"The image /images/vda.qcow2 is open in qemu-system-x86 \(pid 7\), .* run the same command again when"
    with pytest.raises(BusyError, match=said), open_source(domain, reporter=Recorder()) as opened:
        opened.disk_nodes(opened.domain.disks)


def test_reader_that_is_soon_gone_costs_no_full(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [1]

    def refuse_once() -> None:
        if left:
            left.pop()
            raise QmpError("blockdev-add", "GenericError", LOCKED)

    monkeypatch.setattr(Daemon, "writing", refuse_once)
    with open_source(domain, reporter=Recorder()) as opened:
        assert [node.read_only_reason for node in opened.disk_nodes(opened.domain.disks)] == [None, None]


def test_image_that_is_not_sound_is_an_error_and_not_only_read(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "qcow2: Image is corrupt; cannot be opened read/write"
    monkeypatch.setattr(Daemon, "writing", refusing(said))
    with pytest.raises(DiskError, match="Image is corrupt"), open_source(domain, reporter=Recorder()) as opened:
        opened.disk_nodes(opened.domain.disks)


@pytest.mark.parametrize("exclusive", [False, True])
def test_image_that_another_host_may_have_is_written_only_if_the_user_knows_better(
    domain: Any, monkeypatch: pytest.MonkeyPatch, exclusive: bool
) -> None:
    monkeypatch.setattr(access, "doubt", lambda _image: "is on NFS")
    with open_source(domain, reporter=Recorder(), access=Access(exclusive)) as opened:
        daemon: Any = opened.monitor
        node, _ = opened.disk_nodes(opened.domain.disks)
        assert daemon.read_only["vda"] is not exclusive
        assert (opened.reason_not_to_write(node.top) is None) is exclusive
        if not exclusive:
            assert "/images/vda.qcow2 is on NFS, so it is only read" in (node.read_only_reason or "")
            assert "--exclusive" in (node.read_only_reason or "")


def test_image_that_others_of_the_group_have_is_only_read(domain: Any) -> None:
    shared = ImagesInUse({(1, sum(b"/images/vda.qcow2")): {"web", "clone"}})
    with open_source(domain, reporter=Recorder(), access=Access(images_in_use=shared)) as opened:
        vda, vdb = opened.disk_nodes(opened.domain.disks)
        assert "also used by domain clone of the same group" in (vda.read_only_reason or "")
        assert vdb.read_only_reason is None


@pytest.mark.parametrize("written", [False, True])
def test_data_file_that_is_changed_while_it_is_read_is_no_backup(
    domain: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: bool
) -> None:
    """It has the content, while the image, which may get bitmaps, does not change with it."""
    image, data = tmp_path / "vda.qcow2", tmp_path / "vda.raw"
    for path in (image, data):
        path.write_bytes(b"x")
    found = Image(str(image), BlockDriver.QCOW2, is_block_device=False, identity=(1, 1), data_file=str(data))
    monkeypatch.setattr(backing_chain, "images_of", lambda _disk, *, volume_path: (found,))
    if not written:
        monkeypatch.setattr(access, "doubt", lambda _image: "is on NFS")
    with open_source(domain, reporter=Recorder()) as opened:
        opened.disk_nodes(opened.domain.disks[:1])
        with opened.unchanged():
            pass
        with pytest.raises(BusyError, match=f"The image {data} was changed while it was read"), opened.unchanged():
            os.utime(data, (1, 1))
