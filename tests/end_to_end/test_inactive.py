"""QEMU does not have its images to itself: until the guest runs, nothing is written into them.

A domain gets there when it is paused while its memory is saved, or arrives paused; test_migration.py has those that
come from another host.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.end_to_end.chains import END_BYTES, Chain, levels
from tests.lab import qemu_img_info
from vbackup import errors

#: As the arguments of "transaction": it writes a bitmap.
TRANSACTION = {
    "actions": [{"type": "block-dirty-bitmap-add", "data": {"node": "$disk:vda", "name": "mine", "persistent": True}}]
}


def dump(chain: Chain) -> None:
    """Of a domain that is paused; QEMU is then as after a migration."""
    chain.machine.handle.domain.suspend()
    chain.machine.handle.domain.coreDump(str(chain.tmp_path / "dump"), 0)


def snapshot(chain: Chain) -> None:
    """With memory, of a domain that is paused."""
    chain.machine.handle.domain.suspend()
    disks = "".join(
        f"<disk name='{spec.dev}' snapshot='external'><source file='{spec.path}.overlay'/></disk>"
        for spec in chain.specs
    )
    memory = f"<memory snapshot='external' file='{chain.tmp_path}/memory'/>"
    chain.machine.handle.domain.snapshotCreateXML(f"<domainsnapshot>{memory}<disks>{disks}</disks></domainsnapshot>")


def restore_paused(chain: Chain) -> None:
    """From a file with its memory."""
    path = str(chain.tmp_path / "memory")
    chain.machine.handle.domain.save(path)
    chain.lab.host.connection.restoreFlags(path, None, libvirt.VIR_DOMAIN_SAVE_PAUSED)


def suspend(chain: Chain) -> None:
    chain.machine.handle.domain.suspend()


def start_paused(chain: Chain) -> None:
    chain.machine.handle.domain.destroy()
    chain.machine.handle.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)


def bitmaps_in_files(chain: Chain) -> dict[str, Any]:
    """What the images store, whatever QEMU says."""
    return {
        str(path): qemu_img_info(path).get("format-specific", {}).get("data", {}).get("bitmaps")
        for path in sorted(chain.tmp_path.glob("vd*"))
    }


def writing_commands(chain: Chain) -> list[tuple[str | Path, ...]]:
    """All that would write bitmaps, or list those that cannot be seen."""
    (chain.tmp_path / "actions").write_text(json.dumps(TRANSACTION))
    repository = ("-r", chain.repository)
    return [
        ("backup", "bases", *repository),
        ("backup", "bases", *repository, "--dry-run"),
        ("backup", "bases", *repository, "--level", "copy"),
        ("recover", "bases", *repository),
        ("forget", "bases", *repository),
        ("forget", "bases", *repository, "--dry-run"),
        ("bitmap", "list", "bases"),
        ("bitmap", "add", "bases", "mine", "--persistent"),
        ("bitmap", "remove", "bases", "mine"),
        ("transaction", "bases", chain.tmp_path / "actions"),
    ]


@pytest.mark.parametrize("become_inactive", [dump, snapshot, restore_paused])
def test_domain_whose_nodes_are_inactive_is_not_written_to_until_it_runs(
    chain: Chain, become_inactive: Callable[[Chain], None]
) -> None:
    chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    become_inactive(chain)
    active = chain.machine.is_active()
    assert not active or become_inactive is restore_paused  # which depends on the version (vbackup.qemu.activity)
    before = (chain.machine.state(), bitmaps_in_files(chain), sorted(chain.repository.glob("*/*")))
    for arguments in () if active else writing_commands(chain):
        refused = chain.command("-c", chain.lab.uri, "-q", *arguments, status=8)
        assert "does not have its images to itself" in refused.stderr
        assert errors.command("virsh resume bases", chain.lab.uri) in refused.stderr
        assert refused.stdout == ""
        assert (chain.machine.state(), bitmaps_in_files(chain), sorted(chain.repository.glob("*/*"))) == before

    chain.machine.handle.resume()
    assert chain.machine.execute("query-status")["status"] == "running"
    chain.machine.write("vda", "write -P 3 2M 64k")
    chain.machine.check_content("vda", "-P 3 2M 64k", "-P 2 1M 64k")
    done = chain.backup()
    assert levels(done) == {"vda": "incremental", "vdb": "incremental"}
    assert [disk["copied_bytes"] for disk in done["disks"]] == [2 * 65536 + END_BYTES, END_BYTES]


@pytest.mark.parametrize("pause", [suspend, start_paused])
def test_domain_that_is_simply_paused_is_backed_up(chain: Chain, pause: Callable[[Chain], None]) -> None:
    chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    pause(chain)
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}
    chain.machine.handle.resume()
    chain.machine.write("vda", "write -P 3 2M 64k")
    chain.machine.check_content("vda", "-P 3 2M 64k")
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}
