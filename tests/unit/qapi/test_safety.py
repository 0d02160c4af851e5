"""A user's transaction that would do harm is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.builders import REPOSITORY, TOKEN, backup_id
from vbackup import names
from vbackup.errors import Status, UnsafeError
from vbackup.qapi import safety

CHECKPOINT = names.Naming(REPOSITORY).bitmap(backup_id(1), "vda", TOKEN)
NODES = {"libvirt-1-format": "vda", "libvirt-1-storage": ""}


def check(*actions: dict[str, Any], domain: str | None = "web", **more: Any) -> None:
    facts: dict[str, Any] = {
        "libvirt_nodes": NODES,
        "existing": {"libvirt-1-format": {CHECKPOINT, "mine"}},
        "existing_files": (),
        **more,
    }
    safety.check(actions, domain=domain, **facts)


def action(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": {name.replace("_", "-"): value for name, value in data.items()}}


@pytest.mark.parametrize(
    ("snapshot", "member", "instead"),
    [
        (
            action("blockdev-snapshot", node="libvirt-1-format", overlay="o"),
            "node",
            "virsh snapshot-create-as web --disk-only --no-metadata --diskspec vda,file=FILE --reuse-external",
        ),
        (
            action("blockdev-snapshot-sync", node_name="libvirt-1-format", snapshot_file="/over.qcow2"),
            "node-name",
            "virsh snapshot-create-as web --disk-only --no-metadata --diskspec vda,file=/over.qcow2'",
        ),
        (action("blockdev-snapshot-sync", device="libvirt-1-storage", snapshot_file="/o"), "device", "DISK,file=/o"),
    ],
)
def test_overlay_on_a_disk_of_libvirt_is_refused_with_the_virsh_command(
    snapshot: dict[str, Any], member: str, instead: str
) -> None:
    with pytest.raises(UnsafeError) as caught:
        check(action("abort"), snapshot)
    assert str(caught.value).startswith(f"actions[1].data.{member}: ")
    assert instead in str(caught.value)
    assert "--unsafe" in str(caught.value)
    assert caught.value.status == Status.UNSUITABLE


def test_overlay_on_a_node_of_somebody_else_is_none_of_libvirts_business() -> None:
    check(action("blockdev-snapshot", node="my-node", overlay="o"))


def test_without_libvirt_overlays_are_allowed() -> None:
    check(action("blockdev-snapshot", node="libvirt-1-format", overlay="o"), domain=None)


@pytest.mark.parametrize(
    "change",
    [
        action("block-dirty-bitmap-remove", node="libvirt-1-format", name=CHECKPOINT),
        action("block-dirty-bitmap-clear", node="libvirt-1-format", name=CHECKPOINT),
        action("block-dirty-bitmap-enable", node="libvirt-1-format", name=CHECKPOINT),
        action("block-dirty-bitmap-disable", node="libvirt-1-format", name=CHECKPOINT),
        action("block-dirty-bitmap-merge", node="libvirt-1-format", target=CHECKPOINT, bitmaps=["mine"]),
    ],
    ids=lambda value: value["type"],
)
def test_checkpoint_of_a_repository_is_not_changed(change: dict[str, Any]) -> None:
    with pytest.raises(UnsafeError, match=f"checkpoint of repository {REPOSITORY}") as caught:
        check(change)
    assert "vbackup bitmap remove" in str(caught.value)


def test_checkpoint_may_be_read_and_other_bitmaps_changed() -> None:
    check(
        action("block-dirty-bitmap-merge", node="libvirt-1-format", target="mine", bitmaps=[CHECKPOINT]),
        action("block-dirty-bitmap-clear", node="libvirt-1-format", name="mine"),
    )


def test_plan_of_a_backup_may_be_sent() -> None:
    """It changes only bitmaps that it adds itself."""
    new = names.Naming(REPOSITORY).working_bitmap(backup_id(2), "vda")
    check(
        action("block-dirty-bitmap-add", node="libvirt-1-format", name=new),
        action("block-dirty-bitmap-disable", node="libvirt-1-format", name=new),
        action("block-dirty-bitmap-merge", node="libvirt-1-format", target=new, bitmaps=[CHECKPOINT]),
    )


@pytest.mark.parametrize(
    "maker",
    [
        action("drive-backup", device="x", target="/there.qcow2", sync="full"),
        action("blockdev-snapshot-sync", node_name="x", snapshot_file="/there.qcow2", mode="absolute-paths"),
    ],
    ids=lambda value: value["type"],
)
def test_file_that_exists_is_not_made_anew(maker: dict[str, Any]) -> None:
    with pytest.raises(UnsafeError, match=r"/there\.qcow2 exists"):
        check(maker, existing_files={"/there.qcow2"})
    maker["data"]["mode"] = "existing"
    check(maker, existing_files={"/there.qcow2"})
