"""Answers as documents are what the commands print."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from tests.unit import builders
from tests.unit.builders import NOON, TOKEN, backup, end_mark, layer
from tests.unit.engine.plans import make, whole
from vbackup.api import documents
from vbackup.errors import UsageError
from vbackup.model import Group, GroupMember, HostIdentity, LeftOut, MachineFile, MachineKind
from vbackup.operations import restore_documents
from vbackup.operations.restore_in_place import RestoredInPlace
from vbackup.operations.restored_machine import Placed
from vbackup.repository.boot_result import BootResult
from vbackup.repository.fsck_result import FsckResult
from vbackup.repository.verification import Verdict, Verification

if TYPE_CHECKING:
    from tests.conftest import Command


def test_backup_is_as_the_command_shows_it(command: Command, filled: Path) -> None:
    from vbackup import api

    shown = command("show", "web", "-r", filled, "--json").document
    document = json.loads(json.dumps(documents.backup(api.connect(repository=filled).record("web").backup)))
    assert document == {name: shown[name] for name in document}
    assert document["id"] == shown["id"]


def test_document_has_the_names_that_the_backup_would_have() -> None:
    disks = [(builders.node(layer(end_mark(dev)), dev=dev), whole()) for dev in ("vda", "vdb")]
    plan = make(disks)
    document = json.loads(json.dumps(documents.plan(plan)))
    assert (document["id"], document["level"], document["parent"]) == (plan.id, "full", None)
    assert document["domain"] == {"name": "web", "uuid": builders.UUID}
    assert [(disk["dev"], disk["file"], disk["backing_file"]) for disk in document["disks"]] == [
        ("vda", "vda.qcow2", None),
        ("vdb", "vdb.qcow2", None),
    ]
    assert all(disk["bitmap"].endswith(f"{disk['dev']}-{TOKEN}") for disk in document["disks"])
    assert document["left_out"] == [{"kind": "disk", "dev": "hda", "reason": "cdrom"}]
    assert (document["transaction"], document["copies"]) == (plan.transaction(), [])


def test_members_of_restores_are_those_of_the_commands_without_schema() -> None:
    done = RestoredInPlace(backup(1).id, "web", builders.UUID, ())
    assert {"schema": "vbackup.rollback/1", **documents.rolled_back(done)} == restore_documents.rolled_back(done)
    assert "schema" not in documents.rolled_back(done)
    assert documents.error(UsageError("No."))["schema"] == "vbackup.error/1"


def test_times_are_utc() -> None:
    east = timezone(timedelta(hours=2))
    assert documents.time(datetime(2026, 11, 23, 12, 15, tzinfo=east)) == "2026-11-23T10:15:00.000000Z"


def test_parts_of_documents_can_be_written_as_json() -> None:
    result = BootResult(NOON, True, "The guest booted.")
    found = Verification(NOON, Verdict.GOOD, 100.0, 65536)
    parts = {
        "host": documents.host(HostIdentity("here", "0123")),
        "group": documents.group(Group("0123456789ab", (GroupMember("web", builders.UUID, "id"),), 1.5)),
        "left_out": documents.left_out(LeftOut("hda", "cdrom")),
        "verification": documents.verification(found),
        "boot": documents.boot(result),
        "fsck": documents.fsck(FsckResult(NOON, ("vda",), (), 1.0)),
        "machine": documents.machine(
            [Placed(MachineFile(MachineKind.NVRAM, 1, "sha256:0", None), Path("/restored/nvram"))]
        ),
    }
    read = json.loads(json.dumps(parts))
    assert (read["host"]["name"], read["group"]["id"], read["left_out"]["dev"]) == ("here", "0123456789ab", "hda")
    assert (read["verification"]["verdict"], read["boot"]["verdict"]) == ("good", result.verdict)
    assert read["fsck"]["time"] == read["boot"]["time"] == documents.time(NOON)
    assert backup(1).id not in json.dumps(read)
