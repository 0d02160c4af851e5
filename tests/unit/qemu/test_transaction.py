"""A transaction on its way to QEMU: carried out, only prepared, or refused."""

from __future__ import annotations

from functools import partial

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from vbackup.errors import BusyError, MalformedError, QmpError
from vbackup.qemu import transaction
from vbackup.qemu.monitor import block_nodes


@pytest.fixture
def qemu() -> FakeQemu:
    return FakeQemu([FakeDisk()])


def add(qemu: FakeQemu, name: str = "mine") -> list[dict[str, object]]:
    node = next(name for name in block_nodes(qemu).node_names() if name.endswith("-format"))
    return [{"type": "block-dirty-bitmap-add", "data": {"node": node, "name": name}}]


def test_abort_stands_last(qemu: FakeQemu) -> None:
    actions = add(qemu)
    transaction.prepare_only(qemu, actions, qemu="domain web")
    assert [one.arguments for one in qemu.sent if one.command == "transaction"] == [
        {"actions": [*actions, {"type": "abort", "data": {}}]}
    ]


def test_what_is_only_prepared_is_not_there_afterwards(qemu: FakeQemu) -> None:
    transaction.prepare_only(qemu, add(qemu), qemu="domain web")
    transaction.send(qemu, {"actions": add(qemu)})  # the name is still free
    with pytest.raises(QmpError, match="already exists"):
        transaction.prepare_only(qemu, add(qemu), qemu="domain web")


def test_qemu_that_carries_out_what_ends_in_abort_is_a_fault(qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "execute", lambda *_args, **_more: {})
    with pytest.raises(MalformedError, match="QEMU of domain web carried out a transaction that ends in abort"):
        transaction.prepare_only(qemu, [], qemu="domain web")


def test_block_job_of_another_is_busy(qemu: FakeQemu) -> None:
    for send in (
        lambda actions: transaction.send(qemu, {"actions": actions}),
        partial(transaction.prepare_only, qemu, qemu="x"),
    ):
        qemu.refuse("transaction", "Node 'libvirt-1-format' is busy: block device is in use by block job: commit")
        with pytest.raises(BusyError, match="busy with another block job"):
            send(add(qemu))


def test_refusal_that_quotes_a_path_is_no_abort(qemu: FakeQemu) -> None:
    """QEMU's words about the abort are the whole message; a path of the user's can contain any words."""
    qemu.refuse("transaction", "Could not create '/srv/Abort action/x.qcow2': No such file or directory")
    with pytest.raises(QmpError, match="Could not create"):
        transaction.prepare_only(qemu, add(qemu), qemu="domain web")


def test_any_other_refusal_is_qemus(qemu: FakeQemu) -> None:
    qemu.refuse("transaction", "Bitmap already exists: mine")
    with pytest.raises(QmpError, match="Bitmap already exists"):
        transaction.send(qemu, {"actions": add(qemu)})


def copy_with_performance() -> list[dict[str, object]]:
    data = {"job-id": "j", "device": "n", "target": "t", "sync": "top", "x-perf": {"max-chunk": 524288}}
    return [{"type": "abort", "data": {}}, {"type": "blockdev-backup", "data": data}]


@pytest.mark.parametrize(
    "words",
    [
        "Parameter 'actions[1].data.x-perf' is unexpected",
        "Parameter 'actions[1].data.x-perf.max-chunk' is unexpected",
        "Required max-chunk (524288) is less than backup cluster size (1048576)",
    ],
)
def test_qemu_that_does_not_take_the_performance_options_copies_without_them(words: str) -> None:
    tried = []

    def attempt(actions: list[dict[str, object]]) -> None:
        tried.append(actions)
        if len(tried) == 1:
            raise QmpError("transaction", "GenericError", words)

    transaction.tuned(attempt, copy_with_performance())
    with_them, without = copy_with_performance(), copy_with_performance()
    del without[1]["data"]["x-perf"]  # type: ignore[attr-defined]
    assert tried == [with_them, without]


def test_any_other_refusal_stands() -> None:
    tried = []

    def attempt(actions: list[dict[str, object]]) -> None:
        tried.append(actions)
        raise QmpError("transaction", "GenericError", "Node not found")

    with pytest.raises(QmpError, match="Node not found"):
        transaction.tuned(attempt, copy_with_performance())
    assert len(tried) == 1
