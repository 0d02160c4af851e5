"""A user's transaction: what is not one is refused before QEMU is asked anything."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit import builders
from vbackup.domain.attached import AttachedQemu
from vbackup.errors import TransactionError
from vbackup.model import DiskNode
from vbackup.operations import transaction
from vbackup.operations.transaction import TransactionRequest
from vbackup.qemu.monitor import block_graph
from vbackup.report import Silent
from vbackup.stop import Stop


def no_disks() -> dict[str, DiskNode]:
    return {}


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("arguments", "path", "said"),
    [
        (None, "arguments", "this is null, but must be an object with 'actions', or a list of actions"),
        (5, "arguments", "this is an integer"),
        (deep(), "arguments", "nested more deeply than any transaction"),
        (
            [{"type": "abort", "data": {"x": ["$disk:vda"]}}],
            "actions[0].data.x[0]",
            "no disk 'vda'; the disks are: none",
        ),
    ],
    ids=["null", "number", "deep", "disk"],
)
def test_what_is_no_transaction_is_refused(arguments: Any, path: str, said: str) -> None:
    monitor = FakeQemu()
    with pytest.raises(TransactionError, match=said) as caught:
        transaction.run(
            TransactionRequest(arguments),
            attached=AttachedQemu("test", monitor, no_disks),
            reporter=Silent(),
            stop=Stop(),
        )
    assert caught.value.path == path
    assert monitor.sent == []


def test_progress_of_a_job_is_that_of_its_disk_if_no_other_has_it() -> None:
    with FakeQemu([FakeDisk()]) as qemu:
        attached = AttachedQemu("test", qemu, lambda: {"vda": block_graph(qemu).disk_node(builders.disk())})
        top = qemu.top("virtio-disk0")
        mine, another, strange = (
            {"type": "blockdev-backup", "data": {"job-id": job_id, "device": device, "target": "t"}}
            for job_id, device in (("live", top), ("again", top), ("strange", "node"))
        )
        assert transaction._devs([mine, strange], attached) == {"live": "vda"}
        assert transaction._devs([mine, another], attached) == {}
