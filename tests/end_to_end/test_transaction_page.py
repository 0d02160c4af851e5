"""What vbackup-transaction(7) shows works: every example is sent to a QEMU without libvirt, for a test and for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from docutils import nodes
from docutils.core import publish_doctree

from tests.contract.conftest import qemu_process
from vbackup.qapi import actions
from vbackup.qemu.qmp_socket import Socket

if TYPE_CHECKING:
    from tests.conftest import Command

PAGE = Path(__file__).resolve().parents[2] / "man" / "vbackup-transaction.7.rst"


def examples() -> list[str]:
    """The literal blocks that are JSON."""
    document: nodes.document = publish_doctree(PAGE.read_text(), settings_overrides={"report_level": 2})
    blocks = [one.astext() for one in document.findall(nodes.literal_block)]
    return [block for block in blocks if block.lstrip().startswith(("[", "{"))]


EXAMPLES = examples()


@pytest.fixture
def directory() -> Iterator[Path]:
    # The path is short: a socket is below it.
    made = Path(tempfile.mkdtemp(prefix="vb-page-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def socket(directory: Path) -> Iterator[Path]:
    """A QEMU as the page speaks of it: disks vda and vdb, bitmaps of Sunday and Monday, a node to be an overlay."""
    options = ["-machine", "pc", "-m", "32"]
    for name in ("vda", "vdb", "overlay"):
        path = directory / f"{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", os.fspath(path), "16M"], check=True)
        node: dict[str, Any] = {"driver": "qcow2", "node-name": f"{name}-node", "backing": None}
        node["file"] = {"driver": "file", "filename": os.fspath(path)}
        if name == "overlay":
            node["node-name"] = "overlay"
        options += ["-blockdev", json.dumps(node)]
    for name in ("vda", "vdb"):
        options += ["-device", f"virtio-blk-pci,drive={name}-node,id={name},share-rw=on"]
    path = directory / "qmp"
    with qemu_process(path, options):
        with Socket(os.fspath(path)) as monitor:
            for name, disabled in (("monday", False), ("sunday", True)):
                monitor.execute("block-dirty-bitmap-add", {"node": "vda-node", "name": name, "disabled": disabled})
        yield path


def test_every_action_has_an_example() -> None:
    shown = {action["type"] for example in EXAMPLES for action in json.loads(example)}
    assert shown == set(actions.TYPES)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: "+".join(one["type"] for one in json.loads(text)))
def test_example_works(example: str, socket: Path, directory: Path, command: Command) -> None:
    file = directory / "actions.json"
    file.write_text(example.replace("/srv/backup", os.fspath(directory)))
    aborts = '"abort"' in example
    tested = command("transaction", file, "--socket", socket, "--test", "--json", status=2 if aborts else 0)
    assert aborts or tested.document["tested"] is True
    done = command("transaction", file, "--socket", socket, "--wait", "--json", status=1 if aborts else 0)
    if not aborts:
        assert [job["error"] for job in done.document["jobs"]] == [None] * example.count("job-id")
