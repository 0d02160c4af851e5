"""Who may have an image open, and the turns of backups that share one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vbackup.domain import access
from vbackup.domain.access import LOCAL_FILE_SYSTEMS, ImagesInUse, doubt, file_system_of, has_times
from vbackup.errors import InterruptedBySignalError
from vbackup.model import BlockDriver
from vbackup.qemu.backing_chain import Image
from vbackup.stop import Stop

T, A, B = (1, 1), (1, 2), (1, 3)
WAIT_S = 10


def image(path: str, *, block: bool = False) -> Image:
    return Image(path, BlockDriver.QCOW2, block, T)


def test_file_system_is_that_of_the_file_s_mount(tmp_path: Path) -> None:
    assert file_system_of("/proc/version") == "proc"
    assert file_system_of(str(tmp_path)) in LOCAL_FILE_SYSTEMS
    assert file_system_of(str(tmp_path / "gone")) is None


def test_block_device_may_be_open_elsewhere() -> None:
    assert "is a block device" in (doubt(image("/dev/x", block=True)) or "")


@pytest.mark.parametrize(
    "name", ["nfs", "nfs4", "cifs", "smb3", "ceph", "gfs2", "ocfs2", "9p", "virtiofs", "fuse.sshfs"]
)
def test_file_system_that_several_hosts_can_have_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(access, "file_system_of", lambda _path: name)
    assert f"({name})" in (doubt(image("/x")) or "")


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay"])
def test_file_system_of_one_host_is_trusted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(access, "file_system_of", lambda _path: name)
    assert doubt(image("/x")) is None


def test_file_system_that_is_not_known_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "file_system_of", lambda _path: None)
    assert "of an unknown type" in (doubt(image("/x")) or "")


@pytest.mark.parametrize(
    ("name", "block", "known"),
    [("nfs4", False, True), ("fuse.sshfs", False, True), ("fuse", False, False), ("x", True, False)],
)
def test_times_that_are_made_up_show_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, block: bool, known: bool
) -> None:
    monkeypatch.setattr(access, "file_system_of", lambda _path: name)
    monkeypatch.setattr(Path, "is_block_device", lambda _path: block)
    assert has_times("/x") is known


def claim(images: ImagesInUse, domain: str, wanted: dict[tuple[int, int], bool], waits: list[str], stop: Stop) -> None:
    images.claim(domain, wanted, waits_for=lambda other: waits.append(f"{domain} for {other}"), check=stop.check)


def test_readers_do_not_wait_and_a_writer_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "TICK_S", 0.01)
    images, waits, stop = ImagesInUse(), list[str](), Stop()
    is_writing = threading.Event()

    def write() -> None:
        with images.claims("template"):
            claim(images, "template", {T: True}, waits, stop)
            is_writing.set()

    with images.claims("one"):
        claim(images, "one", {A: True, T: False}, waits, stop)
        with images.claims("two"):
            claim(images, "two", {B: True, T: False}, waits, stop)
            assert waits == []
            writer = threading.Thread(target=write)
            writer.start()
        assert not is_writing.wait(0.05)
    writer.join(WAIT_S)
    assert is_writing.is_set()
    assert waits in (["template for one"], ["template for two"])


def test_reader_waits_for_a_writer_until_the_command_is_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "TICK_S", 0.01)
    images, waits, stop = ImagesInUse(), list[str](), Stop()
    stop.request(15)
    with images.claims("template"):
        claim(images, "template", {T: True}, waits, Stop())
        with pytest.raises(InterruptedBySignalError):
            claim(images, "clone", {A: True, T: False}, waits, stop)
    claim(images, "clone", {A: True, T: False}, waits, stop)
    assert waits == ["clone for template"]


def test_domain_that_has_some_images_already_never_waits() -> None:
    images, waits = ImagesInUse(), list[str]()
    claim(images, "one", {A: True}, waits, Stop())
    claim(images, "two", {B: True}, waits, Stop())
    claim(images, "two", {A: True}, waits, Stop())
    assert waits == []


def test_nobody_waits_in_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    images, waits = ImagesInUse({}), list[str]()
    claim(images, "one", {A: True}, waits, Stop())
    claim(images, "two", {A: True}, waits, Stop())
    assert waits == []
