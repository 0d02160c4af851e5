"""For which job a backup was made: what is written is read again, and what cannot be read counts as none."""

from __future__ import annotations

from pathlib import Path

import pytest

from vbackup.model import Level
from vbackup.repository import stream_record
from vbackup.repository.stream_record import StreamRecord


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    for begun in (None, "2026.11.23.12.00.00"):
        record = StreamRecord("bacula 7 ü", Level.DIFFERENTIAL, begun)
        (tmp_path / stream_record.NAME).write_bytes(stream_record.data(record))
        assert stream_record.read(tmp_path) == record


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"job": "7", "level": "all"}', '{"job": 7, "level": "full"}', "\xff"]
)
def test_what_is_no_record_counts_as_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / stream_record.NAME).write_bytes(text.encode("latin-1"))
    assert stream_record.read(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "is_job"),
    [("7", True), ("a b", True), ("", False), (".7", False), ("a/b", False), ("a\nb", False), ("a" * 201, False)],
)
def test_name_of_a_job_can_be_a_part_of_a_file_name(text: str, is_job: bool) -> None:
    assert stream_record.is_job(text) is is_job
