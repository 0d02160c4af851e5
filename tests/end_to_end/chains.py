"""Backups of one machine while the world around it changes; each is restored and compared at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import wait_for
from tests.lab import DiskSpec, Lab, References, compare, domain_xml

#: The last granule, which every incremental copies (vbackup.engine.endmark).
END_BYTES = 65536

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome


class Chain:
    """Backups of one machine that may be started again; each is restored and compared at once."""

    def __init__(
        self,
        lab: Lab,
        command: Command,
        repository: Path,
        tmp_path: Path,
        specs: Sequence[DiskSpec] | None = None,
    ) -> None:
        self.lab, self.command, self.repository, self.tmp_path = lab, command, repository, tmp_path
        self.uuid = "11111111-2222-3333-4444-555555555555"
        self.specs = list(specs or ()) or [
            DiskSpec(tmp_path / "vda.qcow2", size="8M"),
            DiskSpec(tmp_path / "vdb.qcow2", dev="vdb", size="8M"),
        ]
        for spec in self.specs:
            spec.create()
        self.machine = lab.start(self.xml())
        self.count = 0

    def xml(self) -> str:
        return domain_xml(
            "bases",
            [spec.xml() for spec in self.specs],
            top=f"<uuid>{self.uuid}</uuid>",
        )

    def restart(self, *, kill: bool = False) -> None:
        """The same definition in a new QEMU; ``kill`` gives the old one no time to close its images."""
        if kill:
            pid = int(next((self.lab.root / "run").glob("**/*bases.pid")).read_text())
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not self.machine.handle.is_active(), "libvirt noticing QEMU's death")
        self.stop()
        self.machine = self.lab.start(self.xml())

    def stop(self) -> None:
        self.lab.remove(self.machine)

    def backup(self, *options: str | Path, during: Callable[[], None] | None = None) -> dict[str, Any]:
        """Back up; what is restored must be what the disks held at that moment.

        ``during`` is called when the jobs have just begun.
        """
        self.count += 1
        after = None if during is None else lambda _monitor: during()
        references = References(self.tmp_path / f"references{self.count}", after_transaction=after)
        with pytest.MonkeyPatch.context() as patch, references.taken(patch):
            done = self.run(*options).document
        images = references.finish(self.machine)
        output = self.tmp_path / f"out{self.count}"
        self.command("-q", "restore", "bases", "-r", self.repository, "--backup", done["id"], "--output", output)
        for disk in done["disks"]:
            compare(output / disk["file"], images[disk["node_name"]])
        return done

    def run(self, *options: str | Path, status: int = 0) -> Outcome:
        return self.command(
            "-c", self.lab.uri, "-q", "backup", "bases", "-r", self.repository, "--json", *options, status=status
        )


def levels(done: dict[str, Any]) -> dict[str, str]:
    return {disk["dev"]: disk["level"] for disk in done["disks"]}


def reasons(done: dict[str, Any]) -> dict[str, str]:
    return {disk["dev"]: disk["reason"] for disk in done["disks"]}
