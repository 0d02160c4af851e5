"""Blocks of an export of QEMU's: a stored bitmap, zeros, discards, TLS, and a disk of 1 TiB."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import certificates
from tests.exports import exported, image_with_changes, on_socket
from vbackup.errors import MalformedError, StorageError
from vbackup.qemu import nbd_address
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_blocks import Extent, NbdBlocks
from vbackup.qemu.nbd_client import BITMAP_PREFIX, NbdClient

KIB, MIB, TIB = 1024, 1024**2, 1024**4
SIZE = 8 * MIB + 512
BITMAP = f"{BITMAP_PREFIX}b"


BEFORE = ["write -P 1 0 4M", "write -P 2 6M 1M"]
CHANGES = [
    "write -P 3 64k 4k",
    "write -P 3 200k 200k",
    "write -z -u 1M 128k",
    "discard 2M 1M",
    "write -P 4 5M 64k",
    "write -z 6M 192k",
    "write -P 5 8M 512",
]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[NbdAddress]:
    image = image_with_changes(tmp_path, SIZE, before=BEFORE, changes=CHANGES)
    path = tmp_path / "nbd"
    with exported(image, on_socket(path)):
        yield NbdAddress("vda", path=path)


def test_pull_of_the_changed_extents_onto_a_copy_is_the_disk(served: NbdAddress, tmp_path: Path) -> None:
    copy = tmp_path / "disk.raw"
    with (
        NbdBlocks(served, bitmap=BITMAP) as blocks,
        NbdClient(served) as client,
        copy.open("r+b") as file,
    ):
        extents = list(blocks.changed(0, SIZE))
        for extent in extents:
            file.seek(extent.start_bytes)
            if extent.is_zero:
                file.write(bytes(extent.length_bytes))
                continue
            for _, length, data in client.read(extent.start_bytes, extent.length_bytes):
                file.write(bytes(length) if data is None else data)
    argv = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", "-U", str(copy), str(tmp_path / "disk.qcow2")]
    subprocess.run(argv, check=True, capture_output=True)
    assert [(one.start_bytes // KIB, one.length_bytes / KIB, one.is_zero) for one in extents] == [
        (64, 64, False),
        (192, 256, False),
        (1024, 128, True),
        (2048, 1024, True),
        (5120, 64, False),
        (6144, 192, True),
        (8192, 0.5, False),
    ]


def test_all_data_of_a_full_is_what_does_not_read_as_zeros(served: NbdAddress) -> None:
    with NbdBlocks(served, bitmap=None) as blocks, NbdClient(served) as client:
        extents = list(blocks.changed(0, SIZE))
        assert sum(extent.length_bytes for extent in extents) == SIZE
        assert [extent for extent in extents if not extent.is_zero] == list(blocks.allocated(0, SIZE))
        for extent in extents:
            for start in range(extent.start_bytes, extent.end_bytes, MIB):
                pieces = client.read(start, min(MIB, extent.end_bytes - start))
                assert not extent.is_zero or all(data is None or not any(data) for _, _, data in pieces)


def test_pages_of_any_size_and_offset_are_parts_of_the_whole(served: NbdAddress) -> None:
    with NbdBlocks(served, bitmap=BITMAP) as blocks:
        whole = list(blocks.changed(0, SIZE))
        for start, end in ((0, SIZE), (100 * KIB + 7, 300 * KIB + 5), (SIZE - 1, SIZE), (1088 * KIB, 2 * MIB + 1)):
            expected = [
                Extent(low, high - low, one.is_dirty, one.is_zero)
                for one in whole
                for low, high in [(max(one.start_bytes, start), min(one.end_bytes, end))]
                if low < high
            ]
            assert list(blocks.changed(start, end)) == expected


def test_changes_of_a_disk_of_a_tebibyte_take_less_than_a_second(tmp_path: Path) -> None:
    count = 1500
    places = [number * (TIB // count // 65536) * 65536 for number in range(count)]
    writes = [f"write -P 1 {place} 4k" for place in places]
    image = image_with_changes(tmp_path, TIB, before=[], changes=writes)
    path = tmp_path / "nbd"
    with exported(image, on_socket(path)):
        best = min(_timed(NbdAddress("vda", path=path), places) for _ in range(3))
    print(f"{count} changes of 1 TiB: {best:.3f} s")
    assert best < 1


def _timed(address: NbdAddress, places: Sequence[int]) -> float:
    began = time.monotonic()
    with NbdBlocks(address, bitmap=BITMAP) as blocks:
        assert [extent.start_bytes for extent in blocks.changed(0, TIB)] == list(places)
    return time.monotonic() - began


def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    image = image_with_changes(tmp_path, SIZE, before=BEFORE, changes=CHANGES)
    pki = certificates.make(tmp_path / "pki")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    at = {"type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}}
    address = NbdAddress("vda", host="127.0.0.1", port=port, is_tls=True)
    with exported(image, at, tls=pki):
        context = nbd_address.client_context(pki)
        with NbdClient(address, tls=context) as client:
            assert not client.has_ended()
            [(_, _, data)] = client.read(64 * KIB, 512)
            assert bytes(data or b"") == b"\3" * 512
            assert not client.has_ended()
        (pki / "client-cert.pem").unlink()
        with pytest.raises(StorageError), NbdClient(address, tls=nbd_address.client_context(pki)) as client:
            list(client.read(0, 512))
        with pytest.raises(StorageError, match="needs TLS credentials"), NbdClient(address):
            pass
        plain = NbdAddress("vda", host="127.0.0.1", port=port)
        with pytest.raises(MalformedError, match="refuses"), NbdClient(plain):
            pass
        (pki / "ca-cert.pem").write_text(certificates.other_ca(tmp_path / "other"))
        context = nbd_address.client_context(pki)
        with pytest.raises(StorageError, match="certificate verify failed"), NbdClient(address, tls=context):
            pass
