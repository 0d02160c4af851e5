"""Documents of plans and results are JSON, and name their kind."""

from __future__ import annotations

import json

from tests.unit import builders
from tests.unit.builders import TOKEN, end_mark, layer
from tests.unit.engine.plans import make, whole
from vbackup.operations import documents
from vbackup.repository import manifest


def test_document_has_the_names_that_the_backup_would_have() -> None:
    plan = make([(builders.node(layer(end_mark(dev)), dev=dev), whole()) for dev in ("vda", "vdb")])
    document = json.loads(json.dumps(documents.plan(plan)))
    assert document["schema"] == "vbackup.plan/1"
    assert (document["id"], document["level"], document["parent"]) == (plan.id, "full", None)
    assert document["domain"] == {"name": "web", "uuid": builders.UUID}
    assert [(disk["dev"], disk["file"], disk["backing_file"]) for disk in document["disks"]] == [
        ("vda", "vda.qcow2", None),
        ("vdb", "vdb.qcow2", None),
    ]
    assert all(disk["bitmap"].endswith(f"{disk['dev']}-{TOKEN}") for disk in document["disks"])
    assert document["left_out"] == [{"kind": "disk", "dev": "hda", "reason": "cdrom"}]
    assert (document["transaction"], document["copies"]) == (plan.transaction(), [])


def test_backup_has_the_members_of_its_manifest() -> None:
    made = builders.backup(1)
    assert documents.backup(made) == {"schema": "vbackup.backup/1", **manifest.document(made)}
