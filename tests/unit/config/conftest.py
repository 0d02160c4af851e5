"""Writes configurations, and reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vbackup.config import loading
from vbackup.config.loading import Loaded

#: Loads files of which the texts are given; the first is vbackup.toml, the others lie in conf.d.
Load = Callable[..., Loaded]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a configuration."""

    def loaded(*texts: str) -> Loaded:
        paths = []
        for number, text in enumerate(texts):
            path = tmp_path / ("conf.d" if number else "") / (f"{number}.toml" if number else "vbackup.toml")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            paths.append(path)
        return loading.load(paths)

    return loaded
