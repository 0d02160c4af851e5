"""A directory with scripts, and one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[..., Path]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "scripts.d"
    made.mkdir(mode=0o755)
    return made


@pytest.fixture
def write(directory: Path) -> Write:
    """Write a script of /bin/sh below the directory: write("pre-backup.d/10-x", "exit 1")."""

    def written(rpath: str, text: str = "exit 0", *, mode: int = 0o755) -> Path:
        path = directory / rpath
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        return path

    return written
