"""A backup is good when all that it depends on is; a run that was stopped goes on; results are kept now and then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.recorded import Recorded
from tests.unit.builders import UUID
from vbackup.errors import StorageError
from vbackup.repository import manifest, verdicts, verification
from vbackup.repository.findings import Findings
from vbackup.repository.history import Link
from vbackup.repository.image_check import Finding, ImageCheck
from vbackup.repository.verdicts import Key, Verdicts
from vbackup.repository.verification import Kind, Verdict, Verification

NOW = datetime(2026, 11, 29, tzinfo=timezone.utc)


@pytest.fixture
def findings(recorded: Recorded) -> Iterator[Findings]:
    made = Findings(recorded.repository, recorded.repository.catalogue(UUID))
    yield made
    made.close()


def made(recorded: Recorded, now: datetime = NOW, *, is_whole: bool = True, is_new: bool = False) -> Verdicts:
    catalogue = recorded.repository.catalogue(UUID)
    return Verdicts(recorded.repository, catalogue, is_whole=is_whole, is_new=is_new, now=lambda: now)


def links(recorded: Recorded) -> dict[Key, Link]:
    catalogue = recorded.repository.catalogue(UUID)
    return {
        (one.id, disk.dev): catalogue.history.links(one.id, disk.dev)[0]
        for one in recorded.backups
        for disk in one.disks
    }


def good(link: Link, part: float = 1) -> ImageCheck:
    assert link.image.blocks is not None
    return ImageCheck((), link.image.blocks.data_blocks, int(link.image.blocks.data_blocks * part))


def kept(recorded: Recorded) -> list[Verification | None]:
    return [verification.read(recorded.repository.directory(UUID, one.id)) for one in recorded.backups]


def test_backup_is_good_when_all_that_it_depends_on_was_read(recorded: Recorded, findings: Findings) -> None:
    one, all_links = made(recorded), links(recorded)
    for key in all_links:
        if key[0] in (recorded.backups[0].id, recorded.backups[1].id):
            one.add(key, good(all_links[key]))
    one.save([], findings, is_complete=True)
    verdicts_kept = [each.verdict if each else None for each in kept(recorded)]
    assert verdicts_kept == [Verdict.GOOD, Verdict.GOOD, None, None]
    assert one.of(recorded.backups[2], findings, is_complete=True).verdict is Verdict.PARTIAL


def test_part_of_the_blocks_is_told_in_percent(recorded: Recorded, findings: Findings) -> None:
    one = made(recorded, is_whole=False)
    for key, link in links(recorded).items():
        one.add(key, good(link, 0.5))
    result = one.of(recorded.backups[0], findings, is_complete=True)
    assert (result.verdict, result.images) == (Verdict.GOOD, ())
    assert 30 < result.percent < 70


def test_images_that_were_not_read_for_longest_come_first(recorded: Recorded, findings: Findings) -> None:
    all_links = links(recorded)
    for age, key in enumerate(all_links):
        one = made(recorded, NOW - timedelta(days=age))
        one.add(key, good(all_links[key]))
        one.save([], findings, is_complete=True)
    *others, never = reversed(all_links)
    kept_of_never = recorded.repository.directory(UUID, never[0]) / "verified.json"
    kept_of_never.unlink()
    order = made(recorded).order(all_links)
    # Both disks of the first backup were forgotten, the first of them was read before the second.
    assert order[:2] == [("20261123T130000Z-full", "vda"), ("20261123T130000Z-full", "vdb")]
    assert order[2:] == [key for key in others if key[0] != never[0]]


def test_stopped_run_goes_on_for_a_week_and_not_with_an_image_that_was_replaced(
    recorded: Recorded, findings: Findings
) -> None:
    all_links = links(recorded)
    key = (recorded.backups[1].id, "vda")
    one = made(recorded)
    one.add(key, good(all_links[key]))
    one.save([], findings, is_complete=False)
    assert len(made(recorded).order(all_links)) == len(all_links) - 1
    assert len(made(recorded, NOW + verdicts.RESUME * 2).order(all_links)) == len(all_links)
    assert len(made(recorded, NOW - timedelta(days=1)).order(all_links)) == len(all_links)
    assert len(made(recorded, is_new=True).order(all_links)) == len(all_links)
    assert len(made(recorded, is_whole=False).order(all_links)) == len(all_links)
    path = recorded.path(recorded.backups[1], "manifest.json")
    document = json.loads(path.read_text())
    document["disks"][0]["blocks"]["digest"] = "blake3:" + "0" * 64
    path.write_text(manifest.text_of(document))
    assert len(made(recorded).order(links(recorded))) == len(all_links)


def test_good_result_stays_while_a_later_run_is_not_complete(recorded: Recorded, findings: Findings) -> None:
    all_links = links(recorded)
    one = made(recorded)
    for key, link in all_links.items():
        one.add(key, good(link))
    one.save(recorded.backups, findings, is_complete=True)
    later = made(recorded, NOW + timedelta(days=30))
    key = (recorded.backups[3].id, "vda")
    later.add(key, good(all_links[key]))
    later.save([], findings, is_complete=False)
    newest = kept(recorded)[3]
    assert newest is not None
    assert (newest.verdict, newest.time) == (Verdict.GOOD, NOW)
    assert newest.unfinished == NOW + timedelta(days=30)


def test_damaged_image_is_not_recorded_as_read(recorded: Recorded, findings: Findings) -> None:
    all_links = links(recorded)
    one = made(recorded)
    key = (recorded.backups[0].id, "vda")
    finding = Finding(Kind.CONTENT, "It is damaged.", {0: 1})
    findings.add(all_links[key], finding)
    one.add(key, ImageCheck((finding,), 7, 7))
    one.save([], findings, is_complete=False)
    first = kept(recorded)[0]
    assert first is not None
    assert (first.verdict, first.images) == (Verdict.DAMAGED, ())
    assert [each.verdict for each in kept(recorded) if each] == [Verdict.DAMAGED] * 4


def damaged_first(recorded: Recorded, findings: Findings) -> Verdicts:
    """All four backups depend on the damaged image, and only its own is read."""
    one = made(recorded)
    key = (recorded.backups[0].id, "vda")
    finding = Finding(Kind.STRUCTURE, "It is damaged.")
    findings.add(links(recorded)[key], finding)
    one.add(key, ImageCheck((finding,), 7, 7))
    return one


def test_affected_backup_that_was_removed_meanwhile_is_not_missed(recorded: Recorded, findings: Findings) -> None:
    one = damaged_first(recorded, findings)
    shutil.rmtree(recorded.repository.directory(UUID, recorded.backups[1].id))
    one.save(recorded.backups[:1], findings, is_complete=True)
    assert [each.verdict if each else None for each in kept(recorded)] == [
        Verdict.DAMAGED,
        None,
        Verdict.DAMAGED,
        Verdict.DAMAGED,
    ]


def test_result_that_cannot_be_written_does_not_keep_the_others_from_it(
    recorded: Recorded, findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = damaged_first(recorded, findings)
    refused = recorded.repository.directory(UUID, recorded.backups[0].id)
    write = verification.write

    def refuse(directory: Path, result: Verification) -> None:
        if directory == refused:
            raise StorageError("Cannot write it.")
        write(directory, result)

    monkeypatch.setattr(verification, "write", refuse)
    monkeypatch.setattr(verdicts, "MAX_FSYNCS", 1)
    with pytest.raises(StorageError, match="Cannot write it"):
        one.save(recorded.backups, findings, is_complete=True)
    assert [each.verdict if each else None for each in kept(recorded)] == [None] + [Verdict.DAMAGED] * 3


def test_results_are_kept_now_and_then(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    one, all_links = made(recorded), links(recorded)
    key = next(iter(all_links))
    assert not one.is_save_due
    one.add(key, good(all_links[key]))
    assert not one.is_save_due
    monkeypatch.setattr(verdicts, "SAVE_S", 0)
    other = made(recorded)
    assert not other.is_save_due
    other.add(key, good(all_links[key]))
    assert other.is_save_due
