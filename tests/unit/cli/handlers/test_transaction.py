"""``vbackup transaction`` reads JSON, and its exit status is that of the worst job."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fake_qemu import MIB, FakeQemu, qcow2_header
from vbackup.cli.handlers import transaction

if TYPE_CHECKING:
    from tests.conftest import Command

ADD = [{"type": "block-dirty-bitmap-add", "data": {"node": "$disk:vda", "name": "b"}}]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A file with a transaction that adds a bitmap."""
    path = tmp_path / "transaction.json"
    path.write_text(json.dumps(ADD))
    return path


def test_transaction_is_sent_with_the_nodes_of_its_disks(command: Command, attached: FakeQemu, script: Path) -> None:
    document = command("transaction", "web", script, "--json").document
    assert (document["schema"], document["tested"], document["jobs"]) == ("vbackup.transaction/1", False, [])
    top = attached.top("virtio-disk0")
    assert document["arguments"]["actions"][0]["data"]["node"] == top
    assert list(attached.bitmaps(top)) == ["b"]


def test_test_leaves_nothing(command: Command, attached: FakeQemu, script: Path) -> None:
    assert command("transaction", "web", script, "--test", "--json").document["tested"] is True
    assert list(attached.bitmaps(attached.top("virtio-disk0"))) == []


@pytest.mark.parametrize("arguments", [(), ("-",)], ids=["no file", "-"])
def test_standard_input_is_read(
    command: Command, attached: FakeQemu, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(ADD).encode())))
    command("transaction", "web", *arguments)
    assert list(attached.bitmaps(attached.top("virtio-disk0"))) == ["b"]


@pytest.mark.parametrize("where", [("--image", "a.qcow2"), ("--socket", "/run/qmp")], ids=lambda where: where[0])
def test_without_a_domain_the_only_word_is_the_file(
    command: Command, attached: FakeQemu, script: Path, where: tuple[str, ...]
) -> None:
    command("transaction", script, *where)
    assert list(attached.bitmaps(attached.top("virtio-disk0"))) == ["b"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "arguments: this is not JSON"),
        ('[{"type": NaN}]', "JSON has no NaN"),
        ("[" * 100_000, "arguments: this is not JSON"),
        ("\udcff", "arguments: this is not JSON"),
        ("[]" + " " * 100, "larger than"),
    ],
    ids=["torn", "NaN", "deep", "bytes", "huge"],
)
def test_what_is_no_json_is_refused_before_anything_is_sent(
    command: Command, attached: FakeQemu, script: Path, monkeypatch: pytest.MonkeyPatch, content: str, said: str
) -> None:
    if said == "larger than":
        monkeypatch.setattr(transaction, "MAX_FILE_BYTES", 100)
    script.write_bytes(content.encode(errors="surrogateescape"))
    assert said in command("transaction", "web", script, status=2).stderr
    assert attached.sent == []


def test_missing_file_is_wrong_usage(command: Command, attached: FakeQemu, tmp_path: Path) -> None:
    said = command("transaction", "web", tmp_path / "none", status=2).stderr
    assert f"Cannot read {tmp_path / 'none'}: No such file or directory." in said


@pytest.mark.parametrize(
    ("error", "status"), [(None, 0), ("Input/output error", 1), ("No space left on device", 7)], ids=str
)
def test_status_is_that_of_the_worst_job(
    command: Command, attached: FakeQemu, tmp_path: Path, script: Path, error: str | None, status: int
) -> None:
    actions: list[dict[str, Any]] = []
    for number, alias in enumerate(("virtio-disk0", "virtio-disk1")):
        path = tmp_path / f"{number}.qcow2"
        path.write_bytes(qcow2_header(16 * MIB))
        file = {"driver": "file", "filename": str(path)}
        attached.execute("blockdev-add", {"driver": "qcow2", "node-name": f"t{number}", "file": file})
        data = {"job-id": f"j{number}", "device": attached.top(alias), "target": f"t{number}", "sync": "full"}
        actions.append({"type": "blockdev-backup", "data": data})
    if error is not None:
        attached.fail_job("t1", error)
    script.write_text(json.dumps({"actions": actions}))
    document = command("transaction", "web", script, "--wait", "--json", status=status).document
    assert [(job["id"], job["error"]) for job in document["jobs"]] == [("j0", None), ("j1", error)]


def test_job_that_fails_is_told_quietly_too(command: Command, attached: FakeQemu, tmp_path: Path, script: Path) -> None:
    path = tmp_path / "0.qcow2"
    path.write_bytes(qcow2_header(16 * MIB))
    file = {"driver": "file", "filename": str(path)}
    attached.execute("blockdev-add", {"driver": "qcow2", "node-name": "t0", "file": file})
    data = {"job-id": "j0", "device": attached.top("virtio-disk0"), "target": "t0", "sync": "full"}
    script.write_text(json.dumps([{"type": "blockdev-backup", "data": data}]))
    attached.fail_job("t0", "Input/output error")
    assert "Input/output error" in command("transaction", "web", script, "--wait", "-q", status=1).stdout
