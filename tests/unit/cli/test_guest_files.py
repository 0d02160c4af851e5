"""Files of a guest as a line and as JSON."""

from __future__ import annotations

import os

from vbackup.cli import guest_files
from vbackup.images.guest_files import Entry


def test_size_of_a_file_and_numbers_of_a_device() -> None:
    entry = Entry("/x", 0o100644, 0, 0, 1, 2048, 0)
    assert guest_files.size(entry, in_bytes=False) == "2.0 KiB"
    assert guest_files.size(entry, in_bytes=True) == "2048"
    assert guest_files.size(Entry("/x", 0o60600, 0, 0, 1, 0, 0, os.makedev(8, 1)), in_bytes=True) == "8, 1"


def test_document_has_all_of_it() -> None:
    entry = Entry("/a/b", 0o120777, 1, 2, 1, 3, 10**9, target="c")
    assert guest_files.document(entry) == {
        "path": "/a/b",
        "mode": "lrwxrwxrwx",
        "uid": 1,
        "gid": 2,
        "size_bytes": 3,
        "mtime": "1970-01-01T00:00:01.000000Z",
        "target": "c",
    }
