"""Content is found by its digest, in any image that has it undamaged."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.recorded import BLOCK, Recorded, story
from tests.unit.builders import UUID
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.repository.block_list import Algorithm, algorithm_of, best_algorithm
from vbackup.repository.block_sources import Block, BlockSources, read_block
from vbackup.repository.repository import Repository

BEST = best_algorithm()
NINE = bytes([9]) * BLOCK  #: only in the newest backup of the story, and compressed


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return story(tmp_path_factory.mktemp("told") / "repo")


def sources(own: Repository, *copies: Repository, uuid: str = UUID) -> BlockSources:
    return BlockSources(own, copies, uuid, check=lambda: None)


def found(by: BlockSources, wanted: Mapping[Block, bytes], algorithm: Algorithm) -> dict[Block, bytes | None]:
    """The contents that are where they are said to be."""
    contents = {}
    for block, place in by.find(wanted, algorithm).items():
        with Qcow2Layer(place.path) as layer:
            contents[block] = read_block(layer, place.block)
    return contents


def test_content_is_found_wherever_it_is(told: Recorded) -> None:
    wanted = {(0, 5): BEST.digest(NINE), (3, 7): BEST.digest(bytes([11]) * BLOCK), (0, 6): BEST.digest(NINE)}
    assert found(sources(told.repository), wanted, BEST) == {(0, 5): NINE, (0, 6): NINE, (3, 7): bytes([11]) * BLOCK}


def test_content_that_nobody_has_is_not_found(told: Recorded) -> None:
    assert sources(told.repository).find({(0, 0): bytes(32)}, BEST) == {}


def test_images_of_other_domains_are_looked_at_too(told: Recorded, tmp_path: Path) -> None:
    """Machines that were made of one template have many blocks in common."""
    assert found(sources(told.repository, uuid="another"), {(0, 0): BEST.digest(NINE)}, BEST) == {(0, 0): NINE}
    empty = Repository.create(tmp_path / "empty")
    assert found(sources(empty, told.repository), {(0, 0): BEST.digest(NINE)}, BEST) == {(0, 0): NINE}


def test_lists_of_another_algorithm_say_nothing(told: Recorded) -> None:
    other = algorithm_of("sha256:", where="here")
    if other is BEST:
        pytest.skip("there is one algorithm")
    assert sources(told.repository).find({(0, 0): BEST.digest(NINE)}, other) == {}


def test_source_that_is_damaged_itself_gives_nothing(told: Recorded, tmp_path: Path) -> None:
    shutil.copytree(told.repository.path, tmp_path / "repo")
    repository = Repository.open(tmp_path / "repo")
    image = repository.directory(UUID, told.backups[-1].id) / "vda.qcow2"
    with image.open("r+b") as file:
        file.seek(4 * BLOCK)
        length = image.stat().st_size - 4 * BLOCK
        file.write(bytes(byte ^ 3 for byte in image.read_bytes()[4 * BLOCK :][:length]))
    assert sources(repository).find({(0, 0): BEST.digest(NINE)}, BEST) == {}
