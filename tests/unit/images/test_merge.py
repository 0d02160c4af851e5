"""What is discarded before a merge; tests/end_to_end/test_merge_trees.py has whole merges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vbackup.images import merge
from vbackup.stop import Stop


def test_extents_are_discarded_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large disk there are millions: no more are held than qemu-io gets at a time."""
    taken = 0
    runs: list[tuple[int, list[str]]] = []

    def extents() -> Iterator[tuple[int, int]]:
        nonlocal taken
        for number in range(2500):
            taken = number + 1
            yield number * 65536, 65536

    def qemu_io(_path: Path, commands: Sequence[str]) -> None:
        runs.append((taken, list(commands)))

    monkeypatch.setattr(merge, "_qemu_io", qemu_io)
    merge.discard(Path("image"), extents(), stop=Stop())
    assert [(count, len(commands)) for count, commands in runs] == [(1000, 1000), (2000, 1000), (2500, 500)]
    assert runs[0][1][:2] == ["discard 0 65536", "discard 65536 65536"]
    merge.discard(Path("image"), iter(()), stop=Stop())
    assert len(runs) == 3
