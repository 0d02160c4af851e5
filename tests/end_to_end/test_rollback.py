"""Rolling disks back by changed blocks: real images, real storage daemons, compared byte for byte."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.chains import Chain, levels
from tests.end_to_end.test_offline import write
from tests.lab import DiskSpec, qemu_img_info
from tests.unit.builders import Recorder
from vbackup.operations import rollback
from vbackup.operations.rollback import RollbackRequest, RolledBack
from vbackup.repository import chosen
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

if TYPE_CHECKING:
    pass


class Rolled:
    """A domain that is off, its backups and a copy of its disks at each of them."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.copies: dict[str, dict[str, Path]] = {}
        self.repository = Repository.open(chain.repository)
        chain.machine.destroy()

    def backup(self, *options: str) -> dict[str, Any]:
        done = self.chain.run(*options).document
        self.copies[done["id"]] = {spec.dev: self.copy(spec, f"{done['id']}") for spec in self.chain.specs}
        return done

    def copy(self, spec: DiskSpec, name: str) -> Path:
        path = self.chain.tmp_path / f"{name}-{spec.dev}.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(spec.path), str(path)], check=True)
        return path

    def roll(self, backup: str, *disks: str, **request: Any) -> tuple[list[RolledBack], dict[str, str], Recorder]:
        reporter = Recorder()
        wanted = Wanted(backup, disks=disks)
        with (
            self.repository.lock(self.chain.uuid),
            chosen.held(self.repository, self.chain.uuid, wanted, stop=Stop()) as point,
            rollback.prepared(
                RollbackRequest(**request),
                self.chain.machine.handle,
                point,
                repository=self.repository,
                reporter=reporter,
                stop=Stop(),
            ) as ready,
        ):
            done = ready.run()
            return done, dict(ready.reasons), reporter

    def compare(self, backup: str, *devs: str) -> None:
        for spec in self.chain.specs:
            if not devs or spec.dev in devs:
                compare_content(spec.path, self.copies[backup][spec.dev])

    def restored(self, backup: str) -> None:
        """What is restored of a backup is what the disks were."""
        output = self.chain.tmp_path / f"restored-{backup}"
        self.chain.command(
            "-q", "restore", "bases", "-r", self.chain.repository, "--backup", backup, "--output", output
        )
        for spec in self.chain.specs:
            compare_content(output / f"{spec.dev}.qcow2", self.copies[backup][spec.dev])


def compare_content(image: Path, copy: Path) -> None:
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), str(copy)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{image} and {copy}: {done.stdout}{done.stderr}"
    assert qemu_img_info(image)["virtual-size"] == copy.stat().st_size


@pytest.fixture
def rolled(chain: Chain) -> Rolled:
    return Rolled(chain)


def test_only_what_differs_is_written_and_the_next_backup_starts_from_the_point(rolled: Rolled) -> None:
    vda = rolled.chain.specs[0].path
    first = rolled.backup()
    write(vda, "write -P 2 1M 64k", "write -z 128k 64k")
    second = rolled.backup()
    write(vda, "write -P 3 4M 128k")
    done, reasons_, reporter = rolled.roll(first["id"])
    assert reasons_ == {}
    assert reporter.warnings == []
    rolled.compare(first["id"])
    # The last granule is written with every one (vbackup.engine.endmark).
    assert {one.dev: one.written_bytes for one in done} == {"vda": 5 << 16, "vdb": 1 << 16}
    write(vda, "write -P 4 6M 64k")
    third = rolled.backup()
    assert levels(third) == {"vda": "incremental", "vdb": "incremental"}
    assert {disk["base"] for disk in third["disks"]} == {first["id"]}
    assert third["disks"][0]["copied_bytes"] == 2 << 16
    for each in (first, second, third):
        rolled.restored(each["id"])
