"""The arguments name one QEMU: a domain's, one behind a socket, or a storage daemon with image files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vbackup.api import Connection
from vbackup.cli import parser, qemu
from vbackup.domain import attached as attached_qemus
from vbackup.errors import UsageError
from vbackup.model import ImageFormat
from vbackup.report import Silent


def options(*arguments: str) -> argparse.Namespace:
    return parser.parse(["bitmap", "list", *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "No domain given"),
        (("--socket", "/s", "--image", "a"), "--socket or --image, not both"),
        (("web", "--socket", "/s"), "either a domain, or --socket or --image"),
        (("--domain", "web", "--image", "a"), "either a domain, or --socket or --image"),
        (("", "--domain", "web"), "Two domains given"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_exactly_one_qemu_has_to_be_named(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        qemu.check(options(*arguments))


@pytest.mark.parametrize(
    ("arguments", "is_without"),
    [(("web",), False), (("--socket", "/s"), True), (("--image", "a", "b"), True)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_one_qemu_is_enough(arguments: tuple[str, ...], is_without: bool) -> None:
    qemu.check(options(*arguments))
    assert qemu.is_without_libvirt(options(*arguments)) == is_without


def attached_to(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[Any]:
    """Attach with these arguments; return what was to be opened."""
    opened: list[Any] = []

    @contextmanager
    def opening(what: Any, **_more: Any) -> Iterator[str]:
        opened.append(what)
        yield "attached"

    monkeypatch.setattr(attached_qemus, "of_images", opening)
    monkeypatch.setattr(attached_qemus, "of_socket", opening)
    with Connection() as vb, qemu.attach(options(*arguments), vb, reporter=Silent()) as attached:
        assert attached == "attached"  # type: ignore[comparison-overlap]
    return opened


def test_images_are_named_as_disks_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only a prefix makes an image raw; a colon elsewhere belongs to its name."""
    monkeypatch.chdir(tmp_path)
    assert attached_to(monkeypatch, "--image", "a.qcow2", "raw:b", "/x/raw:c") == [
        [
            ("vda", tmp_path / "a.qcow2", ImageFormat.QCOW2),
            ("vdb", tmp_path / "b", ImageFormat.RAW),
            ("vdc", Path("/x/raw:c"), ImageFormat.QCOW2),
        ]
    ]


def test_socket_is_opened_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attached_to(monkeypatch, "--socket", "/run/qmp") == ["/run/qmp"]
