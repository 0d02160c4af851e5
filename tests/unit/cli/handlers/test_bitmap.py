"""``vbackup bitmap`` prints the bitmaps or what was changed, as a table or a document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fake_qemu import FakeBitmap, FakeQemu
from tests.unit.builders import REPOSITORY, backup, bitmap_of

if TYPE_CHECKING:
    from tests.conftest import Command

ONE = backup(1)


def test_no_bitmaps_is_an_answer(command: Command, attached: FakeQemu) -> None:
    assert command("bitmap", "list", "web").stdout == "No bitmaps.\n"
    assert command("bitmap", "list", "web", "--json").document == {"schema": "vbackup.bitmaps/1", "bitmaps": []}


def test_bitmaps_are_listed_with_state_and_owner(command: Command, attached: FakeQemu) -> None:
    top = attached.top("virtio-disk0")
    attached.bitmaps(top)["mine"] = FakeBitmap("mine", recording=False, dirty={0, 1})
    attached.bitmaps(top)[bitmap_of(ONE)] = FakeBitmap(bitmap_of(ONE), persistent=True)
    lines = command("bitmap", "list", "web").stdout.splitlines()
    assert lines[0].split() == ["DISK", "NODE", "STATE", "DIRTY", "OWNER", "BITMAP"]
    assert lines[1].split() == ["vda", top, "disabled", "128.0", "KiB", "other", "mine"]
    assert f"vbackup {REPOSITORY}" in lines[2]
    first, second = command("bitmap", "list", "web", "--json").document["bitmaps"]
    assert first == {
        "dev": "vda",
        "node_name": top,
        "layer": 0,
        "file": "/images/vda.qcow2",
        "name": "mine",
        "owner": "other",
        "repository": None,
        "checkpoint": None,
        "tracker": None,
        "state": "disabled",
        "recording": False,
        "busy": False,
        "persistent": False,
        "inconsistent": False,
        "granularity_bytes": 65536,
        "dirty_bytes": 131072,
    }
    assert (second["owner"], second["repository"], second["checkpoint"]) == ("vbackup", REPOSITORY, ONE.id)


def test_change_is_told_for_each_disk(command: Command, attached: FakeQemu) -> None:
    tops = {dev: attached.top(alias) for dev, alias in (("vda", "virtio-disk0"), ("vdb", "virtio-disk1"))}
    said = command("bitmap", "add", "web", "b", "--granularity", "4k", "--persistent", "--disabled").stdout
    assert said.splitlines() == [f"Disk {dev}: added bitmap b on {top}." for dev, top in tops.items()]
    made = attached.bitmaps(tops["vda"])["b"]
    assert (made.granularity, made.persistent, made.recording) == (4096, True, False)
    document = command("bitmap", "remove", "web", "b", "--disk", "vdb", "--json").document
    assert document == {
        "schema": "vbackup.bitmap/1",
        "change": "remove",
        "name": "b",
        "disks": [{"dev": "vdb", "node_name": tops["vdb"]}],
    }
    assert list(attached.bitmaps(tops["vda"])) == ["b"]


def test_sources_to_merge_may_name_their_node(command: Command, attached: FakeQemu) -> None:
    top, other = attached.top("virtio-disk0"), attached.top("virtio-disk1")
    for node, name in ((top, "b"), (top, "near"), (other, "far")):
        attached.bitmaps(node)[name] = FakeBitmap(name, dirty={len(name)})
    command("bitmap", "merge", "web", "b", "--source", "near", f"{other}:far")
    assert attached.bitmaps(top)["b"].dirty == {1, 3, 4}


def test_bitmap_of_a_repository_is_not_removed_without_force(command: Command, attached: FakeQemu) -> None:
    top = attached.top("virtio-disk0")
    attached.bitmaps(top)[bitmap_of(ONE)] = FakeBitmap(bitmap_of(ONE))
    outcome = command("bitmap", "remove", "web", bitmap_of(ONE), status=5)
    assert "--force removes it anyway" in outcome.stderr
    assert list(attached.bitmaps(top)) == [bitmap_of(ONE)]
    command("bitmap", "remove", "web", bitmap_of(ONE), "--force")
    assert list(attached.bitmaps(top)) == []


@pytest.mark.parametrize("change", ["add", "remove", "clear"])
def test_empty_name_is_wrong_usage(command: Command, attached: FakeQemu, change: str) -> None:
    assert "The bitmap name is empty" in command("bitmap", change, "web", "", status=2).stderr
    assert attached.sent == []
