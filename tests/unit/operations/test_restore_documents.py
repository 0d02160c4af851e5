"""Documents of restores are JSON, and name their kind."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.builders import UUID, backup
from vbackup.model import ImageFormat, MachineKind
from vbackup.operations import restore_documents
from vbackup.operations.full_in_place import RestoredInFull
from vbackup.operations.live_restore import LiveRestored
from vbackup.operations.restore import Restored
from vbackup.operations.restore_in_place import RestoredInPlace
from vbackup.operations.rollback import RolledBack

ONE = backup(1)


def test_restore_tells_files_from_devices() -> None:
    done = Restored(
        ONE,
        {"vda": Path("/o/vda.qcow2"), "vdb": Path("/dev/vg/b")},
        {"vda": ONE.id, "vdb": ONE.id},
        Path("/o/domain.xml"),
        closed=(),
        left_out=(),
        shared=(),
        devices=("vdb",),
    )
    document = restore_documents.restored(done, ImageFormat.QCOW2)
    assert json.loads(json.dumps(document)) == document
    assert (document["schema"], document["id"], document["name"]) == ("vbackup.restore/1", ONE.id, "web")
    assert [(one["dev"], one["type"], one["format"]) for one in document["disks"]] == [
        ("vda", "file", "qcow2"),
        ("vdb", "block", "raw"),
    ]


def test_restore_in_place_says_what_was_replaced() -> None:
    done = RestoredInPlace(
        ONE.id,
        "web",
        UUID,
        (RolledBack("vda", ONE.id, 65536),),
        (RestoredInFull("vdb", ONE.id, "it is raw", Path("/i/b"), 512, Path("/i/b.before")),),
        (MachineKind.TPM,),
    )
    document = restore_documents.rolled_back(done)
    assert json.loads(json.dumps(document)) == document
    assert (document["schema"], document["machine_untouched"]) == ("vbackup.rollback/1", ["tpm"])
    assert [(one["dev"], one["full"], one["kept"]) for one in document["disks"]] == [
        ("vda", None, None),
        ("vdb", "it is raw", "/i/b.before"),
    ]


def test_live_restore_is_at_home() -> None:
    done = LiveRestored(ONE.id, "web", UUID, {"vda": Path("/o/vda.qcow2")}, {"vda": ONE.id})
    document = restore_documents.live_restored(done)
    assert json.loads(json.dumps(document)) == document
    assert (document["schema"], document["state"]) == ("vbackup.liverestore/1", "home")
    disk = {"dev": "vda", "file": "/o/vda.qcow2", "format": "qcow2", "backup": ONE.id, "checkpoint": False}
    assert document["disks"] == [disk]
