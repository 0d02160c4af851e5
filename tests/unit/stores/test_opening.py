"""Which store a target's name stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from vbackup.errors import StorageError
from vbackup.stores.directory import DirectoryStore
from vbackup.stores.opening import opened


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_path_is_a_directory(tmp_path: Path, prefix: str) -> None:
    store = opened(f"{prefix}{tmp_path}")
    assert isinstance(store, DirectoryStore)
    assert store.name == str(tmp_path)


def test_directory_is_made_only_if_asked(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="mounted"):
        opened(str(tmp_path / "a"))
    opened(str(tmp_path / "a" / "b"), create=True)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_unknown_url_is_refused() -> None:
    with pytest.raises(StorageError, match="gopher://"):
        opened("gopher://host/place")
