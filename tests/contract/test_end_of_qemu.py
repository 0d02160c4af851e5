"""QEMU dies, or was never there, or the way to it breaks: an error that vbackup knows."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.conftest import Machine, end, qemu_process
from vbackup.errors import ConnectionLostError, DomainGoneError
from vbackup.qemu.qmp_socket import Socket


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Short enough for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="vb-", dir="/tmp") as directory:
        yield Path(directory)


def test_every_command_after_the_death_of_qemu_tells_of_it(doomed: Machine) -> None:
    assert doomed.monitor.execute("query-jobs") == []
    doomed.kill()
    for _ in range(2):
        with pytest.raises((DomainGoneError, ConnectionLostError)):
            doomed.monitor.execute("query-jobs")


def test_next_event_after_the_death_of_qemu_is_none(doomed: Machine) -> None:
    doomed.kill()
    assert doomed.monitor.next_event(0.05) is None


def test_socket_without_a_qemu_behind_it_is_an_error(short_path: Path) -> None:
    with pytest.raises(ConnectionLostError, match="no-such-socket"), Socket(os.fspath(short_path / "no-such-socket")):
        pass


def test_socket_can_be_left_after_the_death_of_qemu(short_path: Path) -> None:
    with qemu_process(short_path / "qmp") as process, Socket(os.fspath(short_path / "qmp")):
        end(process)


def test_socket_connects_again_after_a_loss(short_path: Path) -> None:
    """vbackup.qemu.monitor.Monitor promises it for the next call."""
    to, near = short_path / "qmp", short_path / "relay"
    with qemu_process(to), relay(near, to) as cut, Socket(os.fspath(near)) as monitor:
        assert monitor.execute("query-jobs") == []
        cut()
        with pytest.raises(ConnectionLostError):
            monitor.execute("query-jobs")
        assert monitor.execute("query-jobs") == []


@contextmanager
def relay(path: Path, to: Path) -> Iterator[Callable[[], None]]:
    """A way to the socket ``to`` that can be cut."""
    connections: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                near = listener.accept()[0]
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(os.fspath(to))
            connections.extend((near, far))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=pump, args=(one, other), daemon=True).start()

    def pump(one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
        except OSError:
            pass

    def cut() -> None:
        for connection in connections:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        connections.clear()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield cut
        cut()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
