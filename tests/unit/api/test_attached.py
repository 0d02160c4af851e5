"""Bitmaps and transactions of a QEMU that is attached, with the repository's history where it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit import builders
from tests.unit.builders import UUID, use_libvirt
from vbackup import api
from vbackup.api import AttachedQemu, BitmapChange, BitmapRequest, TransactionRequest
from vbackup.domain import attached as attached_qemus
from vbackup.errors import TransactionError
from vbackup.model import DiskNode, ImageFormat
from vbackup.qemu.monitor import block_graph
from vbackup.repository.repository import Repository


@pytest.fixture
def attached() -> Iterator[AttachedQemu]:
    with FakeQemu([FakeDisk("virtio-disk0")]) as qemu:

        def find_disks() -> Mapping[str, DiskNode]:
            return {"vda": block_graph(qemu).disk_node(builders.disk("vda"))}

        yield AttachedQemu("test", qemu, find_disks, uuid=UUID)


def test_bitmap_is_added_and_listed(attached: AttachedQemu) -> None:
    vb = api.connect()
    assert vb.bitmaps(attached) == []
    [changed] = vb.change_bitmap(attached, BitmapRequest(change=BitmapChange.ADD, name="mine"))
    [listed] = vb.bitmaps(attached, disks=["vda"])
    assert (changed.dev, changed.name, listed.bitmap.name) == ("vda", "mine", "mine")


def test_transaction_is_checked_and_sent(attached: AttachedQemu) -> None:
    vb = api.connect()
    node = attached.disks()["vda"].top.node_name
    actions = [{"type": "block-dirty-bitmap-add", "data": {"node": node, "name": "mine"}}]
    assert vb.transaction(attached, TransactionRequest({"actions": actions})).failed_jobs == ()
    assert [one.bitmap.name for one in vb.bitmaps(attached)] == ["mine"]
    with pytest.raises(TransactionError) as caught:
        vb.transaction(attached, TransactionRequest({"actions": [{"type": "none"}]}))
    assert caught.value.path.startswith("actions[0]")


def test_history_is_that_of_the_repository_with_the_id(filled: Path, tmp_path: Path) -> None:
    with api.connect(repository=filled) as vb:
        history = vb._history(UUID)(vb.repository.id)
        assert history is not None
        assert len(history.backups) == 2
        assert vb._history(UUID)("0123456789ab") is None
        assert vb._history(None)(vb.repository.id) is None
    assert api.connect()._history(UUID)(Repository.open(filled).id) is None


def test_each_way_to_attach_opens_what_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[Any] = []

    @contextmanager
    def opening(*what: Any, access: Any = None, **_named: object) -> Iterator[str]:
        opened.append((what, access is not None and access.exclusive))
        yield "attached"

    use_libvirt(monkeypatch, "libvirt")
    for name in ("of_domain", "of_socket", "of_images"):
        monkeypatch.setattr(attached_qemus, name, opening)
    images = [("vda", tmp_path / "a.qcow2", ImageFormat.QCOW2)]
    vb = api.connect()
    for ways in (vb.attach("web"), vb.attach_socket(tmp_path), vb.attach_images(images, exclusive=True)):
        with ways as one:
            assert one == "attached"  # type: ignore[comparison-overlap]
    assert opened == [(("libvirt", "web"), False), ((str(tmp_path),), False), ((images,), True)]
