"""Every way in which images are made and opened is one that was compared byte for byte with a reference."""

from __future__ import annotations

import itertools

import pytest

from tests.end_to_end.test_tuning import COMBINATIONS
from vbackup.images import tuning
from vbackup.model import GRANULARITY_BYTES, QEMUS_OWN, Compression, ImageOptions, NodeOptions

COMPRESSIONS = [compression for compression in Compression if compression is not Compression.AUTO]


def test_every_combination_is_tested_and_no_other() -> None:
    chosen = {
        (tuning.image_options(compression), tuning.node_options(is_local=is_local))
        for compression, is_local in itertools.product(COMPRESSIONS, (True, False))
    }
    assert chosen == set(COMBINATIONS)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_incremental_copies_no_more_than_its_bitmap_tells(compression: Compression) -> None:
    """QEMU copies whole clusters of the target."""
    assert tuning.image_options(compression) == ImageOptions(GRANULARITY_BYTES, compression)


def test_qemu_of_another_host_flushes_itself() -> None:
    """What it has written is in that host's page cache, which nobody here can put on a disk."""
    assert not tuning.node_options(is_local=False).no_flush
    assert tuning.node_options(is_local=True).no_flush


def test_members_are_those_of_qapi() -> None:
    assert QEMUS_OWN.members() == {}
    assert NodeOptions(no_flush=True, detect_zeroes=True).members() == {
        "cache": {"no-flush": True},
        "detect-zeroes": "on",
    }


@pytest.mark.parametrize(
    ("asked", "has_zstd", "chosen"),
    [
        (Compression.AUTO, True, Compression.ZSTD),
        (Compression.AUTO, False, Compression.ZLIB),
        (Compression.ZSTD, False, Compression.ZSTD),
        (Compression.NONE, True, Compression.NONE),
    ],
)
def test_best_compression_is_chosen_where_it_is_left_to_vbackup(
    asked: Compression, has_zstd: bool, chosen: Compression
) -> None:
    assert tuning.compression(asked, has_zstd=has_zstd) is chosen
