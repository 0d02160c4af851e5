"""A target as its user names it, and where manifests are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup.copies.place import TargetPlace, default_cache
from vbackup.errors import StorageError


def test_store_is_open_in_the_block(tmp_path: Path) -> None:
    with TargetPlace(str(tmp_path / "new")).opened(create=True) as store:
        assert store.name == str(tmp_path / "new")
    with pytest.raises(StorageError), TargetPlace(str(tmp_path / "other")).opened():
        pass


def test_keys_are_not_shown() -> None:
    assert "keys" not in repr(TargetPlace("/copies"))


def test_cache_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_cache() == Path("/var/cache/vbackup")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache() == tmp_path / ".cache" / "vbackup"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "vbackup"
