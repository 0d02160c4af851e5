"""An older backup gets its block lists in one step each, and only if it is still the one that was read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.recorded import Recorded
from tests.unit.builders import UUID
from vbackup.errors import BusyError, ChainError, InterruptedBySignalError
from vbackup.repository import late_lists, manifest
from vbackup.repository.history import Link
from vbackup.repository.late_lists import Made
from vbackup.stop import Stop


def made_of(old: Recorded) -> Made:
    link = old.repository.catalogue(UUID).history.links(old.backups[0].id, "vda")[0]
    made = late_lists.make(old.path(old.backups[0]), link, check=lambda: None)
    assert made is not None
    return made


def test_list_is_recorded_beside_the_digest_and_what_else_there_is(recorded_old: Recorded) -> None:
    path = recorded_old.path(recorded_old.backups[0], "manifest.json")
    path.write_text(manifest.text_of({**json.loads(path.read_text()), "from_the_future": [1]}))
    made = made_of(recorded_old)
    assert not recorded_old.path(recorded_old.backups[0], "vda.blocks").exists()
    late_lists.publish(made, recorded_old.repository)
    image = recorded_old.repository.catalogue(UUID).history.get(recorded_old.backups[0].id).image("vda")
    assert image is not None
    assert (image.blocks, image.digest) == (made.blocks, recorded_old.backups[0].disks[0].digest)
    assert json.loads(path.read_text())["from_the_future"] == [1]
    assert recorded_old.path(recorded_old.backups[0], "vda.blocks").stat().st_mode & 0o777 == 0o600


def test_list_of_a_manifest_that_changed_is_not_recorded(recorded_old: Recorded) -> None:
    made = made_of(recorded_old)
    path = recorded_old.path(recorded_old.backups[0], "manifest.json")
    document = json.loads(path.read_text())
    document["disks"][0]["copied_bytes"] += 1
    path.write_text(manifest.text_of(document))
    with pytest.raises(ChainError, match="was changed meanwhile"):
        late_lists.publish(made, recorded_old.repository)
    assert not made.path.exists()
    assert not recorded_old.path(recorded_old.backups[0], "vda.blocks").exists()


def test_domain_that_is_busy_keeps_its_manifest(recorded_old: Recorded) -> None:
    made = made_of(recorded_old)
    with recorded_old.repository.lock(UUID), pytest.raises(BusyError):
        late_lists.publish(made, recorded_old.repository)
    assert not made.path.exists()


def test_request_to_stop_leaves_nothing(recorded_old: Recorded) -> None:
    stop = Stop()
    stop.request(2)
    path = recorded_old.path(recorded_old.backups[0])
    link = recorded_old.repository.catalogue(UUID).history.links(recorded_old.backups[0].id, "vda")[0]
    with pytest.raises(InterruptedBySignalError):
        late_lists.make(path, link, check=stop.check)
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []


def test_image_of_a_kind_that_has_no_lists_gets_none(recorded_old: Recorded) -> None:
    """Such as one whose clusters have another size."""
    path = recorded_old.path(recorded_old.backups[0])
    with path.open("r+b") as file:
        file.seek(20)
        file.write((12).to_bytes(4, "big"))
    backup = recorded_old.backups[0]
    link = Link(backup, replace(backup.disks[0]))
    assert late_lists.make(path, link, check=lambda: None) is None
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []
