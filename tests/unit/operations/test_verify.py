"""What is damaged is found by verify and by restore, with the backups that it affects; the others are restored."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.recorded import BLOCK, MIB, Recorded, Write, flip, flip_block, place_of
from tests.unit.builders import UUID, Recorder
from vbackup.errors import ChainError, DamagedError, DiskError, InterruptedBySignalError
from vbackup.model import Backup, ImageFormat
from vbackup.operations import restore, verify
from vbackup.operations.restore import RestoreRequest
from vbackup.operations.verify import Verified, VerifyRequest
from vbackup.repository import block_scan, image_check, kept_result, readers, verdicts, verification
from vbackup.repository.choice import Wanted
from vbackup.repository.verification import Kind, Verdict
from vbackup.stop import Stop


@pytest.fixture
def repo(recorded: Recorded) -> Recorded:
    return recorded


@pytest.fixture
def old(recorded_old: Recorded) -> Recorded:
    return recorded_old


def run(repo: Recorded, recorder: Recorder | None = None, *, stop: Stop | None = None, **options: Any) -> Verified:
    return verify.run(
        VerifyRequest(**options),
        UUID,
        repository=repo.repository,
        reporter=recorder or Recorder(),
        stop=stop or Stop(),
    )


def restored(
    repo: Recorded, one: Backup, output: Path, image_format: ImageFormat = ImageFormat.RAW
) -> dict[str, bytes]:
    request = RestoreRequest("web", output, Wanted(one.id), image_format=image_format)
    done = restore.run(request, repository=repo.repository, reporter=Recorder(), stop=Stop())
    return {dev: path.read_bytes() for dev, path in done.images.items()}


def result(repo: Recorded, one: Backup) -> verification.Verification | None:
    return verification.read(repo.repository.directory(UUID, one.id))


def flipped(block: int) -> Callable[[Path], None]:
    return lambda path: flip_block(path, block)


def entry_at(path: Path, at: int) -> int:
    with path.open("rb") as file:
        file.seek(at)
        return int.from_bytes(file.read(8), "big") & 0x00FF_FFFF_FFFF_FE00


def flip_l1(path: Path) -> None:
    flip(path, entry_at(path, 40) + 5)


def flip_l2(path: Path) -> None:
    """The entry of block 1, which then reads as zeros."""
    flip(path, entry_at(path, entry_at(path, 40)) + 15)


def zero_data(block: int) -> Callable[[Path], None]:
    """Zeros instead of the data, where they hide what is below."""

    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(place_of(path, block))
            file.write(bytes(BLOCK))

    return damage


def swap(path: Path) -> None:
    """With the image of the backup after it."""
    directories = sorted(one for one in path.parent.parent.iterdir() if one.is_dir())
    other = directories[directories.index(path.parent) + 1] / path.name
    spare = path.with_suffix(".spare")
    path.rename(spare)
    other.rename(path)
    spare.rename(other)


def other_list(path: Path) -> None:
    shutil.copy(path.with_name("vdb.blocks"), path.with_name("vda.blocks"))


def flip_manifest(path: Path) -> None:
    manifest = path.with_name("manifest.json")
    manifest.write_text(manifest.read_text().replace('"asked for"', '"asked fos"', 1))


@dataclass(frozen=True)
class Case:
    """Damage of the image of vda in one of the four backups A to D."""

    name: str
    of: int
    damage: Callable[[Path], object]
    kinds: set[Kind]
    affected: set[int]
    ranges: list[tuple[int, int]] = field(default_factory=list)


ALL_FOUR = {0, 1, 2, 3}
CASES = [
    Case("data of all", 0, flipped(0), {Kind.CONTENT}, ALL_FOUR, [(0, BLOCK)]),
    Case("data that the next backup replaced", 0, flipped(1), {Kind.CONTENT}, {0}, [(BLOCK, BLOCK)]),
    Case("data replaced later", 0, flipped(2), {Kind.CONTENT}, {0, 1}, [(2 * BLOCK, BLOCK)]),
    Case("data below zeros", 0, flipped(32), {Kind.CONTENT}, {0}, [(2 * MIB, BLOCK)]),
    Case("compressed with zstd", 1, flipped(48), {Kind.CONTENT}, {1, 2, 3}, [(3 * MIB, BLOCK)]),
    Case("compressed with zlib", 3, flipped(4), {Kind.CONTENT}, {3}, [(4 * BLOCK, BLOCK)]),
    Case("the last block, not a whole one", 3, flipped(144), {Kind.CONTENT}, {3}, [(9 * MIB, 3 * 512)]),
    Case("zeros that hide data below", 1, zero_data(1), {Kind.CONTENT}, {1, 2, 3}, [(BLOCK, BLOCK)]),
    Case("header", 1, lambda path: flip(path, 75), {Kind.STRUCTURE}, {1, 2, 3}),
    Case("magic", 1, lambda path: flip(path, 0), {Kind.STRUCTURE}, {1, 2, 3}),
    Case("L1 table", 1, flip_l1, {Kind.STRUCTURE}, {1, 2, 3}),
    Case("L2 table", 1, flip_l2, {Kind.STRUCTURE, Kind.CONTENT}, {1, 2, 3}),
    Case("refcount table", 1, lambda path: flip(path, entry_at(path, 48) + 5), {Kind.STRUCTURE}, {1, 2, 3}),
    Case(
        "refcount block",
        1,
        lambda path: flip(path, entry_at(path, entry_at(path, 48)) + 1),
        {Kind.STRUCTURE},
        {1, 2, 3},
    ),
    Case("list", 1, lambda path: flip(path.with_suffix(".blocks"), 100), {Kind.LIST}, {1, 2, 3}),
    Case("no list", 1, lambda path: path.with_suffix(".blocks").unlink(), {Kind.LIST}, {1, 2, 3}),
    Case("list of another disk", 2, other_list, {Kind.LIST}, {2, 3}),
    Case("domain.xml", 1, lambda path: flip(path.with_name("domain.xml"), 9), {Kind.FILE}, {1}),
    Case("nvram", 1, lambda path: path.with_name("nvram").unlink(), {Kind.FILE}, {1}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_damage_is_found_with_what_it_affects_and_not_restored(repo: Recorded, tmp_path: Path, case: Case) -> None:
    case.damage(repo.path(repo.backups[case.of]))
    recorder = Recorder()
    done = run(repo, recorder)
    kinds = {found.kind for found in done.damage}
    # With wrong tables, blocks can be wrong, too.
    assert kinds == case.kinds or (Kind.STRUCTURE in case.kinds and case.kinds <= kinds)
    affected = {repo.backups[number].id for number in case.affected}
    assert {one for found in done.damage for one in found.affected} == affected
    assert set(done.damaged) == affected
    if Kind.STRUCTURE not in case.kinds:
        assert [part for found in done.damage for part in found.ranges] == case.ranges
    assert len(recorder.warnings) == len(done.damage)
    for number, one in enumerate(repo.backups):
        kept = result(repo, one)
        assert kept is not None
        assert kept.verdict is (Verdict.DAMAGED if number in case.affected else Verdict.GOOD)
        assert bool(kept.damage) == (number in case.affected)
    # A restore finds it by itself.
    for number in (min(case.affected), max(case.affected)):
        output = tmp_path / f"damaged{number}"
        with pytest.raises(ChainError):
            restored(repo, repo.backups[number], output)
        assert not output.exists()
    for number in ALL_FOUR - case.affected:
        assert restored(repo, repo.backups[number], tmp_path / f"good{number}") == repo.expected(repo.backups[number])


@pytest.mark.parametrize(
    ("damage", "reported"),
    [
        (Path.unlink, "missing"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "another size"),
        (lambda path: shutil.rmtree(path.parent), "missing"),
        (lambda path: path.with_name("manifest.json").write_text("{"), "not JSON"),
        (flip_manifest, "differs from its digest"),
        (swap, ""),
    ],
    ids=["no image", "truncated", "no backup", "broken manifest", "altered manifest", "swapped"],
)
def test_file_that_is_not_the_recorded_one_is_a_failure_and_the_others_are_verified(
    repo: Recorded, tmp_path: Path, damage: Callable[[Path], object], reported: str
) -> None:
    """Of the second of four: the first is good, the ones after it depend on it."""
    damage(repo.path(repo.backups[1]))
    recorder = Recorder()
    done = run(repo, recorder)
    after = {one.id for one in repo.backups[1:]}
    assert after - set(done.damaged) <= {repo.backups[1].id}  # a backup that is gone is not there to be damaged
    assert repo.backups[0].id not in done.damaged
    assert any(reported in text for text in recorder.warnings)
    kept = result(repo, repo.backups[0])
    assert kept is not None
    assert (kept.verdict, kept.percent) == (Verdict.GOOD, 100)
    for one in repo.backups[1:]:
        with pytest.raises(ChainError):
            restored(repo, one, tmp_path / one.id)
        assert not (tmp_path / one.id).exists()
    assert restored(repo, repo.backups[0], tmp_path / "good") == repo.expected(repo.backups[0])


@pytest.mark.parametrize("which", ["recorded", "recorded_old"])
@pytest.mark.parametrize("image_format", ImageFormat)
def test_good_backups_are_good_and_restored_byte_for_byte(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, image_format: ImageFormat
) -> None:
    repo = request.getfixturevalue(which)
    recorder = Recorder()
    done = run(repo, recorder)
    assert (done.damaged, recorder.warnings, done.is_kept) == ([], [], True)
    assert {one.verdict for one in done.results.values()} == {Verdict.GOOD}
    assert {one.percent for one in done.results.values()} == {100}
    assert done.images == 7
    for one in repo.backups:
        output = tmp_path / one.id
        images = restored(repo, one, output, image_format)
        if image_format is ImageFormat.RAW:
            assert images == repo.expected(one)


def test_each_image_is_read_once(repo: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    check = image_check.check
    monkeypatch.setattr(image_check, "check", lambda path, *more: (read.append(path), check(path, *more))[1])
    run(repo)
    assert len(read) == len(set(read)) == 7


def test_only_the_wanted_backup_and_what_it_depends_on_is_read(repo: Recorded) -> None:
    done = run(repo, backup_id=repo.backups[1].id)
    assert done.images == 2
    assert list(done.results) == [repo.backups[1].id]
    kept = [result(repo, one) for one in repo.backups]
    # vda of the first was read, vdb was not.
    assert [one.verdict if one else None for one in kept] == [Verdict.PARTIAL, Verdict.GOOD, None, None]


def test_only_the_wanted_disks_are_read(repo: Recorded) -> None:
    done = run(repo, disks=("vdb",))
    assert done.images == 3
    with pytest.raises(DiskError, match="the backups have vda, vdb"):
        run(repo, disks=("vdz",))
    with pytest.raises(ChainError, match="No backup 'other'"):
        run(repo, backup_id="other")


def test_damage_found_earlier_stays_until_it_was_read_again(repo: Recorded) -> None:
    image = repo.path(repo.backups[0])
    flip_block(image, 1)
    run(repo)
    run(repo, disks=("vdb",))
    kept = result(repo, repo.backups[0])
    assert kept is not None
    assert kept.verdict is Verdict.DAMAGED
    flip_block(image, 1)
    done = run(repo)
    assert done.damaged == []
    kept = result(repo, repo.backups[0])
    assert kept is not None
    assert (kept.verdict, kept.damage) == (Verdict.GOOD, ())


@pytest.mark.parametrize("disks", [("vda",), ()], ids=["another disk", "the same disk"])
def test_damage_found_by_another_verify_at_the_same_time_stays(
    repo: Recorded, monkeypatch: pytest.MonkeyPatch, disks: tuple[str, ...]
) -> None:
    """The other one begins later and ends earlier; this one has read the disk that the other finds damaged, or not."""
    first = repo.backups[0]
    check, calls = image_check.check, 0

    def with_another(*arguments: Any) -> image_check.ImageCheck:
        nonlocal calls
        calls += 1
        found = check(*arguments)
        if calls == (7 if not disks else 1):
            monkeypatch.setattr(image_check, "check", check)
            flip_block(repo.path(first, "vdb.qcow2"), 1)
            run(repo, disks=("vdb",))
        return found

    monkeypatch.setattr(image_check, "check", with_another)
    done = run(repo, disks=disks, parallel=1)
    kept = result(repo, first)
    assert kept is not None
    assert (kept.verdict, [one.file for one in kept.damage]) == (Verdict.DAMAGED, [f"{first.id}/vdb.qcow2"])
    assert [one.dev for one in kept.images] == ["vda"]
    assert first.id in done.damaged


def test_sample_reads_a_part_and_all_tables(repo: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_check, "PIECE_BLOCKS", 1)
    done = run(repo, percent=1.0)
    assert done.damaged == []
    assert all(0 < one.percent < 100 for one in done.results.values() if one.checked_bytes)
    flip_l1(repo.path(repo.backups[1]))
    assert set(run(repo, percent=1.0).damaged) == {one.id for one in repo.backups[1:]}


def test_sample_that_finds_damage_keeps_the_damage_known_of_the_blocks_that_it_did_not_read(
    repo: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second backup replaced block 1 of the first, so only block 2 affects it, which the sample does not read."""
    image = repo.path(repo.backups[0])
    flip_block(image, 1)
    flip_block(image, 2)
    run(repo)
    known = [result(repo, one) for one in repo.backups]
    assert [one.verdict for one in known if one] == [Verdict.DAMAGED, Verdict.DAMAGED, Verdict.GOOD, Verdict.GOOD]
    check = image_check.check

    def part(path: Path, *more: Any) -> image_check.ImageCheck:
        if path != image:
            return check(path, *more)
        found = image_check.Finding(Kind.CONTENT, "It is damaged.", {0: 0b10})
        return image_check.ImageCheck((found,), data_blocks=7, read_blocks=1)

    monkeypatch.setattr(image_check, "check", part)
    done = run(repo, percent=1.0)
    assert set(done.damaged) == {one.id for one in repo.backups[:2]}
    kept = result(repo, repo.backups[1])
    assert kept is not None
    assert (kept.verdict, [one.start_bytes for one in kept.damage]) == (Verdict.DAMAGED, [2 * BLOCK])
    # What both found is there once.
    run(repo, percent=1.0)
    first = result(repo, repo.backups[0])
    assert first is not None
    assert len(first.damage) == len(set(first.damage)) == 2


def stopped(repo: Recorded, *, after: int, **options: Any) -> Recorder:
    """A verify that gets SIGINT when so many images were read."""
    stop, recorder, read = Stop(), Recorder(), 0
    check = image_check.check

    def count(*arguments: Any) -> Any:
        nonlocal read
        found = check(*arguments)
        read += 1
        if read > after:
            stop.request(signal.SIGINT)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_check, "check", count)
        with pytest.raises(InterruptedBySignalError):
            run(repo, recorder, stop=stop, parallel=1, **options)
    return recorder


def test_verify_that_was_stopped_goes_on_where_it_was(repo: Recorded) -> None:
    recorder = stopped(repo, after=3)
    assert recorder.steps[-1] == "What was verified is kept; the next verify goes on there."
    assert [one.verdict if one else None for one in (result(repo, one) for one in repo.backups)] == [
        Verdict.GOOD,
        Verdict.GOOD,
        Verdict.PARTIAL,
        None,
    ]
    done = run(repo, parallel=1)
    assert (done.images, done.skipped) == (3, 4)
    assert {one.percent for one in done.results.values()} == {100}
    # It is complete: the next one reads everything, and so does one that is told to.
    assert run(repo).images == 7


def test_sample_that_was_stopped_does_not_say_that_the_next_one_goes_on(repo: Recorded) -> None:
    assert stopped(repo, after=3, percent=50.0).steps[-1] == "What was verified is kept."
    assert run(repo).skipped == 0


def test_stopped_verify_is_forgotten_by_force_and_after_a_week(repo: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(repo, after=3)
    assert run(repo, is_forced=True).skipped == 0
    stopped(repo, after=3)
    monkeypatch.setattr(verdicts, "RESUME", timedelta(0))
    assert run(repo).skipped == 0


def test_backups_without_lists_get_them(old: Recorded, tmp_path: Path) -> None:
    before = {one.id: json.loads(old.path(one, "manifest.json").read_text()) for one in old.backups}
    done = run(old)
    assert done.lists == 7
    for one in old.repository.catalogue(UUID).history.backups:
        after = json.loads(old.path(one, "manifest.json").read_text())
        for disk, earlier in zip(after["disks"], before[one.id]["disks"]):
            blocks = disk.pop("blocks")
            assert blocks["digest"].startswith(("blake3:", "sha256:"))
            assert disk == earlier
        assert {**after, "digest": ""} == {**before[one.id], "digest": ""}
        assert sorted(path.suffix for path in old.repository.directory(UUID, one.id).glob("vd*")) == sorted(
            [".blocks", ".qcow2"] * len(one.disks)
        )
    assert [path.name for path in old.repository.path.rglob(".*")] == []
    assert run(old).lists == 0
    flip_block(old.path(old.backups[0]), 2)
    assert set(run(old).damaged) == {one.id for one in old.backups[:2]}
    assert restored(old, old.backups[3], tmp_path / "out") == old.expected(old.backups[3])


def test_damaged_backup_without_a_list_gets_none(old: Recorded, tmp_path: Path) -> None:
    flip_block(old.path(old.backups[0]), 0)
    done = run(old)
    assert set(done.damaged) == {one.id for one in old.backups}
    assert {found.kind for found in done.damage} == {Kind.IMAGE}
    assert not old.path(old.backups[0], "vda.blocks").exists()
    with pytest.raises(ChainError, match="its digest differs"):
        restored(old, old.backups[3], tmp_path / "out")


def test_list_is_not_made_while_another_vbackup_works_on_the_domain(old: Recorded) -> None:
    recorder = Recorder()
    with old.repository.lock(UUID):
        done = run(old, recorder)
    assert (done.lists, done.damaged) == (0, [])
    assert any("got no block list" in step for step in recorder.steps)
    assert [path.name for path in old.repository.path.rglob(".*")] == []


def test_mixed_chain_is_checked_and_restored(old: Recorded, tmp_path: Path) -> None:
    """New backups with lists on older ones without."""
    mixed = old
    newest = mixed.add({"vda": [Write(0, BLOCK, 21)]}, size_bytes=len(old.contents[old.backups[-1].id, "vda"]))
    assert restored(mixed, newest, tmp_path / "good") == mixed.expected(newest)
    assert [path.name for path in (tmp_path / "good").iterdir() if path.name.startswith(".")] == []
    flip_block(mixed.path(newest), 0)
    with pytest.raises(DamagedError):
        restored(mixed, newest, tmp_path / "bad")
    assert set(run(mixed).damaged) == {newest.id}


def test_read_only_repository_is_verified_and_says_that_nothing_is_kept(
    repo: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(kept_result, "replace_text", refuse)
    recorder = Recorder()
    done = run(repo, recorder)
    assert (done.damaged, done.is_kept) == ([], False)
    assert "The result is not kept" in recorder.warnings[-1]


def test_backups_are_held_while_they_are_read(repo: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    check = image_check.check

    def look(path: Path, *more: Any) -> Any:
        held.append(readers.is_in_use(path.parent))
        return check(path, *more)

    monkeypatch.setattr(image_check, "check", look)
    run(repo)
    assert set(held) == {True}
    assert not any(readers.is_in_use(repo.repository.directory(UUID, one.id)) for one in repo.backups)


def test_restore_holds_its_chain(repo: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    opened = block_scan.Scan

    def look(*arguments: Any, **more: Any) -> Any:
        held.extend(readers.is_in_use(repo.repository.directory(UUID, one.id)) for one in repo.backups)
        return opened(*arguments, **more)

    monkeypatch.setattr("vbackup.images.written.Scan", look)
    restored(repo, repo.backups[1], tmp_path / "out")
    assert held == [True, True, False, False]
