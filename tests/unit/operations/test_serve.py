"""A socket is made only where nothing is that anybody has; addresses are what QEMU and libnbd read."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from vbackup.errors import BusyError, NoSpaceError, StorageError, UsageError
from vbackup.operations import serve
from vbackup.qemu import qemu_img


def test_name_that_nobody_has_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert serve._socket_path(Path("s")) == tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        listening.listen()
        with pytest.raises(BusyError, match="listens on"):
            serve._socket_path(Path("s"))
    assert serve._socket_path(Path("s")) == tmp_path / "s"  # its process has ended


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(StorageError, match="no socket"):
            serve._socket_path(tmp_path / name)


def test_path_that_cannot_be_a_socket(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="107 bytes"):
        serve._socket_path(tmp_path / ("ä" * 54))
    with pytest.raises(StorageError, match="create it first"):
        serve._socket_path(tmp_path / "missing" / "s")


def test_address_is_quoted() -> None:
    assert serve.uri(Path("/run/a b&c/s"), "vda") == "nbd+unix:///vda?socket=/run/a%20b%26c/s"


def test_overlays_are_not_in_memory_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    assert serve.default_overlays() == Path("/var/tmp")
    monkeypatch.setenv("TMPDIR", "/fast")
    assert serve.default_overlays() == Path("/fast")


def test_overlay_without_room_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        path.unlink()  # as qemu-img does
        raise NoSpaceError("no space left")

    monkeypatch.setattr(qemu_img, "create", full)
    point = SimpleNamespace(size_bytes=lambda _dev: 1 << 20)
    with pytest.raises(NoSpaceError):
        serve._take_writes(point, "vda", tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
