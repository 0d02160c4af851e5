"""A running domain and an attached QEMU for handlers, in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit import builders
from tests.unit.fake_domain import FakeDomain
from vbackup.cli import qemu as cli_qemu
from vbackup.cli.handlers import forget
from vbackup.domain.attached import AttachedQemu
from vbackup.model import DiskNode
from vbackup.qemu.monitor import block_graph


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeQemu]:
    """A QEMU with disks vda and vdb, to which every command attaches."""
    disks = [FakeDisk("virtio-disk0"), FakeDisk("virtio-disk1", path="/images/vdb.qcow2")]
    with FakeQemu(disks) as qemu:

        def find_disks() -> Mapping[str, DiskNode]:
            graph = block_graph(qemu)
            return {dev: graph.disk_node(builders.disk(dev)) for dev in ("vda", "vdb")}

        @contextmanager
        def attach(*_args: object, **_more: object) -> Iterator[AttachedQemu]:
            yield AttachedQemu("test", qemu, find_disks)

        monkeypatch.setattr(cli_qemu, "attach", attach)
        yield qemu


@pytest.fixture
def hosted(domain: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> FakeDomain:
    """A running domain web on the host that every command connects to."""
    host: Any = nullcontext(domain)
    monkeypatch.setattr(forget, "Host", lambda _uri: host)
    return domain
