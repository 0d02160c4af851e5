"""``vbackup serve``: what cannot be served is refused before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Command


def test_overlay_without_writable_is_status_two(command: Command, filled: Path, tmp_path: Path) -> None:
    words = ("serve", "web", "-r", filled, "--nbd", tmp_path / "s")
    assert "needs --writable" in command(*words, "--overlay", tmp_path, status=2).stderr
    assert "--nbd" in command("serve", "web", "-r", filled, status=2).stderr


def test_what_is_not_there_is_not_served(command: Command, filled: Path, tmp_path: Path) -> None:
    command("serve", "nix", "-r", filled, "--nbd", tmp_path / "s", status=4)
    command("serve", "web", "20010101T000000Z-full", "-r", filled, "--nbd", tmp_path / "s", status=6)
    command("serve", "web", "-r", filled, "--nbd", tmp_path / "s", "--disk", "vdz", status=5)
    overlay = ("--writable", "--overlay", tmp_path / "s" / "x")
    (tmp_path / "s").touch()
    command("serve", "web", "-r", filled, "--nbd", tmp_path / "t", *overlay, status=7)
    assert not (tmp_path / "t").exists()
