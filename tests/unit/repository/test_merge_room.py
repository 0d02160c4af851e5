"""What no heir needs of an image is what all of them hold themselves."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from vbackup.repository.block_list import SEGMENT_BLOCKS
from vbackup.repository.merge_room import unneeded_blocks

PLACES = (0, 1, 2, SEGMENT_BLOCKS - 1, SEGMENT_BLOCKS, 30000)


@dataclass(frozen=True)
class Image:
    """What an image holds: numbers of blocks; the value is whether it is data."""

    content: dict[int, bool]

    @property
    def numbers(self) -> set[int]:
        return {block // SEGMENT_BLOCKS for block in self.content}

    @property
    def data_blocks(self) -> int:
        return sum(self.content.values())

    def masks(self, number: int) -> tuple[int, int]:
        own = {
            block % SEGMENT_BLOCKS: data for block, data in self.content.items() if block // SEGMENT_BLOCKS == number
        }
        return sum(1 << block for block in own), sum(1 << block for block, data in own.items() if data)


IMAGES = st.builds(Image, st.dictionaries(st.sampled_from(PLACES), st.booleans()))


@given(IMAGES, st.lists(IMAGES, max_size=3))
def test_data_is_unneeded_where_every_heir_holds_the_block(image: Image, heirs: list[Image]) -> None:
    expected = [block for block, data in image.content.items() if data and all(block in heir.content for heir in heirs)]
    assert unneeded_blocks(image, heirs) == len(expected)
