"""``vbackup show``: print the record of a backup."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from vbackup.api import (
    BLOCK_BYTES,
    BOOT_PICTURE,
    FSCK_DAMAGED,
    BootResult,
    ChainSize,
    Condition,
    FsckResult,
    Protection,
    Verification,
    documents,
    unusual,
)
from vbackup.cli import copies, output
from vbackup.cli.arguments import backup_of, domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status
from vbackup.model import Backup, DiskImage, MachineFile

#: How many backups at each end of a long chain are printed.
_CHAIN_ENDS = 5
#: How many damaged ranges are printed.
_MAX_DAMAGE = 10


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the record. Raises ChainError for an unknown backup, or if a backup it depends on is missing."""
    with copies.connected(options, context) as (vb, target):
        backup_id = backup_of(options)
        found = vb.record(context.uuid_of(vb.repository, domain_of(options)), backup_id)
    backup, known, chains = found.backup, found.condition, found.chains
    path = found.path if target is None else f"{target.name}/{backup.domain_uuid}/{backup.id}"
    if context.as_json:
        document = {**documents.backup(backup), "path": str(path), "chains": chains, **_known_document(known)}
        context.print_document("vbackup.show/1", document)
    else:
        _print(backup, known, chains, path=str(path))
    return Status.DONE


def _known_document(known: Condition) -> dict[str, Any]:
    found, protection = known.verification, known.protection
    return {
        "chain_sizes": {
            dev: {"images": chain.images, "size_bytes": chain.size_bytes} for dev, chain in known.chains.items()
        },
        "states": [state.value for state in known.states],
        "verification": None if found is None else documents.verification(found),
        "protection": None
        if protection is None
        else {
            "time": None if protection.since is None else documents.time(protection.since),
            "reason": protection.reason,
        },
        "boot": None if known.boot is None else documents.boot(known.boot),
        "fsck": None if known.fsck is None else documents.fsck(known.fsck),
        "note": known.note,
    }


def _facts(backup: Backup, known: Condition, *, path: str) -> dict[str, str]:
    """Return what is said of the backup as a whole, by the word in front of it."""
    facts = {
        "Backup": backup.id,
        "Domain": f"{backup.domain_name} ({backup.domain_uuid})",
        "Level": backup.level.value,
        "Parent": backup.parent or "-",
        "Time": output.local_time(backup.time),
        "Consistency": backup.consistency.value + (f", frozen for {backup.frozen_ms} ms" if backup.frozen_ms else ""),
        "Duration": f"{backup.duration_s:.1f} s",
        "Size": f"{output.size(backup.size_bytes)} of {output.size(known.chain_size_bytes)} in its chains",
        "Verified": _verified(known.verification),
        "Boot test": _booted(known.boot, path),
        "Fsck": _checked(known.fsck),
        "Protected": _protected(known.protection),
        "Note": known.note or "-",
        "Directory": path,
        "Made by": ", ".join(f"{name} {version}" for name, version in backup.versions.items()),
    }
    if backup.host is not None:
        facts["Host"] = str(backup.host) + (f" (machine id {backup.host.machine_id})" if backup.host.machine_id else "")
    if backup.group is not None:
        members = ", ".join(member.domain_name for member in backup.group.members)
        facts["Group"] = f"{backup.group.id}: {members}; within {backup.group.spread_ms:.1f} ms"
    if backup.autostart is not None:
        facts["Autostart"] = "yes" if backup.autostart else "no"
    if backup.loader is not None:
        facts["Firmware"] = f"{backup.loader}, which is the host's and not in the backup"
    return facts


def _print(backup: Backup, known: Condition, chains: Mapping[str, Sequence[str]], *, path: str) -> None:
    for name, value in _facts(backup, known, path=path).items():
        output.labelled(f"{name + ':':<13}", value)
    print()
    _print_disks(backup)
    for one in backup.machine:
        output.labelled("Machine: ", _machine(one))
    for disk in backup.left_out:
        output.labelled("Left out: ", f"{disk.dev} ({disk.reason})")
    for image in backup.disks:
        output.labelled(f"Source of {output.plain(image.dev)}: ", image.source or "unknown")
    for image in backup.disks:
        output.labelled(f"Content of {output.plain(image.dev)}: ", _content(image))
    for dev, what in unusual(backup).items():
        output.labelled(f"Unusual for {output.plain(dev)}: ", what)
    if known.verification is not None:
        _print_damage(known.verification)
    for dev, ids in chains.items():
        _print_chain(dev, ids, known.chains.get(dev))


def _verified(found: Verification | None) -> str:
    if found is None:
        return "never"
    text = f"{found.verdict.value}, {output.local_time(found.time)}, {found.percent:g} % of the blocks read"
    if found.unfinished is not None:
        text += f"; one that began {output.local_time(found.unfinished)} was stopped, and the next goes on there"
    return text


def _booted(found: BootResult | None, path: str) -> str:
    if found is None:
        return "never"
    picture = f" Screen: {path}/{BOOT_PICTURE}." if found.picture is not None else ""
    return f"{found.verdict}, {output.local_time(found.time)}. {found.reason}{picture}"


def _checked(found: FsckResult | None) -> str:
    if found is None:
        return "never"
    damaged = "".join(f" Damaged: {one.name} ({one.type})." for one in found.of(FSCK_DAMAGED))
    return f"{found.verdict}, {output.local_time(found.time)}. {found.reason}{damaged}"


def _protected(found: Protection | None) -> str:
    if found is None:
        return "no"
    since = f"since {output.local_time(found.since)}" if found.since is not None else "yes"
    return f"{since}: {found.reason}" if found.reason else since


def _machine(one: MachineFile) -> str:
    """Return what a file of the machine is, and the digest that proves it."""
    of = f" in {one.dev}" if one.dev is not None else ""
    size = "" if one.size_bytes is None else f", {output.size(one.size_bytes)}"
    return f"{one.kind.value}{of}, of {one.path or 'an unknown place'}{size}; {one.digest}"


def _content(image: DiskImage) -> str:
    """Return what the image itself holds, and the digests that prove it."""
    if image.blocks is None:
        return f"no block list; the image is {image.digest}"
    data, zeros = (output.size(blocks * BLOCK_BYTES) for blocks in (image.blocks.data_blocks, image.blocks.zero_blocks))
    return f"{data} of data, {zeros} of zeros; list {image.blocks.digest}; header and tables {image.blocks.structure}"


def _print_damage(found: Verification) -> None:
    for damage in found.damage[:_MAX_DAMAGE]:
        where = (
            f" at byte {damage.start_bytes} of {damage.dev}, {output.size(damage.length_bytes)}" if damage.dev else ""
        )
        print(output.plain(f"Damaged: {damage.file} ({damage.kind}){where}"))
    if found.damage[_MAX_DAMAGE:]:
        print(f"Damaged: {len(found.damage) - _MAX_DAMAGE} more ranges; --json has them")


def _print_chain(dev: str, ids: Sequence[str], size: ChainSize | None) -> None:
    """Print the backups that hold the disk, one per line, the middle of a long chain as a number."""
    sizes = f" ({len(ids)} image{'s' * (len(ids) != 1)}, {output.size(size.size_bytes)})" if size is not None else ""
    print(f"Chain of {dev}{sizes}:")
    omitted = len(ids) - 2 * _CHAIN_ENDS
    lines = [*ids] if omitted <= 1 else [*ids[:_CHAIN_ENDS], f"... {omitted} more", *ids[-_CHAIN_ENDS:]]
    for line in lines:
        print(f"  {line}")


def _print_disks(backup: Backup) -> None:
    output.table(
        ("DISK", "LEVEL", "SIZE", "COPIED", "VIRTUAL SIZE", "WHY"),
        [
            (
                image.dev,
                image.level.value,
                output.size(image.file_size_bytes),
                output.size(image.copied_bytes),
                output.size(image.virtual_size_bytes),
                image.reason,
            )
            for image in backup.disks
        ],
    )
