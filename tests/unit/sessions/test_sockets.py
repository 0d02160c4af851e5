"""The sockets of a session are in a directory that only its owner enters, and short enough for the kernel."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbackup.errors import StorageError, UsageError
from vbackup.sessions import sockets

ID = "20261123T120001Z-000001"


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vbs-", dir="/tmp") as path:
        yield Path(path)


def test_directory_is_its_owner_s_alone_and_goes_with_the_session(short: Path) -> None:
    made = sockets.path_of(short / "vbackup" / "sessions", ID)
    sockets.make_directory(made)
    for path in (made, made.parent, made.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (made / "nbd.sock").touch()
    sockets.remove_directory(made)
    assert not made.exists()
    sockets.remove_directory(made)


def test_only_the_directory_of_a_session_is_removed(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not the directory of a session"):
        sockets.remove_directory(tmp_path)
    assert tmp_path.exists()


def test_path_that_the_kernel_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too long for a socket"):
        sockets.path_of(tmp_path / ("x" * 100), ID)


def test_unix_socket_is_its_owner_s_alone(short: Path) -> None:
    path = short / "nbd.sock"
    with sockets.listen_unix(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(StorageError, match="Cannot listen on"):
        sockets.listen_unix(path)


def test_server_is_one_that_greets(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_GREETING_S", 0.2)
    path = short / "nbd.sock"
    assert not sockets.is_served(path)
    with sockets.listen_unix(path):
        assert not sockets.is_served(path)  # nobody accepts
    path.unlink()
    for greeting, is_served in ((b"NBDMAGIC", True), (b"SSH-2.0-", False)):
        with sockets.listen_unix(path) as listening:

            def greet(listening: socket.socket = listening, greeting: bytes = greeting) -> None:
                client, _ = listening.accept()
                with client:
                    client.sendall(greeting)

            thread = threading.Thread(target=greet)
            thread.start()
            assert sockets.is_served(path) == is_served
            thread.join()
        path.unlink()


def test_tcp_socket_listens_where_it_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with sockets.listen_tcp(f"127.0.0.1:{port}") as listening:
        assert listening.getsockname() == ("127.0.0.1", port)
        with pytest.raises(StorageError, match="Cannot listen on"):
            sockets.listen_tcp(f"127.0.0.1:{port}")
    with pytest.raises(UsageError, match="no address of this host"):
        sockets.listen_tcp("host.invalid:10809")


def test_connections_that_a_server_has_accepted_are_seen(short: Path) -> None:
    path, other = short / "nbd.sock", short / "second name.sock"
    with sockets.listen_unix(path) as listening:
        os.link(path, other)
        assert not sockets.has_connections(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(other))
            accepted, _ = listening.accept()
            path.unlink()
            assert sockets.has_connections(path)
            assert not sockets.has_connections(other)
            accepted.close()
        assert not sockets.has_connections(path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with sockets.listen_tcp(address) as listening:
        assert not sockets.has_tcp_connections(address)
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert sockets.has_tcp_connections(address)
        assert not sockets.is_served_at("127.0.0.1:1")


def test_address_has_a_host_and_a_port() -> None:
    assert sockets.split_address("192.0.2.7:10809") == ("192.0.2.7", 10809)
    assert sockets.split_address("[2001:db8::7]:1") == ("2001:db8::7", 1)
    for wrong in ("", "host", "host:", ":1", "host:0", "host:65536", "host:x", "host:-1"):
        with pytest.raises(UsageError, match="is not HOST:PORT"):
            sockets.split_address(wrong)


def test_default_is_root_s_or_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VBACKUP_SOCKETS", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert sockets.default_directory() == Path("/run/user/1000/vbackup/sessions")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(StorageError, match="XDG_RUNTIME_DIR is not set"):
        sockets.default_directory()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert sockets.default_directory() == Path("/run/vbackup/sessions")
    monkeypatch.setenv("VBACKUP_SOCKETS", "/x")
    assert sockets.default_directory() == Path("/x")
