"""The NVRAM store is read as it is at one moment, or the reason is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit import builders
from vbackup.domain import domain_xml, nvram
from vbackup.domain.nvram import NvramError
from vbackup.errors import QmpError

MIB = 1024 * 1024


class Handle:
    """A domain and its host."""

    def __init__(self, uri: str = "qemu:///system", *, is_local: bool = True) -> None:
        self.host = self
        self.real_uri, self.is_local = uri, is_local
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


def read(path: Path | None, *, trouble: str | None = None, monitor: Any = None, handle: Handle | None = None) -> Any:
    domain = builders.domain(nvram_path=None if path is None else str(path), nvram_trouble=trouble)
    given: Any = handle or Handle()
    return nvram.read(given, domain, monitor)


def refusal(*arguments: Any, **more: Any) -> tuple[str, bool]:
    with pytest.raises(NvramError) as caught:
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
    monkeypatch.setattr(nvram, "read_regular", lambda _path, *, max_bytes: next(readings))
    assert read(tmp_path / "nvram") == b"new new"
    assert list(readings) == []


def test_store_that_never_stays_the_same_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvram").touch()
    monkeypatch.setattr(nvram, "read_regular", lambda _path, *, max_bytes: os.urandom(16))
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
    said, is_unexpected = refusal(None, trouble=domain_xml.NVRAM_UNNAMED, handle=handle)
    assert said.endswith("; a backup of the running domain has them")
    assert not is_unexpected
    (tmp_path / "lib/qemu/nvram").mkdir(parents=True)
    (tmp_path / "lib/qemu/nvram/web_VARS.fd").write_bytes(b"variables")
    assert read(None, trouble=domain_xml.NVRAM_UNNAMED, handle=handle) == b"variables"


@pytest.mark.parametrize("uri", ["qemu:///session", "test:///default"])
def test_store_of_another_driver_is_not_guessed(uri: str) -> None:
    assert "does not name" in refusal(None, trouble=domain_xml.NVRAM_UNNAMED, handle=Handle(uri))[0]


def test_store_in_no_file_is_told_as_it_is() -> None:
    assert refusal(None, trouble="it is on the moon") == ("it is on the moon", False)


# qcow2


def test_qcow2_store_of_a_domain_that_is_off_is_its_file(tmp_path: Path) -> None:
    data = builders.qcow2_image(MIB)
    (tmp_path / "nvram").write_bytes(data)
    assert read(tmp_path / "nvram") == data


def test_qemu_writes_the_tables_of_a_qcow2_store_before_each_reading(tmp_path: Path) -> None:
    """Until then the file can lack what the guest has written."""
    path = tmp_path / "nvram"
    path.write_bytes(builders.qcow2_image(MIB))
    changes = iter([b"one", b"two", b"two"])

    def flush() -> str:
        path.write_bytes(builders.qcow2_image(MIB, offset_4096=next(changes)))
        return ""

    qemu = Qemu(path, flush)
    assert read(path, monitor=qemu) == builders.qcow2_image(MIB, offset_4096=b"two")
    assert qemu.flushes == ["qemu-io -d /machine/system.flash1 flush"] * 3


def test_qcow2_store_that_libvirt_names_by_a_link_is_flushed(tmp_path: Path) -> None:
    (tmp_path / "nvram").write_bytes(builders.qcow2_image(MIB))
    (tmp_path / "link").symlink_to("nvram")
    assert read(tmp_path / "link", monitor=Qemu(tmp_path / "link")) == builders.qcow2_image(MIB)


def test_qemu_that_refuses_to_flush_the_store_does_not_end_the_backup(tmp_path: Path) -> None:
    def refuse() -> str:
        raise QmpError("human-monitor-command", "CommandNotFound", "The command has been disabled")

    (tmp_path / "nvram").write_bytes(builders.qcow2_image(MIB))
    told, is_unexpected = refusal(tmp_path / "nvram", monitor=Qemu(tmp_path / "nvram", refuse))
    assert "could not write the tables" in told
    assert is_unexpected


@pytest.mark.parametrize(
    ("opened", "answer", "said"),
    [("nvram", "flush failed", "could not write the tables"), ("other", "", "does not have the NVRAM store")],
)
def test_qcow2_store_that_qemu_cannot_flush_is_told(tmp_path: Path, opened: str, answer: str, said: str) -> None:
    (tmp_path / "nvram").write_bytes(builders.qcow2_image(MIB))
    told, is_unexpected = refusal(tmp_path / "nvram", monitor=Qemu(tmp_path / opened, lambda: answer))
    assert said in told
    assert is_unexpected


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (builders.qcow2_image(MIB, backing="base.qcow2"), "has a part of its data in another file"),
        (builders.qcow2_image(MIB, offset_72=(4).to_bytes(8, "big")), "has a part of its data in another file"),
        (builders.qcow2_image(MIB)[:80], "it is not a qcow2 image"),
    ],
    ids=["backing file", "data file", "torn"],
)
def test_qcow2_store_that_is_not_all_of_it_is_told(tmp_path: Path, image: bytes, said: str) -> None:
    (tmp_path / "nvram").write_bytes(image)
    assert said in refusal(tmp_path / "nvram")[0]
