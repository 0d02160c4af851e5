"""The client of NBD reads what QEMU's server exports: data, zeros that are not sent, and errors."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.builders import Recorder
from vbackup.errors import MalformedError, StorageError
from vbackup.qemu import nbd_client
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_client import NbdClient
from vbackup.qemu.storage_daemon import StorageDaemon

MIB = 1024 * 1024


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[StorageDaemon, Path]]:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(8 * MIB + 512)], check=True)
    writes = ["write -P 1 1M 100k", "write -P 2 3M 2M", "write -z 4M 64k", "write -P 3 8M 512"]
    argv = ["qemu-io", "-f", "qcow2", *(word for write in writes for word in ("-c", write)), str(image)]
    subprocess.run(argv, check=True, capture_output=True)
    nodes = [
        {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": str(image)}},
        {
            "driver": "blkdebug",
            "node-name": "bad",
            "image": "disk",
            "inject-error": [{"event": "none", "iotype": "read", "errno": 5, "sector": 3 * 2048}],
        },
    ]
    path = tmp_path / "nbd"
    with StorageDaemon(Recorder(), nodes=nodes) as daemon:
        daemon.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(path)}}})
        for name in ("disk", "bad"):
            daemon.execute("block-export-add", {"type": "nbd", "id": name, "node-name": name, "name": name})
        yield daemon, path
        daemon.execute("nbd-server-stop")


def content(client: NbdClient, start_bytes: int, length_bytes: int) -> bytes:
    read = bytearray()
    for offset, length, data in client.read(start_bytes, length_bytes):
        assert offset == start_bytes + len(read)
        read += bytes(length) if data is None else data
        assert data is None or len(data) == length
    return bytes(read)


def test_content_is_that_of_the_disk(server: tuple[StorageDaemon, Path]) -> None:
    with NbdClient(NbdAddress("disk", path=server[1])) as client:
        expected = bytearray(8 * MIB + 512)
        for start, length, value in ((MIB, 100 * 1024, 1), (3 * MIB, 2 * MIB, 2), (8 * MIB, 512, 3)):
            expected[start : start + length] = bytes([value]) * length
        expected[4 * MIB : 4 * MIB + 65536] = bytes(65536)
        read = b"".join(
            content(client, start, min(nbd_client.MAX_READ_BYTES, len(expected) - start))
            for start in range(0, len(expected), nbd_client.MAX_READ_BYTES)
        )
        assert read == expected
        assert content(client, 3 * MIB - 1000, 3000) == bytes(1000) + b"\2" * 2000


def test_zeros_are_not_sent(server: tuple[StorageDaemon, Path]) -> None:
    with NbdClient(NbdAddress("disk", path=server[1])) as client:
        assert list(client.read(0, MIB)) == [(0, MIB, None)]
        assert [data is None for _, _, data in client.read(4 * MIB - 65536, 3 * 65536)] == [False, True, False]


def test_error_of_the_storage_names_the_place(server: tuple[StorageDaemon, Path]) -> None:
    with NbdClient(NbdAddress("bad", path=server[1])) as client:
        assert content(client, 0, MIB) == bytes(MIB)
        with pytest.raises(StorageError, match="bad cannot be read at byte 3145728: QEMU closed the connection"):
            content(client, 3 * MIB, 65536)


def test_export_that_is_not_there_and_server_that_is_none(server: tuple[StorageDaemon, Path], tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="refuses to export other"), NbdClient(NbdAddress("other", path=server[1])):
        pass
    with pytest.raises(StorageError, match="No such file"), NbdClient(NbdAddress("disk", path=tmp_path / "none")):
        pass


def test_server_that_ends_in_the_middle(server: tuple[StorageDaemon, Path]) -> None:
    daemon, path = server
    with NbdClient(NbdAddress("disk", path=path)) as client:
        daemon.execute("nbd-server-stop")
        with pytest.raises(StorageError, match="cannot be read at byte 0"):
            content(client, 0, 512)
    daemon.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(path)}}})
