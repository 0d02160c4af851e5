"""The room that a merge frees is told from block lists: what all images above hold themselves."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from tests.unit.builders import UUID, backup, commit, image, incremental
from vbackup.model import Level
from vbackup.repository import block_list, freed
from vbackup.repository.block_list import BLOCK_BYTES, DIGEST_BYTES, SEGMENT_BLOCKS, Segment, best_algorithm
from vbackup.repository.history import History
from vbackup.repository.repository import Repository

ONE = backup(1)
TWO = incremental(2, ONE)
THREE = backup(3, image(level=Level.INCREMENTAL, base=ONE.id), level=Level.INCREMENTAL)
SIZE_BYTES = 4 * SEGMENT_BLOCKS * BLOCK_BYTES


def put(directory: Path, data: Collection[int], zeros: Collection[int] = ()) -> None:
    """An image that takes 64 KiB for each block of data, and its list; blocks by their numbers on the disk."""
    (directory / "vda.qcow2").write_bytes(b"x" * BLOCK_BYTES * len(data))
    segments = []
    for number in sorted({block // SEGMENT_BLOCKS for block in (*data, *zeros)}):
        masks = [
            sum(1 << block % SEGMENT_BLOCKS for block in blocks if block // SEGMENT_BLOCKS == number)
            for blocks in (data, zeros)
        ]
        digests = bytes(DIGEST_BYTES) * block_list.count(masks[0])
        segments.append(Segment(number, masks[0] | masks[1], masks[0], digests))
    block_list.write(directory / "vda.blocks", segments, virtual_size_bytes=SIZE_BYTES, algorithm=best_algorithm())


@pytest.fixture
def paths(repo: Repository) -> dict[str, Path]:
    return {one.id: commit(repo, one) for one in (ONE, TWO, THREE)}


def share(paths: dict[str, Path], *heirs: str) -> float:
    return freed.unneeded_share(paths[ONE.id] / "vda.qcow2", [paths[one] / "vda.qcow2" for one in heirs])


def test_block_that_all_images_above_hold_is_free(paths: dict[str, Path]) -> None:
    far = 3 * SEGMENT_BLOCKS
    put(paths[ONE.id], [0, 1, 2, far], zeros=[5])
    put(paths[TWO.id], [1, far], zeros=[2, 7])
    put(paths[THREE.id], [1, 2])
    assert share(paths, TWO.id) == 3 / 4
    assert share(paths, THREE.id) == 2 / 4
    assert share(paths, TWO.id, THREE.id) == 2 / 4


def test_image_without_data_is_free(paths: dict[str, Path]) -> None:
    put(paths[ONE.id], [], zeros=[1])
    put(paths[TWO.id], [1])
    assert share(paths, TWO.id) == 1


def test_nothing_is_known_to_be_free_without_lists(paths: dict[str, Path]) -> None:
    put(paths[ONE.id], [0])
    assert share(paths, TWO.id) == 0
    (paths[TWO.id] / "vda.blocks").write_bytes(b"torn")
    assert share(paths, TWO.id) == 0


def test_room_is_that_of_the_blocks_and_of_the_other_files(repo: Repository, paths: dict[str, Path]) -> None:
    put(paths[ONE.id], range(100))
    put(paths[TWO.id], range(50))
    put(paths[THREE.id], range(25))
    history = History([ONE, TWO, THREE])
    got = freed.by_merging(repo, UUID, history, {ONE.id})
    assert 25 * BLOCK_BYTES <= got <= 25 * BLOCK_BYTES + (1 << 17)
    alone = freed.by_merging(repo, UUID, History([ONE, TWO]), {ONE.id})
    assert 50 * BLOCK_BYTES <= alone <= 50 * BLOCK_BYTES + (1 << 17)
    assert freed.by_merging(repo, UUID, history, ()) == 0


def test_chain_of_removed_images_is_counted_block_by_block(repo: Repository) -> None:
    two, three = incremental(2, ONE), incremental(3, TWO)
    paths = [commit(repo, one) for one in (ONE, two, three)]
    for path, blocks in zip(paths, (range(64), range(32), range(16))):
        put(path, blocks)
    got = freed.by_merging(repo, UUID, History([ONE, two, three]), {ONE.id, two.id})
    assert 48 * BLOCK_BYTES <= got <= 48 * BLOCK_BYTES + (1 << 17)
