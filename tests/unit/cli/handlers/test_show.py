"""``vbackup show`` prints the record of a backup and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.unit.builders import NOON, UUID, backup, commit, image, incremental
from vbackup.model import BlocksRecord, HostIdentity, MachineFile, MachineKind
from vbackup.repository import manifest, notes, protection, verification
from vbackup.repository.protection import Protection
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Damage, Kind, Verdict, Verification

if TYPE_CHECKING:
    from tests.conftest import Command


ONE = backup(1)
TWO = incremental(2, ONE)


def test_show_tells_what_is_recorded(command: Command, filled: Path) -> None:
    text = command("show", "web", "-r", filled).stdout
    for part in (
        TWO.id,
        UUID,
        "incremental",
        "crash",
        "libvirt 9.0.0",
        "hda (cdrom)",
        f"Chain of vda (2 images, 392.0 KiB):\n  {TWO.id}\n  {ONE.id}\n",
    ):
        assert part in text


def test_unknown_backup_is_told_with_what_lists_them(command: Command, filled: Path) -> None:
    """Without a domain, list has no ids."""
    assert "'vbackup list DOMAIN' lists them." in command("show", "web", "nosuch", "-r", filled, status=6).stderr


def test_long_chain_is_shortened_and_lines_fit(command: Command, repository: Path) -> None:
    chain = [backup(1)]
    for number in range(2, 31):
        chain.append(incremental(number, chain[-1]))
    for link in chain:
        commit(Repository.open(repository), link)
    lines = command("show", "web", "-r", repository).stdout.splitlines()
    begin = lines.index("Chain of vda (30 images, 5.7 MiB):")
    ids = [link.id for link in reversed(chain)]
    assert [line.strip() for line in lines[begin + 1 :]] == [*ids[:5], "... 20 more", *ids[-5:]]


def test_show_as_a_document_is_the_manifest_and_more(command: Command, filled: Path) -> None:
    document = command("show", "web", "-r", filled, "--backup", ONE.id, "--json").document
    assert document.pop("schema") == "vbackup.show/1"
    assert document.pop("chains") == {"vda": [ONE.id]}
    assert document.pop("path") == os.fspath(filled / UUID / ONE.id)
    known = {
        name: document.pop(name)
        for name in ("chain_sizes", "states", "verification", "protection", "boot", "fsck", "note")
    }
    assert document == manifest.document(ONE)
    assert known == {
        "chain_sizes": {"vda": {"images": 1, "size_bytes": 200704}},
        "states": ["unverified"],
        "verification": None,
        "protection": None,
        "boot": None,
        "fsck": None,
        "note": None,
    }


def test_what_is_beside_the_manifest_is_shown(command: Command, filled: Path) -> None:
    directory = filled / UUID / TWO.id
    text = command("show", "web", "-r", filled).stdout
    for part in ("Verified:    never", "Protected:   no", "Note:        -", "392.0 KiB in its chains", "no block list"):
        assert part in text
    damage = Damage("vda", f"{ONE.id}/vda.qcow2", 65536, 131072, Kind.CONTENT.value)
    verification.write(directory, Verification(NOON, Verdict.DAMAGED, 12.5, 1, damage=(damage,) * 12))
    protection.protect(directory, Protection(NOON, "audit"))
    notes.write(directory, "before the upgrade")
    text = command("show", "web", "-r", filled).stdout
    for part in (
        "Verified:    damaged, ",
        "12.5 % of the blocks read",
        ": audit\n",
        "Note:        before the upgrade",
        f"Damaged: {ONE.id}/vda.qcow2 (content) at byte 65536 of vda, 128.0 KiB",
        "Damaged: 2 more ranges",
    ):
        assert part in text
    document = command("show", "web", "-r", filled, "--json").document
    assert document["verification"]["damage"][0]["start_bytes"] == 65536
    assert document["protection"] == {"time": "2026-11-23T12:00:00.000000Z", "reason": "audit"}
    assert (document["states"], document["note"]) == (["damaged", "protected"], "before the upgrade")


def test_content_of_a_list_is_shown(command: Command, repository: Path) -> None:
    blocks = BlocksRecord("blake3:" + "a" * 64, "blake3:" + "b" * 64, data_blocks=32, zero_blocks=16)
    commit(Repository.open(repository), backup(1, image(digest=None, blocks=blocks)))
    line = f"Content of vda: 2.0 MiB of data, 1.0 MiB of zeros; list blake3:{'a' * 64}; header and tables blake3:"
    assert line in command("show", UUID, "-r", repository).stdout


def test_markup_of_the_table_is_not_taken_from_names(command: Command, repository: Path) -> None:
    commit(Repository.open(repository), backup(1, image(reason="[red]why[/]", source="/[bold]x")))
    text = command("show", UUID, "-r", repository).stdout
    assert "[red]why[/]" in text
    assert "/[bold]x" in text


def test_symlinked_domain_directory_gives_nothing_else_out(command: Command, filled: Path, tmp_path: Path) -> None:
    """show prints what manifests say, whatever else is beside them."""
    (filled / UUID / ONE.id / "secret").write_text("the secret")
    assert "the secret" not in command("show", UUID, "-r", filled, "--json").stdout


def test_host_is_shown_if_it_is_recorded(command: Command, repository: Path) -> None:
    commit(Repository.open(repository), backup(1, host=HostIdentity("here", "1" * 32)))
    assert f"Host:        here (machine id {'1' * 32})" in command("show", UUID, "-r", repository).stdout
    commit(Repository.open(repository), backup(2))
    assert "Host:" not in command("show", UUID, "-r", repository).stdout


def test_machine_is_shown(command: Command, repository: Path) -> None:
    files = (
        MachineFile(MachineKind.NVRAM, 540672, "sha256:n", "/nvram/web_VARS.fd"),
        MachineFile(MachineKind.MEDIUM, 2048, "sha256:s", None, "sda"),
    )
    one = backup(1, machine=files, autostart=True, loader="/OVMF.fd")
    commit(Repository.open(repository), one)
    text = " ".join(command("show", "web", "-r", repository).stdout.split())
    for part in (
        "Autostart: yes",
        "Firmware: /OVMF.fd, which is the host's and not in the backup",
        "Machine: nvram, of /nvram/web_VARS.fd, 528.0 KiB; sha256:n",
        "Machine: medium in sda, of an unknown place, 2.0 KiB; sha256:s",
    ):
        assert part in text
    document = command("show", "web", "-r", repository, "--json").document
    assert [entry["file"] for entry in document["machine"]] == ["nvram", "sda.medium"]
