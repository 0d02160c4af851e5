"""vbackup bitmap: what is listed of whom, changes on all disks at once, and what is guarded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.lab import DiskSpec, Lab, Machine, qemu_img_info

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome


class Bitmaps:
    """``vbackup bitmap`` on one machine."""

    def __init__(self, command: Command, uri: str, name: str) -> None:
        self._command, self._uri, self.name = command, uri, name

    def __call__(self, kind: str, *arguments: str | Path, status: int = 0) -> Outcome:
        return self._command("-c", self._uri, "bitmap", kind, self.name, *arguments, "--json", status=status)

    def listed(self, *options: str) -> list[dict[str, Any]]:
        bitmaps: list[dict[str, Any]] = self("list", *options).document["bitmaps"]
        return bitmaps


@pytest.fixture
def machine(lab: Lab, tmp_path: Path) -> Machine:
    return lab.boot("bitmaps", [DiskSpec(tmp_path / f"{dev}.qcow2", dev=dev, size="8M") for dev in ("vda", "vdb")])


@pytest.fixture
def bitmaps(command: Command, lab: Lab, machine: Machine) -> Bitmaps:
    return Bitmaps(command, lab.uri, machine.name)


def test_bitmap_goes_through_its_life_on_all_disks(bitmaps: Bitmaps, machine: Machine) -> None:
    bitmaps("add", "mine", "--granularity", "32k", "--persistent")
    machine.write("vda", "write -P 1 0 64k")
    facts = [(one["dev"], one["dirty_bytes"], one["granularity_bytes"], one["persistent"]) for one in bitmaps.listed()]
    assert facts == [("vda", 65536, 32768, True), ("vdb", 0, 32768, True)]
    bitmaps("disable", "mine", "--disk", "vda")
    assert [one["state"] for one in bitmaps.listed()] == ["disabled", "recording"]
    bitmaps("enable", "mine", "--disk", "vda")
    bitmaps("add", "other", "--disabled", "--disk", "vda")
    bitmaps("merge", "other", "--source", "mine")
    assert [one["dirty_bytes"] for one in bitmaps.listed("--disk", "vda")] == [65536, 65536]
    changed = bitmaps("clear", "mine").document
    assert [one["dev"] for one in changed["disks"]] == ["vda", "vdb"]
    assert [one["dirty_bytes"] for one in bitmaps.listed() if one["name"] == "mine"] == [0, 0]
    bitmaps("remove", "mine")
    bitmaps("remove", "other")
    assert bitmaps.listed() == []


def test_merge_from_another_node(bitmaps: Bitmaps, machine: Machine) -> None:
    bitmaps("add", "mine")
    machine.write("vdb", "write -P 1 0 64k")
    node = bitmaps.listed("--disk", "vdb")[0]["node_name"]
    bitmaps("merge", "mine", "--disk", "vda", "--source", f"{node}:mine")
    assert bitmaps.listed("--disk", "vda")[0]["dirty_bytes"] == 65536


def test_change_that_fails_on_one_disk_is_made_on_none(bitmaps: Bitmaps, machine: Machine) -> None:
    bitmaps("add", "mine", "--disk", "vdb")
    before = machine.state()
    refused = bitmaps("add", "mine", status=2)
    assert "bitmap 'mine' of node" in refused.stderr
    assert "already exists" in refused.stderr
    assert refused.stderr.startswith("vbackup: Disk vdb: ")
    assert "actions[" not in refused.stderr
    assert machine.state() == before


def test_owners_are_told_apart(
    bitmaps: Bitmaps, machine: Machine, command: Command, lab: Lab, repository: Path
) -> None:
    bitmaps("add", "mine", "--disk", "vda")
    machine.handle.domain.checkpointCreateXML("<domaincheckpoint><name>theirs</name></domaincheckpoint>", 0)
    full = command("-c", lab.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    owners = {
        one["name"]: (one["owner"], one["repository"], one["checkpoint"]) for one in bitmaps.listed("--disk", "vda")
    }
    ours = full["disks"][0]["bitmap"]
    mark = next(name for name in owners if "-end-vda-" in name)
    assert owners == {
        mark: ("vbackup", ours.split("-")[1], None),
        "mine": ("other", None, None),
        "theirs": ("libvirt", None, None),
        ours: ("vbackup", ours.split("-")[1], full["id"]),
    }
    text = command("-c", lab.uri, "bitmap", "list", machine.name).stdout
    assert f"vbackup {ours.split('-')[1]}" in text
    assert "libvirt" in text


def test_layers_are_all_shown(bitmaps: Bitmaps, machine: Machine, tmp_path: Path) -> None:
    bitmaps("add", "mine", "--disk", "vda", "--persistent")
    machine.handle.domain.snapshotCreateXML(
        "<domainsnapshot><name>s</name><disks>"
        f"<disk name='vda' snapshot='external'><source file='{tmp_path}/overlay.qcow2'/></disk>"
        "<disk name='vdb' snapshot='no'/></disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
    )
    # libvirt 9.0 disables the bitmap of the lower layer, libvirt 11.3 leaves it as it was.
    in_qemu = {
        node["node-name"]: "recording" if node["dirty-bitmaps"][0]["recording"] else "disabled"
        for node in machine.execute("query-named-block-nodes", flat=True)
        if node.get("dirty-bitmaps")
    }
    overlay, lower = bitmaps.listed("--disk", "vda")
    assert [(one["layer"], Path(one["file"]).name) for one in (overlay, lower)] == [
        (0, "overlay.qcow2"),
        (1, "vda.qcow2"),
    ]
    assert {one["node_name"]: one["state"] for one in (overlay, lower)} == in_qemu
    assert overlay["state"] == "recording"


@pytest.mark.parametrize("known", [True, False], ids=["repository at hand", "repository not at hand"])
def test_checkpoint_is_removed_only_by_force_which_says_what_follows(
    bitmaps: Bitmaps, machine: Machine, command: Command, lab: Lab, repository: Path, known: bool
) -> None:
    where = ("-r", repository) if known else ()
    full = command("-c", lab.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    name = full["disks"][0]["bitmap"]
    before = machine.state()
    for kind in ("clear", "disable", "enable"):
        refused = bitmaps(kind, name, *where, status=5)
        assert "it can only be removed" in refused.stderr
    refused = bitmaps("remove", name, *where, status=5)
    assert "--force removes it anyway" in refused.stderr
    assert "is a full" in refused.stderr
    assert machine.state() == before
    done = bitmaps("remove", name, "--force", *where)
    assert "warning: Disk vda: the next backup of disk vda" in done.stderr
    again = command("-c", lab.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    assert [disk["level"] for disk in again["disks"]] == ["full", "incremental"]


def test_last_fulls_checkpoint_is_what_a_differential_needs(
    bitmaps: Bitmaps, machine: Machine, command: Command, lab: Lab, repository: Path
) -> None:
    full = command("-c", lab.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    command("-c", lab.uri, "-q", "backup", machine.name, "-r", repository)
    done = bitmaps("remove", full["disks"][0]["bitmap"], "--force", "-r", repository)
    assert "a differential of disk vda" in done.stderr
    command("-c", lab.uri, "backup", machine.name, "-r", repository, "--level", "differential", status=6)
    again = command("-c", lab.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    assert [disk["level"] for disk in again["disks"]] == ["incremental", "incremental"]


def test_libvirts_checkpoint_is_guarded(bitmaps: Bitmaps, machine: Machine) -> None:
    machine.handle.domain.checkpointCreateXML("<domaincheckpoint><name>theirs</name></domaincheckpoint>", 0)
    refused = bitmaps("remove", "theirs", status=5)
    assert f" checkpoint-delete {machine.name}' removes" in refused.stderr
    assert bitmaps("clear", "theirs", status=5)
    bitmaps("remove", "theirs", "--force")


def test_domain_that_is_off(bitmaps: Bitmaps, machine: Machine, tmp_path: Path) -> None:
    machine.destroy()
    bitmaps("add", "mine", "--persistent")
    assert [one["name"] for one in bitmaps.listed()] == ["mine", "mine"]
    assert "bitmaps" in qemu_img_info(tmp_path / "vdb.qcow2")["format-specific"]["data"]
    bitmaps("remove", "mine")
    assert bitmaps.listed() == []


@pytest.mark.parametrize(
    ("kind", "arguments", "status", "said"),
    [
        ("remove", ("none",), 5, "No disk has a bitmap none"),
        ("clear", ("none", "--disk", "vda"), 2, "there is no bitmap 'none'"),
        ("add", ("b", "--disk", "vdz"), 5, "no such disk; the disks are: vda, vdb"),
        ("add", ("b", "--node", "none"), 5, "No disk has the node none"),
        ("add", ("b", "--granularity", "3k"), 2, "not a power of two"),
        ("add", ("",), 2, "The bitmap name is empty"),
        ("merge", ("b",), 2, "--source"),
        ("add", (), 2, "No domain given"),  # the one word is the bitmap's name
    ],
)
def test_wrong_arguments(
    bitmaps: Bitmaps, machine: Machine, kind: str, arguments: tuple[str, ...], status: int, said: str
) -> None:
    before = machine.state()
    refused = bitmaps(kind, *arguments, status=status)
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert machine.state() == before
