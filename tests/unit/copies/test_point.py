"""A point's manifest: a backup's, with what its objects were when they were sent."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.builders import backup, image
from vbackup.copies import point
from vbackup.copies.point import ObjectRecord, Origin, Point
from vbackup.errors import ChainError
from vbackup.model import BlocksRecord
from vbackup.repository import manifest

BLOCKS = BlocksRecord("blake3:1", "blake3:2", data_blocks=1, zero_blocks=0)
BACKUP = backup(1, replace(image(), blocks=BLOCKS))


def whole() -> Point:
    objects = {name: ObjectRecord(5, "blake3:3") for name in point.names_of(BACKUP)}
    return Point(BACKUP, objects, {"vda": Origin(None, "blake3:1")})


def load(text: str) -> Point:
    return point.load(text, backup_id=BACKUP.id, uuid=BACKUP.domain_uuid)


def test_comes_back_and_is_a_manifest_too() -> None:
    text = point.dump(whole())
    assert load(text) == whole()
    assert manifest.load(text, backup_id=BACKUP.id, domain_uuid=BACKUP.domain_uuid) == BACKUP


def test_names_are_all_objects_but_the_manifest() -> None:
    assert point.names_of(BACKUP) == [*BACKUP.digests, "vda.qcow2", "vda.blocks"]
    assert "vda.blocks" not in point.names_of(backup(1))


def test_object_is_of_a_disk_or_of_none() -> None:
    named = dict.fromkeys([*BACKUP.digests, "live.xml", "manifest.json"])
    assert {name: point.dev_of(BACKUP, name) for name in named} == named
    assert [point.dev_of(BACKUP, name) for name in ("vda.qcow2", "vda.blocks")] == ["vda", "vda"]


def test_origin_is_the_image_in_the_repository() -> None:
    assert point.origin_of(BACKUP.disks[0]) == Origin(None, "blake3:1")
    assert point.origin_of(image()) == Origin(None, None)


def test_an_object_without_a_digest_is_refused() -> None:
    lacking = replace(whole(), objects={})
    with pytest.raises(ChainError, match="no digest of"):
        load(point.dump(lacking))


def test_a_change_is_noticed() -> None:
    document = json.loads(point.dump(whole()))
    document["copy"]["objects"]["vda.qcow2"]["size_bytes"] = 6
    with pytest.raises(ChainError, match="altered"):
        load(json.dumps(document))


def test_manifest_of_a_repository_is_no_point() -> None:
    with pytest.raises(ChainError, match="copy"):
        load(manifest.dump(BACKUP))
