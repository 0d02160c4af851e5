"""Names in a repository: quick, and silent about whatever is broken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.builders import UUID
from vbackup.repository import known_names
from vbackup.repository.repository import Repository

ONE = "20261101T000000Z-full"


def write(repository: Path, number: int, *, ids: tuple[str, ...] = (), **files: object) -> str:
    """A domain's directory with these backups and files."""
    uuid = f"{number:08x}-0000-0000-0000-000000000000"
    (repository / uuid).mkdir(parents=True)
    for one in ids:
        (repository / uuid / one).mkdir()
    for name, document in files.items():
        (repository / uuid / f"{name}.json").write_text(json.dumps(document))
    return uuid


def test_what_a_repository_has_is_what_its_readers_say(filled: Path) -> None:
    repository = Repository.open(filled)
    [uuid] = repository.uuids()
    made = repository.catalogue(uuid).history.backups
    assert known_names.domains(filled) == [repository.name_of(uuid)] == ["web"]
    for word in ("web", uuid, uuid.upper()):
        assert known_names.backups(filled, word) == [one.id for one in reversed(made)]
        assert known_names.disks(filled, word) == [image.dev for image in made[-1].disks]
    assert known_names.disks(filled, "web", made[0].id) == [image.dev for image in made[0].disks]
    assert known_names.backups(filled, "other") == known_names.disks(filled, "other") == []


def test_former_name_finds_a_domain_and_is_not_offered(tmp_path: Path) -> None:
    write(tmp_path, 1, ids=(ONE,), domain={"names": ["old", "new"], "hosts": [{"name": "hv2"}, {"name": "hv1"}]})
    assert known_names.domains(tmp_path) == ["new"]
    assert known_names.backups(tmp_path, "old") == [ONE]
    assert known_names.hosts(tmp_path) == known_names.hosts(tmp_path, "old") == ["hv1", "hv2"]


def test_target_of_copies_has_the_name_in_its_newest_manifest(tmp_path: Path) -> None:
    uuid = write(tmp_path, 1, ids=(ONE,))
    assert known_names.domains(tmp_path) == [uuid]
    document = {"domain": {"name": "web"}, "disks": [{"dev": "vdb"}, {"dev": "vda"}]}
    (tmp_path / uuid / ONE / "manifest.json").write_text(json.dumps(document))
    assert known_names.domains(tmp_path) == ["web"]
    assert known_names.disks(tmp_path, "web") == ["vda", "vdb"]


def test_what_is_not_committed_is_no_backup(tmp_path: Path) -> None:
    write(tmp_path, 1, ids=(ONE, "20261102T000000Z-full.partial", ".merge-20261101T000000Z-full", "lost+found"))
    assert known_names.backups(tmp_path) == [ONE]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"names": 5, "hosts": 5}', '{"names": [], "hosts": [5]}', "[" * 100_000, "\xff"]
)
def test_damaged_file_is_passed_over(tmp_path: Path, text: str) -> None:
    uuid = write(tmp_path, 1, ids=(ONE,))
    for name in ("domain.json", f"{ONE}/manifest.json"):
        (tmp_path / uuid / name).write_bytes(text.encode("latin-1"))
    assert known_names.domains(tmp_path) == [uuid]
    assert known_names.disks(tmp_path, uuid) == known_names.hosts(tmp_path) == []


def test_fifo_in_place_of_a_file_holds_up_nobody(tmp_path: Path) -> None:
    uuid = write(tmp_path, 1, ids=(ONE,))
    os.mkfifo(tmp_path / uuid / "domain.json")
    os.mkfifo(tmp_path / uuid / ONE / "manifest.json")
    assert known_names.domains(tmp_path) == [uuid]
    assert known_names.disks(tmp_path, uuid) == []


def test_no_repository_has_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "missing", "a\nb", "\0"):
        path = tmp_path / name
        assert known_names.domains(path) == known_names.backups(path) == known_names.hosts(path) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "real", 1, ids=(ONE,), domain={"names": ["web"]})
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / UUID).symlink_to(next((tmp_path / "real").iterdir()))
    assert known_names.domains(repository) == []
