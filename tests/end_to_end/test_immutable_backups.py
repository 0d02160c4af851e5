"""Backups that are immutable in the repository: the next ones start from them, and they are verified and restored."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab import DiskSpec, Lab, compare
from vbackup import immutable
from vbackup.errors import StorageError

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def held(repository: Path) -> Iterator[Path]:
    """A repository on a filesystem with the immutable flag."""
    try:
        immutable.refuse_impossible(repository)
    except StorageError as err:
        pytest.skip(str(err))
    yield repository
    subprocess.run(["chattr", "-R", "-i", repository], check=True)


def test_chain_goes_on_from_immutable_backups(lab: Lab, command: Command, held: Path, tmp_path: Path) -> None:
    machine = lab.boot("web", [DiskSpec(tmp_path / "vda.qcow2", size="8M")])
    of = ("-r", held)
    ids = []
    for pattern in range(1, 4):
        machine.write("vda", f"write -P {pattern} {pattern}M 64k")
        ids.append(command("-c", lab.uri, "-q", "backup", "web", *of, "--json").document["id"])
        command("-q", "protect", ids[-1], *of, "--immutable", "2")
    assert [each.rpartition("-")[2] for each in ids] == ["full", "incremental", "incremental"]
    command("verify", "web", *of)
    command("note", ids[0], "a note", *of)
    command("check", *of)
    command("-q", "prune", "web", "--keep-last", "1", *of)
    said = command("prune", "web", "--keep-last", "1", *of).stdout
    assert said.count("immutable until") == 3
    command("-q", "restore", "web", *of, "--output", tmp_path / "out")
    machine.destroy()
    compare(tmp_path / "out" / "vda.qcow2", tmp_path / "vda.qcow2")
    # The domain goes on, off.
    command("-c", lab.uri, "-q", "backup", "web", *of)
