"""The NVRAM store is read as it is at one moment, or the reason is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit import builders
from vbackup.domain import host_files, nvram, nvram_xml
from vbackup.domain.host_files import FilesHere
from vbackup.domain.nvram import Nvram
from vbackup.domain.state_files import UnsavedError
from vbackup.errors import MonitorError, QmpError, StorageError
from vbackup.model import ImageFormat

MIB = 1024 * 1024


class Handle:
    """A domain and its host."""

    def __init__(self, uri: str = "qemu:///system", *, is_local: bool = True) -> None:
        self.host = self
        self.real_uri, self.is_local, self.has_link = uri, is_local, False
        self.is_embedded = "embed" in uri


class Qemu:
    """A QEMU that has one image open; ``on_flush`` is called when it is asked to flush."""

    def __init__(self, path: Path, on_flush: Any = lambda: "") -> None:
        self.path = path
        self.on_flush = on_flush
        self.flushes: list[str] = []

    def execute(self, command: str, arguments: Any = None) -> Any:
        if command == "query-block":
            return [
                {"device": "", "qdev": "/machine/system.flash0", "inserted": {"file": "/CODE.fd"}},
                {"device": "", "qdev": "/machine/system.flash1", "inserted": {"file": str(self.path)}},
                {"device": "cd", "qdev": "ide0"},
            ]
        assert command == "human-monitor-command"
        self.flushes.append(arguments["command-line"])
        return self.on_flush()


def read(
    path: Path | None,
    *,
    trouble: str | None = None,
    monitor: Any = None,
    handle: Handle | None = None,
    image_format: ImageFormat = ImageFormat.RAW,
) -> Any:
    domain = builders.domain(
        nvram_path=None if path is None else str(path), nvram_trouble=trouble, nvram_format=image_format
    )
    given: Any = handle or Handle()
    found = nvram.read(given, domain, monitor, host_files.of(given))
    return None if found is None else found.data


def refusal(*arguments: Any, **more: Any) -> tuple[str, bool]:
    with pytest.raises(UnsavedError) as caught:
        read(*arguments, **more)
    return str(caught.value), caught.value.is_unexpected


def test_domain_without_nvram_has_none() -> None:
    assert read(None) is None


def test_store_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "nvram").write_bytes(b"variables" * MIB)
    assert read(tmp_path / "nvram") == b"variables" * MIB
    (tmp_path / "link").symlink_to("nvram")
    assert read(tmp_path / "link") == b"variables" * MIB


def test_store_that_the_guest_writes_to_is_read_until_it_is_the_same_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read first is half of the old and half of the new."""
    readings = iter([b"old new", b"new new", b"new new"])
    (tmp_path / "nvram").touch()
    monkeypatch.setattr(host_files, "read_regular", lambda _path, *, max_bytes: next(readings))
    assert read(tmp_path / "nvram") == b"new new"
    assert list(readings) == []


def test_store_that_never_stays_the_same_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvram").touch()
    monkeypatch.setattr(host_files, "read_regular", lambda _path, *, max_bytes: os.urandom(16))
    assert refusal(tmp_path / "nvram") == (f"the NVRAM store {tmp_path}/nvram changed each time it was read", True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (Path.mkdir, "cannot be read: it is a directory, not a regular file"),
        (os.mkfifo, "cannot be read: it is a FIFO, not a regular file"),
        (lambda path: path.write_bytes(bytes(17)), "is larger than any firmware's"),
    ],
    ids=["missing", "directory", "FIFO", "huge"],
)
def test_store_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, said: str
) -> None:
    monkeypatch.setattr(nvram, "MAX_NVRAM_BYTES", 16)
    make(tmp_path / "nvram")
    assert refusal(tmp_path / "nvram") == (f"the NVRAM store {tmp_path}/nvram {said}", True)


def test_store_on_another_host_is_told() -> None:
    assert refusal(Path("/x"), handle=Handle(is_local=False)) == ("the NVRAM store /x is on another host", True)


# where libvirt names no file


def test_store_of_a_domain_that_is_off_is_found_where_libvirt_puts_it(tmp_path: Path) -> None:
    handle = Handle(f"qemu:///embed?root={tmp_path}")
    said, is_unexpected = refusal(None, trouble=nvram_xml.UNNAMED, handle=handle)
    assert said.endswith("; a backup of the running domain has them")
    assert not is_unexpected
    (tmp_path / "lib/qemu/nvram").mkdir(parents=True)
    (tmp_path / "lib/qemu/nvram/web_VARS.fd").write_bytes(b"variables")
    assert read(None, trouble=nvram_xml.UNNAMED, handle=handle) == b"variables"


@pytest.mark.parametrize("uri", ["qemu:///session", "test:///default"])
def test_store_of_another_driver_is_not_guessed(uri: str) -> None:
    assert "does not name" in refusal(None, trouble=nvram_xml.UNNAMED, handle=Handle(uri))[0]


def test_store_in_no_file_is_told_as_it_is() -> None:
    assert refusal(None, trouble="it is on the moon") == ("it is on the moon", False)


# qcow2


def test_qcow2_store_of_a_domain_that_is_off_is_its_file(tmp_path: Path) -> None:
    data = builders.qcow2_image(MIB)
    (tmp_path / "nvram").write_bytes(data)
    assert read(tmp_path / "nvram", image_format=ImageFormat.QCOW2) == data


@pytest.mark.parametrize("monitor", [None, Qemu(Path("/not this one"))], ids=["off", "running"])
def test_header_that_the_guest_wrote_to_a_raw_store_is_not_heeded(tmp_path: Path, monitor: Any) -> None:
    """In a qcow2 image it would name a file of the host."""
    data = builders.qcow2_image(MIB, backing="/etc/shadow")
    (tmp_path / "nvram").write_bytes(data)
    assert read(tmp_path / "nvram", monitor=monitor) == data


def test_header_that_changes_while_it_is_read_is_checked_as_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has a harmless header whenever it is opened for itself."""
    (tmp_path / "nvram").write_bytes(builders.qcow2_image(MIB))
    harmful = builders.qcow2_image(MIB, backing="/etc/shadow")
    monkeypatch.setattr(host_files, "read_regular", lambda _path, *, max_bytes: harmful)
    assert "another file" in refusal(tmp_path / "nvram", image_format=ImageFormat.QCOW2)[0]


def test_qemu_writes_the_tables_of_a_qcow2_store_before_each_reading(tmp_path: Path) -> None:
    """Until then the file can lack what the guest has written."""
    path = tmp_path / "nvram"
    path.write_bytes(builders.qcow2_image(MIB))
    changes = iter([b"one", b"two", b"two"])

    def flush() -> str:
        path.write_bytes(builders.qcow2_image(MIB, offset_4096=next(changes)))
        return ""

    qemu = Qemu(path, flush)
    assert read(path, monitor=qemu, image_format=ImageFormat.QCOW2) == builders.qcow2_image(MIB, offset_4096=b"two")
    assert qemu.flushes == ["qemu-io -d /machine/system.flash1 flush"] * 3


def test_qcow2_store_that_libvirt_names_by_a_link_is_flushed(tmp_path: Path) -> None:
    (tmp_path / "nvram").write_bytes(builders.qcow2_image(MIB))
    (tmp_path / "link").symlink_to("nvram")
    found = read(tmp_path / "link", monitor=Qemu(tmp_path / "link"), image_format=ImageFormat.QCOW2)
    assert found == builders.qcow2_image(MIB)


def test_qemu_that_refuses_to_flush_the_store_does_not_end_the_backup(tmp_path: Path) -> None:
    def refuse() -> str:
        raise QmpError("human-monitor-command", "CommandNotFound", "The command has been disabled")

    (tmp_path / "nvram").write_bytes(builders.qcow2_image(MIB))
    qemu = Qemu(tmp_path / "nvram", refuse)
    told, is_unexpected = refusal(tmp_path / "nvram", monitor=qemu, image_format=ImageFormat.QCOW2)
    assert "could not write the tables" in told
    assert is_unexpected


@pytest.mark.parametrize(
    ("opened", "answer", "said"),
    [("nvram", "flush failed", "could not write the tables"), ("other", "", "does not have the NVRAM store")],
)
def test_qcow2_store_that_qemu_cannot_flush_is_told(tmp_path: Path, opened: str, answer: str, said: str) -> None:
    (tmp_path / "nvram").write_bytes(builders.qcow2_image(MIB))
    qemu = Qemu(tmp_path / opened, lambda: answer)
    told, is_unexpected = refusal(tmp_path / "nvram", monitor=qemu, image_format=ImageFormat.QCOW2)
    assert said in told
    assert is_unexpected


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (builders.qcow2_image(MIB, backing="base.qcow2"), "has a part of its data in another file"),
        (builders.qcow2_image(MIB, offset_72=(4).to_bytes(8, "big")), "has a part of its data in another file"),
        (builders.qcow2_image(MIB)[:80], "it is not a qcow2 image"),
        (b"variables", "it is not a qcow2 image"),
    ],
    ids=["backing file", "data file", "torn", "raw"],
)
def test_qcow2_store_that_is_not_all_of_it_is_told(tmp_path: Path, image: bytes, said: str) -> None:
    (tmp_path / "nvram").write_bytes(image)
    assert said in refusal(tmp_path / "nvram", image_format=ImageFormat.QCOW2)[0]


# in no file


def test_volume_is_read_where_its_pool_has_it(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"variables")
    handle: Any = Handle()
    domain = builders.domain(nvram_volume=("pool", "v"))
    handle.volume_path = lambda pool, volume: {("pool", "v"): f"{tmp_path}/v"}[pool, volume]
    found = nvram.read(handle, domain, None, host_files.of(handle))
    assert found == Nvram(b"variables", f"{tmp_path}/v")
    handle.volume_path = lambda _pool, _volume: "rbd/v"
    with pytest.raises(UnsavedError, match="no file of this host"):
        nvram.read(handle, domain, None, host_files.of(handle))

    def gone(_pool: str, _volume: str) -> str:
        raise MonitorError("libvirt could not look up volume v.")

    handle.volume_path = gone
    with pytest.raises(UnsavedError, match=r"the NVRAM store is a volume: .*look up volume v$"):
        nvram.read(handle, domain, None, host_files.of(handle))
    handle.is_local = False
    with pytest.raises(UnsavedError, match="pool/v is on another host"):
        nvram.read(handle, domain, None, host_files.of(handle))


def export(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Let qemu-img find that on the network."""

    def copy(url: str, output: Path, **_more: Any) -> None:
        assert url == "nbd://h/v"
        output.write_bytes(data)

    monkeypatch.setattr(nvram.qemu_img, "copy_bytes", copy)


@pytest.mark.parametrize("data", [b"variables", builders.qcow2_image(MIB, backing="/etc/shadow")])
def test_export_is_read_by_qemu_img(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    handle: Any = Handle()
    export(monkeypatch, data)
    domain = builders.domain(nvram_url="nbd://h/v")
    assert nvram.read(handle, domain, None, host_files.of(handle)) == Nvram(data, "nbd://h/v")


def test_export_in_qcow2_format_is_read_after_qemu_has_written_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    handle: Any = Handle()
    data = builders.qcow2_image(MIB)
    export(monkeypatch, data)
    qemu: Any = Qemu(Path("nbd://h/v"))
    qemu.path = "nbd://h/v"
    domain = builders.domain(nvram_url="nbd://h/v", nvram_format=ImageFormat.QCOW2)
    assert nvram.read(handle, domain, qemu, FilesHere()) == Nvram(data, "nbd://h/v")
    assert len(qemu.flushes) == 2
    export(monkeypatch, builders.qcow2_image(MIB, backing="/etc/shadow"))
    with pytest.raises(UnsavedError, match="another file"):
        nvram.read(handle, domain, qemu, FilesHere())


def test_export_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_more: Any) -> None:
        raise StorageError("Cannot copy nbd://h/v: it does not answer.")

    monkeypatch.setattr(nvram.qemu_img, "copy_bytes", refuse)
    handle: Any = Handle()
    with pytest.raises(UnsavedError, match=r"the NVRAM store nbd://h/v: Cannot copy .*: it does not answer$"):
        nvram.read(handle, builders.domain(nvram_url="nbd://h/v"), None, FilesHere())
