"""A socket is made only where nothing is that anybody has; addresses are what QEMU and libnbd read."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vbackup.errors import BusyError, StorageError, UsageError
from vbackup.operations import serve


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
