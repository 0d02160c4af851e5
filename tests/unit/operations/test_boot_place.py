"""What a boot test has of its host: files that are no secret, in a directory that nobody else may list."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID
from vbackup.operations import boot_place
from vbackup.operations.boot_place import MAX_BOOT_FILE_BYTES, WorkplaceHere, why_not_given


@pytest.mark.parametrize(("mode", "is_qemus"), [(0o644, False), (0o600, True), (0o600, False)])
def test_secret_file_of_the_host_does_not_reach_a_guest(tmp_path: Path, mode: int, is_qemus: bool) -> None:
    """A repository from elsewhere could name /etc/shadow as the initial RAM disk."""
    path, nobody = tmp_path / "secret", Any
    path.write_bytes(b"data")
    path.chmod(mode)
    (tmp_path / "copy").mkdir()
    owner = (os.geteuid(), os.getegid()) if is_qemus else None
    place = WorkplaceHere(UUID, tmp_path / "copy", nobody, owner, nobody, nobody)  # type: ignore[arg-type]
    why = place.copy_host_file(path, "initrd")
    if mode == 0o644 or is_qemus:
        assert why is None
        assert (tmp_path / "copy" / "initrd").read_bytes() == b"data"
    else:
        assert why == f"which not everybody may read; run: chmod o+r {path}"
        assert list((tmp_path / "copy").iterdir()) == []
    for strange in (tmp_path / "gone", tmp_path):
        assert str(place.copy_host_file(strange, "kernel")).endswith("): copy it to that path")


def test_file_of_another_host_is_named_with_it() -> None:
    path = Path("/boot/initrd of mine")
    named = {"owner": (64055, 109), "host": "root@hv1"}
    assert why_not_given(0o100644, 0, 5, path, **named) is None  # type: ignore[arg-type]
    assert why_not_given(0o100600, 64055, 5, path, **named) is None  # type: ignore[arg-type]
    said = why_not_given(0o100600, 0, 5, path, **named)  # type: ignore[arg-type]
    assert said == "which not everybody may read; run on root@hv1: chmod o+r '/boot/initrd of mine'"
    assert "larger than any" in str(why_not_given(0o100644, 0, MAX_BOOT_FILE_BYTES + 1, path, owner=None))


def test_directory_is_unlisted_for_other_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_place.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert boot_place._directory(UUID) == tmp_path / f"vbackup-boot-{UUID}"
    with boot_place._made(tmp_path / "d", None):
        assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "d").exists()
