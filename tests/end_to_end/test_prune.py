"""After a prune every kept backup is what it was, byte for byte, and the next one goes on; others wait their turn."""

from __future__ import annotations

import copy
import functools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.chains import Chain, levels
from tests.lab import Lab, compare
from tests.unit.builders import NOON, UUID, Recorder, backup, image, incremental
from vbackup import names
from vbackup.domain.host import Host
from vbackup.errors import BusyError
from vbackup.model import Backup, ImageOptions, Level
from vbackup.operations.backup import BackupRequest
from vbackup.operations.backup import run as back_up
from vbackup.qemu import qemu_img
from vbackup.repository import block_scan, manifest, removal
from vbackup.repository.block_list import BLOCK_BYTES, best_algorithm
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def chain(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Chain:
    return Chain(lab, command, repository, tmp_path)


def vbackup(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    argv = [sys.executable, "-m", "vbackup", *(os.fspath(one) for one in arguments)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def a_year(repository: Path) -> list[str]:
    """A full every Sunday and an incremental on the other days of 2023, in name only; returns their ids."""
    made = []
    before = None
    (repository / UUID).mkdir(mode=0o700)
    for day in range(365):
        time = NOON.replace(year=2023, month=1, day=1) + timedelta(days=day)
        is_full = before is None or time.isoweekday() == 7
        level = Level.FULL if is_full else Level.INCREMENTAL
        one = backup(day + 1) if before is None or is_full else incremental(day + 1, before)
        before = replace(one, id=names.backup_id(time, level), time=time)
        directory = repository / UUID / before.id
        directory.mkdir()
        (directory / "manifest.json").write_text(manifest.dump(before))
        with (directory / "vda.qcow2").open("wb") as file:
            file.truncate(before.disks[0].file_size_bytes)
        made.append(before.id)
    return made


class Year:
    """Real images of a small disk for every week of 2023, with what the disk held at each of them."""

    SIZE_BYTES = 64 * BLOCK_BYTES

    def __init__(self, repository: Path, *, full_every: int) -> None:
        self.repository = repository
        self.contents: dict[str, bytes] = {}
        chance = random.Random(full_every)
        content = bytearray(self.SIZE_BYTES)
        before = None
        for week in range(53):
            time = NOON.replace(year=2023, month=1, day=1) + timedelta(weeks=week)
            is_full = before is None or week % full_every == 0
            level = Level.FULL if is_full else Level.INCREMENTAL
            path = repository / UUID / names.backup_id(time, level)
            path.mkdir(parents=True)
            base = None if before is None or is_full else before.id
            writes = {block: chance.randrange(256) for block in chance.sample(range(64), 3)}
            for block, value in writes.items():
                content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = bytes([value]) * BLOCK_BYTES
            self._write(path, base, dict(enumerate(content[::BLOCK_BYTES])) if is_full else writes)
            one = image(
                level=level,
                base=base,
                virtual_size_bytes=self.SIZE_BYTES,
                file_size_bytes=(path / "vda.qcow2").stat().st_size,
                digest=None,
                blocks=block_scan.make(
                    path / "vda.qcow2", path / "vda.blocks", algorithm=best_algorithm(), check=lambda: None
                ),
            )
            before = backup(week + 1, one, level=level, id=path.name, time=time)
            (path / "manifest.json").write_text(manifest.dump(before))
            self.contents[path.name] = bytes(content)

    def _write(self, path: Path, base: str | None, blocks: dict[int, int]) -> None:
        """Make an image with these blocks, each of one value; zeros are stored as such, as QEMU's jobs do."""
        target = path / "vda.qcow2"
        target.touch(mode=0o600)
        backing = f"../{base}/vda.qcow2" if base else None
        qemu_img.create(target, self.SIZE_BYTES, backing_rpath=backing, options=ImageOptions())
        writes = [f"write {'-P ' + str(value) if value else '-z'} {64 * block}k 64k" for block, value in blocks.items()]
        argv = ["qemu-io", "-f", "qcow2", *(word for write in writes for word in ("-c", write)), os.fspath(target)]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

    def check(self, tmp_path: Path) -> list[str]:
        """Compare every point that is there, as qemu-img reads it; return their ids."""
        catalogue = Repository.open(self.repository).catalogue(UUID)
        assert not catalogue.broken
        for one in catalogue.history.backups:
            raw = tmp_path / "point.raw"
            source = self.repository / UUID / one.id / "vda.qcow2"
            subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", source, raw], check=True)
            assert raw.read_bytes() == self.contents[one.id], one.id
        return [one.id for one in catalogue.history.backups]

    def copied(self, repository: Path) -> Year:
        """Copy the repository, which is made once, to a place where it may be changed."""
        shutil.copytree(self.repository, repository, dirs_exist_ok=True)
        year = copy.copy(self)
        year.repository = repository
        return year


@pytest.fixture(scope="module")
def years(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Year]:
    @functools.cache
    def make(full_every: int) -> Year:
        path = tmp_path_factory.mktemp("year") / "repository"
        Repository.create(path)
        return Year(path, full_every=full_every)

    return make


Years = Callable[[int], Year]


def test_year_of_images_keeps_every_byte_of_what_stays(
    command: Command, repository: Path, tmp_path: Path, years: Years
) -> None:
    """Fulls every eight weeks; what depends on nothing that stays has gone, and the room is free."""
    year = years(8).copied(repository)
    protected = list(year.contents)[9]
    command("-q", "protect", protected, "-r", repository)
    argv = ("-q", "prune", UUID, "-r", repository, "--keep-last", "3", "--keep-monthly", "4", "--consolidate", "never")
    before = allocated_bytes(repository)
    (domain,) = command(*argv, "--json").document["domains"]
    there = year.check(tmp_path)
    assert there == [line["id"] for line in domain["backups"] if line["action"] == "keep"]
    assert protected in there
    assert len(there) < 30
    assert before - allocated_bytes(repository) == pytest.approx(domain["freed_bytes"], abs=1 << 17)
    assert not command(*argv, "--json").document["domains"][0]["removed"]


@pytest.mark.parametrize("way", ["auto", "in-place", "copy"])
def test_full_for_ever_takes_over_the_year_byte_for_byte(
    command: Command, repository: Path, tmp_path: Path, years: Years, way: str
) -> None:
    """One full in January and nothing but incrementals after it; a dry run shows what is done, and the room."""
    year = years(60).copied(repository)
    command("-q", "protect", list(year.contents)[20], "-r", repository)
    argv = ("-q", "prune", UUID, "-r", repository, "--keep-last", "3", "--keep-monthly", "4", "--consolidate", way)
    shown = command(*argv, "--dry-run", "--json").document["domains"]
    before = allocated_bytes(repository)
    done = command(*argv, "--json").document["domains"]
    for domain in (*shown, *done):
        assert domain["consolidation"].pop("free_bytes") > 0
    assert done == shown
    (domain,) = done
    there = year.check(tmp_path)
    assert there == [line["id"] for line in domain["backups"] if line["action"] == "keep"]
    assert len(there) == 8  # the protected one, four months, three weeks
    given = {heir for line in domain["backups"] for heir in line["heirs"]}
    assert given <= set(there)
    assert before - allocated_bytes(repository) >= domain["freed_bytes"] - (1 << 20)
    assert domain["freed_bytes"] > 0
    again = command(*argv, "--json").document["domains"][0]
    assert (again["removed"], again["consolidation"]) == (0, None)


def test_chains_are_kept_short(command: Command, repository: Path, tmp_path: Path, years: Years) -> None:
    year = years(60).copied(repository)
    argv = ("-q", "prune", UUID, "-r", repository, "--keep-last", "9", "--max-chain", "4")
    shown = command(*argv, "--dry-run", "--json").document["domains"][0]
    assert [one["dev"] for one in shown["consolidation"]["shortened"]] == ["vda"] * 2
    command(*argv)
    assert len(year.check(tmp_path)) == 9
    history = Repository.open(repository).catalogue(UUID).history
    assert [len(history.links(one.id, "vda")) for one in history.backups] == [1, 2, 3, 4, 1, 2, 3, 4, 1]


def allocated_bytes(directory: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


# a machine


def test_chain_goes_on_after_a_prune(chain: Chain, command: Command, tmp_path: Path) -> None:
    """Each backup is compared when it is made; those that are kept are compared again, and so is the next."""
    chain.backup()
    chain.machine.write("vda", "write -P 1 0 1M")
    old = chain.backup()
    kept = []
    for step, options in enumerate((["--level", "full"], ["--note", "before the upgrade"])):
        chain.machine.write("vda", f"write -P {step + 2} {step}M 1M")
        kept.append(chain.backup(*options))
    options = ("-r", chain.repository, "--consolidate", "never", "--json")
    done = command("-q", "prune", "bases", "--keep-last", "1", *options).document
    (domain,) = done["domains"]
    assert [line["id"] for line in domain["backups"] if line["action"] == "keep"] == [one["id"] for one in kept]
    assert domain["freed_bytes"] > 1 << 20
    assert not (chain.repository / chain.uuid / old["id"]).exists()
    for number, one in enumerate(kept):
        output = tmp_path / f"again{number}"
        command("-q", "restore", "bases", "-r", chain.repository, "--backup", one["id"], "--output", output)
        for dev in ("vda", "vdb"):
            compare(output / f"{dev}.qcow2", tmp_path / f"out{number + 3}" / f"{dev}.qcow2")
    chain.machine.write("vdb", "write -P 9 2M 1M")
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}
    assert command("list", "bases", "-r", chain.repository).stderr == ""


def test_full_for_ever_of_a_machine_takes_over_the_oldest_and_goes_on(
    chain: Chain, command: Command, tmp_path: Path
) -> None:
    """The second is merged into the full and both into the third: it is the disk as it was, and so are the others."""
    made = []
    for step, options in enumerate(([], [], ["--note", "third", "--compress"], [])):
        chain.machine.write("vda", f"write -P {step + 1} {step}M 1M", f"write -z {step * 512}k 64k")
        chain.machine.write("vdb", f"write -P {step + 101} 1M 1M", f"discard {step}M 256k")
        made.append(chain.backup(*options))
    command("-q", "protect", made[2]["id"], "-r", chain.repository)
    argv = ("prune", "bases", "--keep-last", "2", "-r", chain.repository)
    (domain,) = command("-q", *argv, "--json").document["domains"]
    assert [line["action"] for line in domain["backups"]] == ["remove", "keep", "keep", "keep"]
    command("-q", *argv, "--keep-last", "1")
    third = chain.repository / chain.uuid / made[2]["id"]
    assert sorted(path.name for path in third.parent.glob("2*")) == [made[2]["id"], made[3]["id"]]
    assert (third / "note").read_text() == "third\n"
    assert (third / "protected").exists()
    for number in (2, 3):
        output = tmp_path / f"again{number}"
        command("-q", "restore", "bases", "-r", chain.repository, "--backup", made[number]["id"], "--output", output)
        for dev in ("vda", "vdb"):
            compare(output / f"{dev}.qcow2", tmp_path / f"out{number + 1}" / f"{dev}.qcow2")
    chain.machine.write("vdb", "write -P 9 2M 1M")
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}
    assert command("list", "bases", "-r", chain.repository).stderr == ""


@pytest.mark.parametrize("way", ["in-place", "copy"])
def test_differential_starts_from_what_the_last_full_was_merged_into(chain: Chain, command: Command, way: str) -> None:
    made = []
    for step, options in enumerate((("--level", "full"), (), (), ())):
        chain.machine.write("vda", f"write -P {step + 1} {step}M 1M", f"write -P {step + 11} 6M 64k")
        made.append(chain.backup(*options)["id"])
    for keep in ("3", "2"):  # the second heir takes over what the first one had
        command("-q", "prune", "bases", "--keep-last", keep, "-r", chain.repository, "--consolidate", way)
    command("-c", chain.lab.uri, "-q", "recover", "bases", "-r", chain.repository)
    chain.machine.write("vda", "write -P 77 5M 64k", "write -z 6M 32k")
    for level in ("incremental", "differential", "incremental", "differential"):
        done = chain.backup("--level", level)  # which compares what is restored
        assert set(levels(done).values()) == {level}
        if level == "differential":
            assert {disk["base"] for disk in done["disks"]} == {made[2]}
            assert {disk["reason"] for disk in done["disks"]} == {
                f"changes since {made[2]}, as the checkpoint of {made[0]}, which was merged into it, shows them"
            }
        chain.machine.write("vda", "write -P 78 4M 64k")


def test_without_the_bitmap_of_the_full_there_is_no_differential_until_the_next(chain: Chain, command: Command) -> None:
    made = [chain.backup(*options) for options in (("--level", "full"), (), ())]
    command("-q", "prune", "bases", "--keep-last", "2", "-r", chain.repository)
    lost = made[0]["disks"][0]["bitmap"]
    refused = command("-c", chain.lab.uri, "bitmap", "remove", "bases", lost, "-r", chain.repository, status=5)
    assert "a differential of disk vda" in refused.stderr
    command("-c", chain.lab.uri, "bitmap", "remove", "bases", lost, "-r", chain.repository, "--force")
    refused = chain.run("--level", "differential", status=6)
    assert f"checkpoint {made[0]['id']} is missing from the image" in refused.stderr
    assert "Take a full backup" in refused.stderr
    chain.backup("--level", "full")
    assert set(levels(chain.backup("--level", "differential")).values()) == {"differential"}


def test_backup_that_starts_while_prune_runs_is_busy_or_waits(
    chain: Chain, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.backup()
    chain.backup("--level", "full")
    really = removal.delete_removed
    host = Host(chain.lab.uri)
    repository = Repository.open(chain.repository)

    def run(wait_lock_s: float) -> Backup:
        request = BackupRequest("bases", wait_lock_s=wait_lock_s)
        return back_up(request, host=host, repository=repository, reporter=Recorder(), stop=Stop())

    with host, ThreadPoolExecutor() as pool:
        waiting: list[Future[Backup]] = []

        def delete_removed(directory: Path) -> list[str]:
            if removal.removed(directory):
                with pytest.raises(BusyError, match="Another vbackup is working on domain bases"):
                    run(0.0)
                waiting.append(pool.submit(run, 60.0))
            return really(directory)

        monkeypatch.setattr(removal, "delete_removed", delete_removed)
        command("-q", "prune", "bases", "--keep-last", "1", "-r", chain.repository, "--consolidate", "never")
        (future,) = waiting
        assert future.result().level is Level.INCREMENTAL
    assert command("list", "bases", "-r", chain.repository).stderr == ""


# without one


def test_two_prunes_at_once_keep_what_one_would(command: Command, repository: Path) -> None:
    """One of them has the domain, the other waits or is told; nothing is removed twice or by half."""
    a_year(repository)
    rules = ("--keep-daily", "7", "--keep-weekly", "4", "--keep-monthly", "12", "--consolidate", "never")
    argv = ("prune", UUID, "-r", repository, *rules)
    shown = command(*argv, "--dry-run", "--json").document["domains"][0]["backups"]
    both = [vbackup(*argv, "-q"), vbackup(*argv, "-q", "--wait-lock", "60")]
    ends = [(one.communicate(timeout=60)[1], one.returncode) for one in both]
    assert ends[1] == ("", 0)
    assert ends[0][1] in (0, 8)
    there = [one.id for one in Repository.open(repository).catalogue(UUID).history.backups]
    assert there == [line["id"] for line in shown if line["action"] == "keep"]
    assert not removal.removed(repository / UUID)


def test_year_is_pruned_in_a_second_with_a_reason_for_each_day(command: Command, repository: Path) -> None:
    ids = a_year(repository)
    rules = ("--keep-daily", "7", "--keep-weekly", "4", "--keep-monthly", "12", "--consolidate", "never")
    lines = command("prune", UUID, "-r", repository, *rules, "--json").document["domains"][0]["backups"]
    assert [line["id"] for line in lines] == ids
    assert all(line["reasons"] for line in lines)
    reasons = {line["id"]: line["reasons"][0] for line in lines if line["action"] == "keep"}
    by_rule = [reason for reason in reasons.values() if "depends on it" not in reason]
    assert sorted(by_rule) == sorted(
        [
            *(f"daily #{number}" for number in range(1, 8)),
            *(f"weekly #{number}" for number in range(1, 5)),
            *(f"monthly #{number}" for number in range(1, 12)),
            "oldest: monthly rule not satisfied (11 of 12)",
        ]
    )
    assert not Repository.open(repository).catalogue(UUID).broken
