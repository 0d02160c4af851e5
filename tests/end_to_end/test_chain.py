"""Every restorable point of every disk is the disk as it was at that moment, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import DiskSpec, Lab, Machine, References, compare

if TYPE_CHECKING:
    from tests.conftest import Command

#: What a guest does to a disk between two backups, by kind: data, more data over it, zeros in all their forms.
WRITES = (
    ("write -P 1 0 256k", "write -P 2 10M 1M", "write -P 3 63M 1M"),
    ("write -P 4 64k 64k", "write -z 10M 128k", "write -P 5 20M 4k"),
    ("discard 10M 512k", "write -P 0 63M 64k", "write -z -u 0 64k"),
    ("write -P 6 10M 64k", "write -P 7 5123k 3k", "discard 63M 1M"),
    ("write -P 8 20M 64k", "write -z 64k 64k", "write -P 9 33M 2M"),
    ("write -P 10 0 4k", "discard 33M 1M", "write -z 34M 1M"),
)

#: The same places again while the jobs copy.
DURING = ("write -P 99 0 128k", "write -z 10M 1M", "discard 63M 512k", "write -P 98 33M 64k", "write -P 0 20M 64k")


class Story:
    """Backups of one machine with a reference for each disk of each."""

    def __init__(self, machine: Machine, command: Command, repository: Path, lab: Lab, tmp_path: Path) -> None:
        self.machine, self.command, self.repository, self.lab = machine, command, repository, lab
        self.tmp_path = tmp_path
        self.points: list[tuple[dict[str, Any], dict[str, Path]]] = []

    def backup(self, monkeypatch: pytest.MonkeyPatch, *options: str, during: tuple[str, ...] = ()) -> dict[str, Any]:
        references = References(self.tmp_path / f"reference-{len(self.points)}")

        def write(_monitor: object) -> None:
            for dev in self.devs:
                self.machine.write(dev, *during)

        self.devs = [disk["dev"] for disk in self.points[0][0]["disks"]] if self.points else []
        references.after_transaction = write if during else None
        with references.taken(monkeypatch):
            done = self.command(
                "-c", self.lab.uri, "-q", "backup", self.machine.name, "-r", self.repository, "--json", *options
            ).document
        images = references.finish(self.machine)
        by_dev = {disk["dev"]: images[disk["node_name"]] for disk in done["disks"]}
        self.points.append((done, by_dev))
        return done

    def check_all(self) -> None:
        """Restore every point in both formats and compare."""
        for done, references in self.points:
            for image_format in ("qcow2", "raw"):
                output = self.tmp_path / f"restored-{done['id']}-{image_format}"
                self.command(
                    "-q", "restore", self.machine.name, "-r", self.repository, "--backup", done["id"],
                    "--output", output, "--format", image_format,
                )  # fmt: skip
                for dev, reference in references.items():
                    compare(output / f"{dev}.{image_format}", reference)


@pytest.fixture
def story(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Story:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    machine = lab.boot(
        "chain",
        [
            DiskSpec(tmp_path / "one" / "disk.qcow2", driver="discard='unmap'"),
            DiskSpec(tmp_path / "two" / "disk.qcow2", dev="vdb", driver="discard='unmap' detect_zeroes='unmap'"),
            DiskSpec(tmp_path / "plain.raw", dev="sda", bus="sata", format="raw", driver="discard='unmap'"),
            DiskSpec(tmp_path / "odd.qcow2", dev="sdb", bus="scsi", size="70000K"),
        ],
    )
    return Story(machine, command, repository, lab, tmp_path)


def write_everywhere(story: Story, step: int) -> None:
    for dev in ("vda", "vdb", "sda", "sdb"):
        story.machine.write(dev, *WRITES[step])


def test_every_level_restores_to_its_own_moment(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    write_everywhere(story, 0)
    full = story.backup(monkeypatch)
    assert (full["level"], full["parent"]) == ("full", None)

    write_everywhere(story, 1)
    first = story.backup(monkeypatch, "--level", "incremental", during=DURING)
    assert first["parent"] == full["id"]

    write_everywhere(story, 2)
    copy = story.backup(monkeypatch, "--level", "copy", during=DURING)
    assert copy["parent"] is None

    write_everywhere(story, 3)
    second = story.backup(monkeypatch, during=DURING)
    assert (second["level"], second["parent"]) == ("incremental", first["id"])

    write_everywhere(story, 4)
    differential = story.backup(monkeypatch, "--level", "differential", during=DURING)
    assert differential["parent"] == full["id"]

    write_everywhere(story, 5)
    third = story.backup(monkeypatch, during=DURING)
    assert third["parent"] == differential["id"]

    story.check_all()
