"""A backup with much more changes than usual, which no longer compress, is told: as a guest that is being encrypted."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from tests.end_to_end.chains import Chain
from tests.lab import DiskSpec

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.lab import Lab

MIB = 1 << 20


def test_encrypted_guest_is_noticed(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
    chain = Chain(lab, command, repository, tmp_path, [DiskSpec(tmp_path / "vda.qcow2", size="64M")])
    chain.machine.write("vda", "write -P 65 0 16M")
    chain.run()
    text = tmp_path / "text"
    noise = tmp_path / "noise"
    noise.write_bytes(Random(1).randbytes(12 * MIB))
    text.write_bytes(b"".join(b"%d: all work and no play\n" % number for number in range(60_000))[:MIB])
    for number in range(6):
        chain.machine.write("vda", f"write -s {text} {number}M 1M")
        done = chain.run()
        assert done.stderr == ""
        [disk] = done.document["disks"]
        assert disk["change"]["data_bytes"] == disk["blocks"]["data_blocks"] * 65536 == MIB
        assert disk["change"]["compressed_bytes"] < disk["change"]["sampled_bytes"] / 2
        assert disk["change"]["unusual"] is None
    chain.machine.write("vda", f"write -s {noise} 2M 12M")
    done = chain.run()
    unusual = done.document["disks"][0]["change"]["unusual"]
    assert unusual.startswith(
        "12 times the usual change (12.0 MiB, usually 1.0 MiB), and it does not compress any more"
    )
    assert f"warning: Disk vda: {unusual}. If nobody did that on purpose" in done.stderr
    assert "Unusual is from 4 times the median" in done.stderr
    shown = command("show", "bases", done.document["id"], "-r", repository, "--json").document
    assert shown["disks"][0]["change"]["unusual"] == unusual
    chain.machine.write("vda", "write -z 16M 40M")
    assert "became zeros (usually hardly any), as by fstrim" in chain.run().stderr
    assert chain.run().stderr == ""
