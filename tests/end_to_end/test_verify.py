"""Verify and restore as commands of their own: signals, memory, long chains, and backups that vbackup itself made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import documents
from tests.daemon import wait_for
from tests.lab import DiskSpec, Lab
from tests.recorded import BLOCK, MIB, Recorded, Write, flip_block
from tests.unit.builders import UUID
from vbackup.images import flatten
from vbackup.model import Level
from vbackup.repository import readers

if TYPE_CHECKING:
    from tests.conftest import Command

VBACKUP = [sys.executable, "-m", "vbackup"]


def verified(repository: Path, backup_id: str, uuid: str = UUID) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((repository / uuid / backup_id / "verified.json").read_text())
    return document


def test_signal_ends_a_verify_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """The first disk is read in no time, the second takes minutes at this speed."""
    made = Recorded(tmp_path / "repository")
    disks = {"vda": [Write(0, BLOCK, 1)], "vdb": [Write(0, 6 * MIB, 2)]}
    one = made.add(disks, level=Level.FULL)
    argv = [*VBACKUP, "verify", "web", "-r", str(made.repository.path)]
    with subprocess.Popen(
        [*argv, "--speed", "100K", "--parallel", "1", "--progress", "json"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            documents.check_events(line)
            event = json.loads(line)
            if (event["event"], event.get("dev")) == ("progress", "vdb"):
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "the next verify goes on there" in said
    kept = verified(made.repository.path, one.id)
    assert (kept["verdict"], [image["dev"] for image in kept["images"]]) == ("partial", ["vda"])
    done = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=True)
    [domain] = json.loads(done.stdout)["domains"]
    assert (domain["images"], domain["skipped"]) == (1, 1)
    kept = verified(made.repository.path, one.id)
    assert (kept["verdict"], kept["percent"], "unfinished" in kept) == ("good", 100.0, False)


#: A process begins with the peak memory of the one that starts it, so that must be a small one.
_MEASURE = """
import json, resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([status, usage.ru_maxrss, usage.ru_utime + usage.ru_stime]))
"""


def measured(*words: str | Path) -> tuple[int, float]:
    """Peak memory in KiB and processor time in seconds of a command that ends well, without coverage's share."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    argv = [sys.executable, "-c", _MEASURE, *VBACKUP, "-q", *map(os.fspath, words)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    status, peak_kib, cpu_s = json.loads(done.stdout.splitlines()[-1])
    assert status == 0, done.stderr
    return peak_kib, cpu_s


def test_terabyte_with_little_data_takes_little_time_and_memory(tmp_path: Path) -> None:
    """64 MiB of data, all over the disk; processor time, because other tests run at the same time."""
    made = Recorded(tmp_path / "repository")
    size_bytes = 1 << 40
    writes = [Write(number * (size_bytes // 1024), BLOCK, number % 255 + 1) for number in range(1024)]
    one = made.add({"vda": writes}, level=Level.FULL, size_bytes=size_bytes, is_huge=True)
    for words in (["verify", "web"], ["restore", "web", "--output", str(tmp_path / "out")]):
        peak_kib, cpu_s = measured(*words, "-r", made.repository.path)
        assert peak_kib < 150 * 1024
        if words[0] == "verify":
            assert cpu_s < 2.0
    assert verified(made.repository.path, one.id)["checked_bytes"] == 64 * MIB


def test_long_list_of_data_needs_little_memory(tmp_path: Path) -> None:
    """As much data as fits into the time of a test: reading it must not keep it."""
    made = Recorded(tmp_path / "repository")
    made.add({"vda": [Write(0, 256 * MIB, 7)]}, level=Level.FULL, size_bytes=512 * MIB, is_huge=True)
    peak_kib, _ = measured("verify", "web", "-r", made.repository.path)
    assert peak_kib < 150 * 1024


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_long_chain_is_restored_although_a_layer_has_damage_that_nobody_needs(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_format: str
) -> None:
    """A compressed cluster in a layer that a job copies as a whole; the next backup has replaced it."""
    monkeypatch.setattr(flatten, "CONVERT_LAYERS", 2)
    made = Recorded(tmp_path / "repository")
    made.add({"vda": [Write(0, MIB, 1)]}, level=Level.FULL)
    made.add({"vda": [Write(0, BLOCK, 2)]})
    damaged = made.add({"vda": [Write(BLOCK, BLOCK, 3), Write(2 * BLOCK, BLOCK, 4, is_packed=True)]})
    newest = made.add({"vda": [Write(2 * BLOCK, BLOCK, 5)]})
    flip_block(made.path(damaged), 2)
    argv = ("-q", "restore", "web", "-r", made.repository.path, "--format", image_format)
    command(*argv, "--output", tmp_path / "newest")
    if image_format == "raw":
        assert (tmp_path / "newest" / "vda.raw").read_bytes() == made.contents[newest.id, "vda"]
    done = command(*argv, "--backup", damaged.id, "--output", tmp_path / "damaged", status=6)
    assert f"the image {made.path(damaged)} of backup {damaged.id} was altered or is damaged" in done.stderr
    assert not (tmp_path / "damaged").exists()
    document = command("verify", "web", "-r", made.repository.path, "--json", status=6).document
    [damage] = document["domains"][0]["damage"]
    assert (damage["affected"], damage["ranges"]) == (
        [damaged.id],
        [{"start_bytes": 2 * BLOCK, "length_bytes": BLOCK}],
    )


def test_reader_keeps_a_backup_from_being_changed_until_it_ends(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "repository")
    one = made.add({"vda": [Write(0, 4 * MIB, 2)]}, level=Level.FULL)
    directory = made.repository.directory(UUID, one.id)
    argv = [*VBACKUP, "-q", "verify", "web", "-r", str(made.repository.path), "--speed", "100K"]
    with subprocess.Popen(argv) as process:
        wait_for(lambda: readers.is_in_use(directory), "the verify's lock")
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert not readers.is_in_use(directory)


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_backups_of_a_domain_are_verified(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, compress: str
) -> None:
    """A full and an increment that vbackup made of a domain that is off."""
    spec = DiskSpec(tmp_path / "vda.qcow2", size="70000K")
    spec.create()
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 5 1M 1M", "-c", "write -P 6 68M 100k", str(spec.path)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    machine = lab.boot("verified", [spec])
    backup = ("-c", lab.uri, "-q", "backup", machine.name, "-r", repository, "--json")
    options = ("--compress", compress) if compress != "none" else ()
    command(*backup, *options)
    machine.write("vda", "write -P 7 1M 64k", "write -z 2M 64k")
    newest = command(*backup, *options).document
    [domain] = command("verify", "--all", "-r", repository, "--json").document["domains"]
    assert [one["verdict"] for one in domain["backups"]] == ["good", "good"]
    image = next(repository.glob(f"*/{newest['id']}/vda.qcow2"))
    flip_block(image, 16)
    [damage] = command("verify", "--all", "-r", repository, "--json", status=6).document["domains"][0]["damage"]
    assert (damage["dev"], damage["affected"]) == ("vda", [newest["id"]])
