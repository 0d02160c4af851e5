"""The progress of a disk is that of all its images, and reaches the end with the last one."""

from __future__ import annotations

import pytest

from tests.unit.builders import Recorder, backup, image, incremental
from vbackup.repository import read_progress
from vbackup.repository.history import History, Link
from vbackup.repository.read_progress import ReadProgress

ONE = backup(1, image("vda", file_size_bytes=1000), image("vdb", file_size_bytes=500))
TWO = incremental(2, ONE)
LINKS: list[Link] = [*History([ONE, TWO]).links(TWO.id, "vda"), *History([ONE]).links(ONE.id, "vdb")]
SIZE_BYTES = 1000 + TWO.disks[0].file_size_bytes


def test_disk_is_complete_with_its_last_image(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_progress, "REPORT_S", 0)
    progress = ReadProgress(recorder, LINKS)
    progress.add("vda", 600)
    progress.add("vda", 10 * SIZE_BYTES)
    progress.done("vda")
    progress.add("vdb", 100)
    progress.done("vdb")
    progress.done("vda")
    assert recorder.told == {
        "vda": [(600, SIZE_BYTES), (SIZE_BYTES - 1, SIZE_BYTES), (SIZE_BYTES, SIZE_BYTES)],
        "vdb": [(100, 500), (500, 500)],
    }
    assert progress.read_bytes == 700 + 10 * SIZE_BYTES


def test_many_pieces_are_few_reports(recorder: Recorder) -> None:
    progress = ReadProgress(recorder, LINKS)
    for _ in range(100):
        progress.add("vdb", 1)
    assert recorder.told == {"vdb": [(1, 500)]}


def test_part_of_the_blocks_is_a_part_of_the_size(recorder: Recorder) -> None:
    progress = ReadProgress(recorder, LINKS, percent=10)
    progress.done("vdb")
    assert recorder.told == {"vdb": [(50, 50)]}
