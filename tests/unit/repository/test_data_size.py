"""An image with all data of a disk needs as much as its block lists say, whatever the layers below still have."""

from __future__ import annotations

from pathlib import Path

from tests.recorded import BLOCK, MIB, Recorded, Write
from vbackup.model import Level
from vbackup.qemu import qemu_img
from vbackup.repository import data_size, verify

SIZE = 8 * MIB
TABLES = SIZE // BLOCK * 10


def bytes_of(made: Recorded) -> int:
    repository = made.repository
    newest = made.backups[-1]
    links = repository.catalogue(newest.domain_uuid).history.links(newest.id, "vda")
    return data_size.image_bytes([(link, verify.image_path(repository, link)) for link in links])


def test_block_that_several_layers_have_counts_once(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "repository")
    made.add({"vda": [Write(0, 4 * BLOCK, 1)]}, level=Level.FULL)
    assert bytes_of(made) == 4 * BLOCK + TABLES
    made.add({"vda": [Write(2 * BLOCK, 4 * BLOCK, 2), Write(0, BLOCK, None)]})
    assert bytes_of(made) == 5 * BLOCK + TABLES


def test_without_lists_it_is_what_the_images_take_and_never_more_than_the_disk(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "repository")
    made.add({"vda": [Write(0, SIZE, 1)]}, level=Level.FULL, has_lists=False)
    made.add({"vda": [Write(0, SIZE, 2)]}, has_lists=False)
    assert bytes_of(made) == SIZE + TABLES


def test_it_is_not_less_than_what_qemu_writes(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "repository")
    made.add({"vda": [Write(at * BLOCK, BLOCK, 1) for at in range(0, 128, 3)]}, level=Level.FULL)
    output = tmp_path / "out.qcow2"
    layers = [made.path(made.backups[0])]
    from vbackup.model import ImageFormat
    from vbackup.stop import Stop

    qemu_img.convert(layers, output, ImageFormat.QCOW2, stop=Stop(), progress=lambda _percent: None)
    header_bytes = 5 * BLOCK  # header, refcounts and tables begin with a cluster each, of a disk that small
    assert output.stat().st_blocks * 512 <= bytes_of(made) + header_bytes
