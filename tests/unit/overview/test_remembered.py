"""What a repository had comes back as it was; tests/unit/operations/test_status.py has what is made of it."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.overview.examples import DAY, NIGHT, NOW, OTHER, domain, glance, made
from vbackup.errors import StorageError
from vbackup.overview import remembered
from vbackup.overview.facts import DomainFacts
from vbackup.overview.remembered import Seen
from vbackup.repository.verification import Verdict


def without_images(one: DomainFacts) -> DomainFacts:
    """Which nobody asks of what is remembered."""
    latest = tuple(replace(each, images=()) for each in one.seen.latest)
    newest = None if one.seen.newest is None else replace(one.seen.newest, images=())
    return replace(one, seen=replace(one.seen, latest=latest, newest=newest))


def test_all_that_is_told_of_a_domain_comes_back(tmp_path: Path) -> None:
    old, new = made(2 * DAY), made(sequence=2)
    whole = glance(
        *(old, new),
        verified=NIGHT,
        verdict=Verdict.DAMAGED,
        damaged=(old.id,),
        broken="Backup X is broken: gone.",
        unusual=("Disk vda: b", "Disk vdb: a"),
    )
    domains = (
        domain(whole, offsite=frozenset((old.id,)), usb=frozenset()),
        domain(glance(uuid=OTHER, name="n\u00e9w")),
    )
    remembered.note(tmp_path, "/srv/backup", Seen(NOW, domains, frozenset(("offsite", "usb"))))
    found = remembered.recall(tmp_path, "/srv/backup")
    assert found == Seen(NOW, tuple(map(without_images, domains)), frozenset(("offsite", "usb")))
    assert remembered.recall(tmp_path, "/srv/other") is None


def test_what_is_the_same_is_not_written_again_but_is_newer(tmp_path: Path) -> None:
    seen = Seen(NOW, (domain(),), frozenset())
    remembered.note(tmp_path, "/srv/backup", seen)
    [path] = (tmp_path / "seen").iterdir()
    before = path.stat().st_ino
    later = replace(seen, time=NOW + timedelta(hours=1))
    remembered.note(tmp_path, "/srv/backup", later)
    assert path.stat().st_ino == before
    found = remembered.recall(tmp_path, "/srv/backup")
    assert found is not None
    assert found.time == later.time


def test_what_is_planted_is_not_followed(tmp_path: Path) -> None:
    remembered.note(tmp_path, "/srv/backup", Seen(NOW, (), frozenset()))
    [path] = (tmp_path / "seen").iterdir()
    path.unlink()
    os.mkfifo(path)
    assert remembered.recall(tmp_path, "/srv/backup") is None
    path.parent.chmod(0o777)
    with pytest.raises(StorageError, match="Others can replace"):
        remembered.note(tmp_path, "/srv/backup", Seen(NOW, (), frozenset()))
