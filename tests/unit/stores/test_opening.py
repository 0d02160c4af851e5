"""Which store a target's name stands for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vbackup.errors import MissingPackageError, StorageError, UsageError
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
    opened(str(tmp_path / "a"), create=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("is_dry_run", [False, True])
def test_directory_is_made_in_one_that_exists(tmp_path: Path, is_dry_run: bool) -> None:
    with pytest.raises(StorageError, match=r"/a in which b could be made; is the disk mounted\?"):
        opened(str(tmp_path / "a" / "b"), create=True, is_dry_run=is_dry_run)
    assert not (tmp_path / "a").exists()


def test_dry_run_sees_the_directory_that_would_be_made_as_empty(tmp_path: Path) -> None:
    store = opened(str(tmp_path / "a"), create=True, is_dry_run=True)
    assert (store.size("vbackup.json"), list(store.list(""))) == (None, [])
    assert not (tmp_path / "a").exists()


def test_unknown_url_is_refused() -> None:
    with pytest.raises(StorageError, match="gopher://"):
        opened("gopher://host/place")


@pytest.mark.parametrize("target", ["s3://b", "s3://bucket/../x", "s3://", "s3://a b/c", "s3://bucket/x?y"])
def test_what_is_no_bucket(target: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        opened(target)


@pytest.mark.parametrize("scheme", ["s3", "az", "gs"])
def test_without_obstore_one_sentence_says_how_to_get_it(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "obstore" or name.startswith(("vbackup.stores.cloud", "vbackup.stores.s3")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("vbackup.stores.cloud_kinds", raising=False)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingPackageError) as raised:
        opened(f"{scheme}://bucket/copies")
    assert str(raised.value) == (
        f"Copies go to {scheme}:// by obstore, and this Python has no obstore to do that: run 'pip install obstore'."
    )


def test_keys_in_an_address_are_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match="no keys") as raised:
        opened("s3://key:hidden@bucket/copies")
    assert "hidden" not in str(raised.value)
