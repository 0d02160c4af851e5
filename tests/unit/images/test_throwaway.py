"""What is written to a disk of a backup goes to a file without a name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vbackup.errors import NoSpaceError
from vbackup.images import throwaway
from vbackup.qemu import qemu_img


def test_overlays_are_not_in_memory_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    assert throwaway.default_directory() == Path("/var/tmp")
    monkeypatch.setenv("TMPDIR", "/fast")
    assert throwaway.default_directory() == Path("/fast")


def test_overlay_without_room_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        path.unlink()  # as qemu-img does
        raise NoSpaceError("no space left")

    monkeypatch.setattr(qemu_img, "create", full)
    point = SimpleNamespace(size_bytes=lambda _dev: 1 << 20)
    with pytest.raises(NoSpaceError):
        throwaway.take_writes(point, "vda", tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
