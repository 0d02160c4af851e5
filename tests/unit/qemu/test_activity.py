"""QEMU does not have its images to itself: what the devices may do shows it, or else the run state."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from vbackup.errors import InactiveError, QmpError, Status
from vbackup.qemu.activity import refuse_inactive

READ, WRITE = ["consistent-read"], ["write", "consistent-read"]


class Qemu:
    """Answers the two queries; without a graph the command is unknown."""

    def __init__(self, run_state: str, graph: Any = None) -> None:
        self.replies = {"query-status": {"status": run_state}, "x-debug-query-block-graph": graph}

    def execute(self, command: str, _arguments: Any = None) -> Any:
        if self.replies.get(command) is None:
            raise QmpError(command, "CommandNotFound", f"The command {command} has not been found")
        return self.replies[command]


def graph(*, device: list[str], job: list[str] = WRITE, name: str = "/machine/peripheral/virtio-disk0") -> Any:
    """A device, a job and a backend without a name, on one node."""
    return {
        "nodes": [
            {"id": 1, "type": "block-backend", "name": name},
            {"id": 2, "type": "block-backend", "name": ""},
            {"id": 3, "type": "block-job", "name": "j"},
            {"id": 4, "type": "block-driver", "name": "libvirt-1-format"},
        ],
        "edges": [
            {"parent": 1, "child": 4, "name": "root", "perm": device, "shared-perm": [*WRITE, "resize"]},
            {"parent": 2, "child": 4, "name": "root", "perm": [], "shared-perm": []},
            {"parent": 3, "child": 4, "name": "main node", "perm": job, "shared-perm": []},
        ],
    }


def refuse(qemu: Any) -> None:
    refuse_inactive(qemu, "Domain web", resume="'virsh resume web'")


@pytest.mark.parametrize(
    ("run_state", "said"),
    [
        ("paused", "it arrived paused.*Resume the guest .'virsh resume web'."),
        ("prelaunch", "it arrived paused"),
        ("inmigrate", "it is being migrated.*when the migration has ended"),
        ("finish-migrate", "it is being migrated"),
        ("postmigrate", "dump or snapshot.*run vbackup there. Otherwise, resume the guest"),
    ],
)
def test_devices_without_rights_are_of_a_qemu_that_is_inactive(run_state: str, said: str) -> None:
    with pytest.raises(InactiveError, match=f"^Domain web does not have its images to itself: .*{said}") as caught:
        refuse(Qemu(run_state, graph(device=[])))
    assert (caught.value.run_state, caught.value.status) == (run_state, Status.BUSY)


@pytest.mark.parametrize("run_state", ["running", "paused", "prelaunch", "io-error", "postmigrate", "suspended"])
@pytest.mark.parametrize("rights", [READ, WRITE], ids=["read-only", "writable"])
def test_devices_with_rights_are_of_a_qemu_that_is_active(run_state: str, rights: list[str]) -> None:
    refuse(Qemu(run_state, graph(device=rights, job=[])))


@pytest.mark.parametrize("run_state", ["inmigrate", "finish-migrate", "postmigrate"])
def test_without_the_graph_the_run_state_decides(run_state: str) -> None:
    with pytest.raises(InactiveError):
        refuse(Qemu(run_state))
    refuse(Qemu("paused"))


def test_qemu_that_answers_neither_query_is_active() -> None:
    with FakeQemu([FakeDisk()]) as qemu:
        refuse(qemu)
