"""What a sample of an image's data says of how well it compresses, and what it costs."""

from __future__ import annotations

import random

import pytest

from vbackup.repository.compressibility import PART_BYTES, SAMPLES, Probe

BLOCK = 65536
RANDOM = random.Random(1).randbytes(BLOCK)
TEXT = b"".join(b"%d: the quick brown fox\n" % number for number in range(BLOCK // 24))[:BLOCK].ljust(BLOCK, b" ")


def percent(content: bytes, *, blocks: int = 10) -> float:
    probe = Probe(blocks * BLOCK)
    for number in range(blocks):
        probe(number, memoryview(content))
    return 100 * probe.compressed_bytes / probe.sampled_bytes


def test_noise_does_not_compress_and_is_never_more_than_all_of_it() -> None:
    assert percent(RANDOM) == 100


def test_text_compresses() -> None:
    assert percent(TEXT) < 50


def test_all_blocks_of_a_small_image_are_sampled() -> None:
    probe = Probe(SAMPLES * BLOCK)
    for number in range(SAMPLES):
        probe(number, memoryview(TEXT))
    assert probe.sampled_bytes == SAMPLES * PART_BYTES


@pytest.mark.parametrize("step", [1, 2, 64, 100])
def test_large_image_costs_about_the_same_wherever_its_blocks_are(step: int) -> None:
    blocks = 100 * SAMPLES
    probe = Probe(blocks * BLOCK)
    for number in range(blocks):
        probe(number * step, memoryview(TEXT))
    assert SAMPLES / 2 < probe.sampled_bytes / PART_BYTES < SAMPLES * 2
