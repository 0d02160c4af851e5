"""What a guest writes to its consoles is read at once, its end is kept, and nobody else than QEMU can connect."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import wait_for
from vbackup.domain import boot_console
from vbackup.domain.boot_console import BootConsoles
from vbackup.errors import StorageError


@pytest.fixture
def place() -> Iterator[Path]:
    """Short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


def connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(os.fspath(path))
    return made


def test_text_of_all_consoles(place: Path) -> None:
    paths = [place / "console0", place / "console1"]
    with BootConsoles(paths, owner=None) as consoles:
        assert consoles.text() == ""
        with connected(paths[0]) as first, connected(paths[1]) as second:
            first.sendall(b"log")
            wait_for(lambda: consoles.text().startswith("log"), "the first text")
            second.sendall("kä\xff".encode("latin-1"))
            first.sendall(b"in: ")
            wait_for(lambda: consoles.text() == "login: \nk��", "both texts")
        assert consoles.text() == "login: \nk��"  # also when QEMU has ended


def test_end_of_a_long_text_is_kept(place: Path) -> None:
    with BootConsoles([place / "c"], owner=None) as consoles, connected(place / "c") as guest:
        for _ in range(40):
            guest.sendall(b"x" * 65536)
        guest.sendall(b"end")
        wait_for(lambda: consoles.text().endswith("end"), "the end")
        assert len(consoles.text()) == boot_console.KEPT_BYTES


def test_only_the_owner_connects(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((path, uid, gid)))
    with BootConsoles([place / "c"], owner=(64055, 106)):
        assert (place / "c").stat().st_mode & 0o777 == 0o600
    assert given == [(place / "c", 64055, 106)]


def test_socket_that_cannot_be_made_is_told(place: Path) -> None:
    (place / "b").touch()
    with pytest.raises(StorageError, match="listen on"), BootConsoles([place / "a", place / "b"], owner=None):
        pass
    with pytest.raises(StorageError, match="listen on"), BootConsoles([place / ("x" * 110)], owner=None):
        pass
