"""An export of QEMU's as a layer of blocks: data, zeros, discards, an odd end, and a server that has gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exports import exported, image_with_changes, on_socket
from vbackup.errors import ChainError
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_layer import NbdLayer
from vbackup.qemu.qcow2_layer import TABLE_BYTES
from vbackup.repository import block_list
from vbackup.repository.block_scan import Scan

KIB, MIB = 1024, 1024**2
SIZE = TABLE_BYTES + 8 * MIB + 512
CHANGES = ["write -P 3 64k 200k", "write -z 1M 128k", "discard 2M 1M", f"write -P 5 {SIZE - 512} 512"]


def test_blocks_are_those_of_the_disk(tmp_path: Path) -> None:
    image = image_with_changes(tmp_path, SIZE, before=["write -P 1 0 4M"], changes=CHANGES)
    path = tmp_path / "nbd"
    algorithm = block_list.best_algorithm()
    with exported(image, on_socket(path)), NbdLayer(NbdAddress("vda", path=path)) as layer:
        assert layer.virtual_size_bytes == SIZE
        assert list(layer.tables()) == [0, 1]
        with Scan(layer, algorithm, check=lambda: None) as scan:
            first, last = scan.segment(0), scan.segment(1)
    blocks = {number for number in range(64) if first.data >> number & 1}
    assert blocks == {*range(64)} - {16, 17} - {*range(32, 48)}
    one = algorithm.digest(bytes([1]) * 64 * KIB)
    assert first.digests[:32] == one
    assert first.digests[32:64] == algorithm.digest(bytes([3]) * 64 * KIB)
    assert last.data == 1 << 128
    assert last.digests == algorithm.digest((bytes([5]) * 512).ljust(64 * KIB, b"\0"))


def test_server_that_has_gone(tmp_path: Path) -> None:
    image = image_with_changes(tmp_path, MIB, before=["write -P 1 0 1M"], changes=[])
    path = tmp_path / "nbd"
    with exported(image, on_socket(path)):
        layer = NbdLayer(NbdAddress("vda", path=path)).__enter__()
        [extent] = layer.extents(0)
    with pytest.raises(ChainError):
        layer.read(extent, 0, 1)
    with pytest.raises(ChainError):
        list(layer.tables())
    layer.__exit__(None, None, None)
