"""Which jobs are in the way of a backup."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit import builders
from tests.unit.builders import FOREIGN, REPOSITORY, fixture_replies
from vbackup.engine import foreign_jobs
from vbackup.errors import DiskBusyError, QmpError
from vbackup.model import Disk


class Qemu:
    """Answers what is put in; commands that are not known are refused, and all are noted."""

    def __init__(self, **replies: Any) -> None:
        block, stats, nodes = fixture_replies("bitmaps")
        self.replies = {"query-block": block, "query-blockstats": stats, "query-named-block-nodes": nodes}
        self.replies.update({name.replace("_", "-"): reply for name, reply in replies.items()})
        self.sent: list[tuple[str, Any]] = []

    def execute(self, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        self.sent.append((command, arguments))
        if command not in self.replies:
            raise QmpError(command, "CommandNotFound", f"The command {command} has not been found")
        return self.replies[command]

    def next_event(self, timeout_s: float) -> None:
        raise AssertionError("nothing is waited for")


def job(job_id: str, kind: str = "commit", status: str = "running") -> dict[str, Any]:
    return {"id": job_id, "type": kind, "status": status, "current-progress": 0, "total-progress": 1}


def graph(job_id: str, *nodes: str) -> dict[str, Any]:
    """The job holds these nodes."""
    listed = [{"id": number, "type": "block-driver", "name": name} for number, name in enumerate(nodes, 2)]
    return {
        "nodes": [{"id": 1, "type": "block-job", "name": job_id}, *listed],
        "edges": [{"parent": 1, "child": one["id"], "name": "main node"} for one in listed],
    }


def disk(dev: str = "vda") -> Disk:
    return builders.disk(dev)


def node_of(dev: str) -> str:
    return builders.fixture_graph("bitmaps").chains[disk(dev).alias][0]


def test_job_is_found_by_the_nodes_it_holds() -> None:
    qemu = Qemu(query_jobs=[job("x", "mirror")], x_debug_query_block_graph=graph("x", node_of("vdb")))
    foreign_jobs.refuse_busy(qemu, [disk("vda")])
    with pytest.raises(DiskBusyError, match=r"Disk vdb is busy with a mirror job \(x\); try again when it is done"):
        foreign_jobs.refuse_busy(qemu, [disk("vda"), disk("vdb")])


@pytest.mark.parametrize(
    "harmless",
    [
        job(f"vbackup-{REPOSITORY}-20261123T101500Z-full-vda", "backup"),
        job(f"vbackup-{FOREIGN}-20261123T101500Z-full-vda", "backup"),
        job("commit-vda-libvirt-1-format", status="concluded"),
    ],
    ids=["ours", "of another repository", "concluded"],
)
def test_job_that_is_in_nobody_s_way(harmless: dict[str, Any]) -> None:
    qemu = Qemu(query_jobs=[harmless])
    foreign_jobs.refuse_busy(qemu, [disk()])
    assert [command for command, _ in qemu.sent] == ["query-jobs"]


def test_without_the_graph_libvirt_s_names_tell() -> None:
    qemu = Qemu(query_jobs=[job("mine"), job("backup-vdb-libvirt-2-format", "backup")])
    foreign_jobs.refuse_busy(qemu, [disk("vda")])
    with pytest.raises(DiskBusyError, match="Disk vdb is busy with libvirt's own backup"):
        foreign_jobs.refuse_busy(qemu, [disk("vdb")])
