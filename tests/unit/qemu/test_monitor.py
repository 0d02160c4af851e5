"""The queries that every monitor can make: block graph, nodes, and a schema that is queried once per kind of QEMU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from vbackup.qemu import monitor
from vbackup.qemu.monitor import block_chains, block_graph, block_nodes


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeQemu]:
    monkeypatch.setattr(monitor, "_SCHEMAS", {})
    with FakeQemu([FakeDisk(backing_paths=("/images/base.qcow2",))]) as made:
        yield made


def commands(qemu: FakeQemu) -> list[str]:
    return [sent.command for sent in qemu.sent]


def test_nodes_cost_one_query_and_the_graph_three(qemu: FakeQemu) -> None:
    nodes = block_nodes(qemu)
    assert commands(qemu) == ["query-named-block-nodes"]
    graph = block_graph(qemu)
    assert len(commands(qemu)) == 4
    assert set(nodes.node_names()) == set(graph.node_names())
    flat = [sent.arguments for sent in qemu.sent if sent.command == "query-named-block-nodes"]
    assert flat == [{"flat": True}] * 2, "or QEMU would repeat every node below each node"


def test_chain_of_a_device_begins_at_its_root(qemu: FakeQemu) -> None:
    chain = block_chains(qemu)["virtio-disk0"]
    assert chain[0] == qemu.top("virtio-disk0")
    assert block_graph(qemu).chains["virtio-disk0"] == chain


def test_schema_is_queried_once(qemu: FakeQemu) -> None:
    assert monitor.schema(qemu) is monitor.schema(qemu)
    assert commands(qemu).count("query-qmp-schema") == 1


@pytest.mark.parametrize("query", ["query-version", "query-commands"])
def test_other_kind_of_qemu_has_its_own_schema(qemu: FakeQemu, query: str) -> None:
    """Another version, or a storage daemon, which has fewer commands."""

    class Other:
        def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
            reply = qemu.execute(command, arguments, fd=fd)
            if command == query:
                return reply[:-1] if isinstance(reply, list) else {**reply, "package": "patched"}
            return reply

        def next_event(self, timeout_s: float) -> None:
            raise NotImplementedError

    first = monitor.schema(qemu)
    assert monitor.schema(Other()) is not first
    assert commands(qemu).count("query-qmp-schema") == 2
