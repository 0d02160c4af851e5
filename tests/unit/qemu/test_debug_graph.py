"""What x-debug-query-block-graph says, and replies that are malformed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_qemu import FakeQemu
from vbackup.errors import MalformedError
from vbackup.qemu import debug_graph


def test_nodes_that_a_job_holds_and_nodes_that_a_node_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = {
        "nodes": [
            {"id": 1, "type": "block-job", "name": "j"},
            {"id": 2, "type": "block-driver", "name": "top"},
            {"id": 3, "type": "block-driver", "name": "file"},
        ],
        "edges": [{"parent": 1, "child": 2, "name": "main node"}, {"parent": 2, "child": 3, "name": "file"}],
    }
    assert debug_graph.nodes_of_jobs(reply) == {"j": frozenset({"top"})}
    qemu = FakeQemu([])
    monkeypatch.setattr(qemu, "execute", lambda _command: reply)
    assert debug_graph.children(qemu) == {"top": frozenset({"file"})}


@pytest.mark.parametrize("reply", [[], {"nodes": []}, {"nodes": [{"id": "1"}], "edges": []}])
def test_graph_that_is_none_is_an_error(reply: Any) -> None:
    with pytest.raises(MalformedError, match="x-debug-query-block-graph"):
        debug_graph.nodes_of_jobs(reply)
