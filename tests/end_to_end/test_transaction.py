"""vbackup transaction: through libvirt, on a domain that is off, on image files; and what it refuses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.conftest import action, add_bitmap
from tests.lab import DiskSpec, Lab, Machine, compare, qemu_img_info

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome


class Sender:
    """Sends transactions to one machine."""

    def __init__(self, command: Command, uri: str, name: str, directory: Path) -> None:
        self._command, self._uri, self._name = command, uri, name
        self._file = directory / "actions.json"

    def __call__(self, transaction: Any, *options: str | Path, status: int = 0) -> Outcome:
        self._file.write_text(json.dumps(transaction))
        return self._command(
            "-c", self._uri, "-q", "transaction", self._name, self._file, "--json", *options, status=status
        )


@pytest.fixture
def machine(lab: Lab, tmp_path: Path) -> Machine:
    specs = [DiskSpec(tmp_path / f"{dev}.qcow2", dev=dev, size="8M") for dev in ("vda", "vdb")]
    machine = lab.boot("transaction", specs)
    machine.write("vda", "write -P 5 1M 64k")
    return machine


@pytest.fixture
def send(command: Command, lab: Lab, machine: Machine, tmp_path: Path) -> Sender:
    return Sender(command, lab.uri, machine.name, tmp_path)


def both(name: str) -> list[Any]:
    return [add_bitmap(f"$disk:{dev}", name, persistent=True) for dev in ("vda", "vdb")]


def bitmap_names(path: Path) -> list[str]:
    bitmaps = qemu_img_info(path)["format-specific"]["data"].get("bitmaps", [])
    return sorted(one["name"] for one in bitmaps)


def test_disks_are_named_by_their_dev(send: Sender, machine: Machine) -> None:
    done = send(both("mine")).document
    assert done["schema"] == "vbackup.transaction/1"
    assert (done["tested"], done["jobs"], done["completion"]) == (False, [], "individual")
    assert sorted(machine.bitmaps().values()) == [["mine"], ["mine"]]


def test_test_does_nothing(send: Sender, machine: Machine) -> None:
    before = machine.state()
    assert send(both("mine"), "--test").document["tested"] is True
    assert machine.state() == before


def test_copy_is_followed_and_exact(send: Sender, machine: Machine, tmp_path: Path) -> None:
    copy = tmp_path / "copy.qcow2"
    data = {"job-id": "j", "device": "$disk:vda", "target": str(copy), "sync": "full", "format": "qcow2"}
    done = send([*both("mine"), {"type": "drive-backup", "data": data}], "--wait").document
    assert [(job["id"], job["status"], job["error"]) for job in done["jobs"]] == [("j", "concluded", None)]
    assert any("deprecated" in warning for warning in done["warnings"])
    assert machine.execute("query-jobs") == []
    machine.destroy()
    compare(copy, tmp_path / "vda.qcow2")


def test_arguments_with_properties_are_taken_whole(send: Sender, tmp_path: Path) -> None:
    jobs = [
        action("drive-backup", job_id=dev, device=f"$disk:{dev}", target=str(tmp_path / f"to-{dev}"), sync="full")
        for dev in ("vda", "vdb")
    ]
    for job in jobs:
        job["data"]["format"] = "qcow2"
    arguments = {"actions": jobs, "properties": {"completion-mode": "grouped"}}
    done = send(arguments, "--wait").document
    assert (done["completion"], [job["error"] for job in done["jobs"]]) == ("grouped", [None, None])


def test_grouped_beside_bitmaps_is_done_by_vbackup_if_it_may_wait(send: Sender, tmp_path: Path) -> None:
    data = {"job-id": "j", "device": "$disk:vda", "target": str(tmp_path / "to"), "sync": "full", "format": "qcow2"}
    actions = [*both("mine"), {"type": "drive-backup", "data": data}]
    refused = send(actions, "--completion-mode", "grouped", status=2)
    assert refused.document["evidence"]["path"] == "actions[0].type"
    assert not (tmp_path / "to").exists()
    done = send(actions, "--completion-mode", "grouped", "--wait").document
    assert (done["completion"], [job["error"] for job in done["jobs"]]) == ("together", [None])


@pytest.mark.parametrize("kind", ["blockdev-snapshot", "blockdev-snapshot-sync"])
def test_overlay_on_libvirts_disk_is_refused_unless_unsafe(
    send: Sender, machine: Machine, tmp_path: Path, kind: str
) -> None:
    before = machine.state()
    overlay = tmp_path / "overlay.qcow2"
    if kind == "blockdev-snapshot":
        snapshot = action(kind, node="$disk:vda", overlay="overlay")
    else:
        snapshot = action(
            kind, node_name="$disk:vda", snapshot_file=str(overlay), snapshot_node_name="overlay", format="qcow2"
        )
    refused = send([snapshot], status=5)
    assert f" snapshot-create-as {machine.name} --disk-only" in refused.stderr
    assert machine.state() == before
    if kind == "blockdev-snapshot":
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(overlay), "8M"], check=True)
        file = {"driver": "file", "filename": str(overlay)}
        machine.execute("blockdev-add", driver="qcow2", node_name="overlay", file=file, backing=None)
    send([snapshot], "--unsafe")
    assert "overlay" in machine.state()["nodes"]


def test_checkpoint_of_a_repository_is_not_changed(
    send: Sender, machine: Machine, command: Command, lab: Lab, repository: Path
) -> None:
    full = command("-c", lab.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    bitmap = full["disks"][0]["bitmap"]
    refused = send([action("block-dirty-bitmap-clear", node="$disk:vda", name=bitmap)], status=5)
    assert "the next backup of disk vda would miss changes" in refused.stderr
    send([action("block-dirty-bitmap-clear", node="$disk:vda", name=bitmap)], "--unsafe", "--test")


def test_plan_of_a_backup_is_a_transaction_that_can_be_tested(
    send: Sender, machine: Machine, command: Command, lab: Lab, repository: Path
) -> None:
    plan = command("-c", lab.uri, "-q", "backup", machine.name, "-r", repository, "--json", "--dry-run").document
    added = [one for one in plan["transaction"] if one["type"] == "block-dirty-bitmap-add"]
    bitmaps = [one for one in added if "-end-" not in one["data"]["name"]]
    assert len(bitmaps) == 2
    assert send(bitmaps, "--test").document["tested"] is True


def test_existing_file_is_not_emptied(send: Sender, tmp_path: Path) -> None:
    precious = tmp_path / "precious.qcow2"
    precious.write_bytes(b"precious")
    data = {"job-id": "j", "device": "$disk:vda", "target": str(precious), "sync": "full", "format": "qcow2"}
    refused = send([{"type": "drive-backup", "data": data}], status=5)
    assert f"{precious} exists" in refused.stderr
    assert precious.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("transaction", "path", "said"),
    [
        ("text", "arguments", "list"),
        ({"actions": 5}, "actions", ""),
        ([{"type": "block-dirty-bitmap-ad", "data": {}}], "actions[0].type", "block-dirty-bitmap-add"),
        ([{"type": "x-block-dirty-bitmap-merge", "data": {}}], "actions[0].type", "use 'block-dirty-bitmap-merge'"),
        ([add_bitmap("$disk:vdz", "b")], "actions[0].data.node", "the disks are: vda, vdb"),
        ([add_bitmap("$disk:vda", "b", granularity="64k")], "actions[0].data.granularity", ""),
        ([*both("b"), add_bitmap("$disk:vda", "b")], "actions[2].data.name", "already"),
    ],
    ids=str,
)
def test_what_is_no_transaction_is_refused_with_its_place(
    send: Sender, machine: Machine, transaction: Any, path: str, said: str
) -> None:
    before = machine.state()
    refused = send(transaction, status=2)
    assert refused.document["evidence"]["path"] == path
    assert refused.stderr.startswith(f"vbackup: {path}: ")
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert machine.state() == before


def test_refusal_of_qemu_names_the_action(send: Sender, machine: Machine) -> None:
    before = machine.state()
    actions = [*both("mine"), action("blockdev-backup", job_id="j", device="$disk:vda", target="none", sync="full")]
    refused = send(actions, status=1)
    assert refused.document["evidence"]["index"] == 2
    assert "QEMU refused actions[2] (blockdev-backup)" in refused.stderr
    assert machine.state() == before


def test_domain_that_is_off(send: Sender, machine: Machine, tmp_path: Path) -> None:
    """Through a storage daemon: what is persistent is in the images afterwards, and a job is waited for."""
    machine.destroy()
    copy = tmp_path / "copy.qcow2"
    data = {"job-id": "j", "device": "$disk:vda", "target": str(copy), "sync": "full", "format": "qcow2"}
    done = send([*both("mine"), {"type": "drive-backup", "data": data}]).document
    assert [job["status"] for job in done["jobs"]] == ["concluded"]
    assert bitmap_names(tmp_path / "vda.qcow2") == ["mine"]
    compare(copy, tmp_path / "vda.qcow2")


def test_image_files(command: Command, tmp_path: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(tmp_path / "from.qcow2"), "8M"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(tmp_path / "to.raw"), "8M"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 9 1M 2M", str(tmp_path / "from.qcow2")], check=True, capture_output=True)
    file = tmp_path / "actions.json"
    copy = action("blockdev-backup", job_id="j", device="$disk:vda", target="$disk:vdb", sync="full")
    file.write_text(json.dumps([add_bitmap("$disk:vda", "mine", persistent=True), copy]))
    done = command("transaction", file, "--image", tmp_path / "from.qcow2", f"raw:{tmp_path / 'to.raw'}", "--json")
    assert [job["error"] for job in done.document["jobs"]] == [None]
    compare(tmp_path / "from.qcow2", tmp_path / "to.raw")
    assert bitmap_names(tmp_path / "from.qcow2") == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("web", "a.json", "--socket", "/s"), 2, "not both"),
        (("a.json", "--socket", "/s", "--image", "/i"), 2, "not both"),
        ((), 2, "No domain given"),
        (("web", "/nonexistent.json"), 2, "Cannot read /nonexistent.json: No such file or directory."),
        (("--socket", "/nonexistent", "/dev/null"), 2, "this is not JSON"),
        (("web", "/dev/null", "--completion-mode", "both"), 2, "--completion-mode"),
    ],
    ids=str,
)
def test_wrong_arguments(command: Command, arguments: tuple[str, ...], status: int, said: str) -> None:
    refused = command("transaction", *arguments, status=status)
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_socket_that_nobody_serves(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "actions.json"
    file.write_text("[]")
    refused = command("transaction", file, "--socket", tmp_path / "none", status=4)
    assert len(refused.stderr.splitlines()) == 1


def test_image_that_is_not_there(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "actions.json"
    file.write_text("[]")
    refused = command("transaction", file, "--image", tmp_path / "none.qcow2", status=5)
    assert "none.qcow2" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
