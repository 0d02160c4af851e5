"""Write the manifest of a backup (manifest.json), and read it back, checking every member.

vbackup-repository(5) lists the members. The disk that a manifest comes from may be broken or hostile, so every name in
it that becomes part of a path is checked here, before any image is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from enum import Enum
from typing import Any, TypeVar

from vbackup import names
from vbackup.errors import ChainError
from vbackup.fields import Fields, parse_json
from vbackup.files import digest_of
from vbackup.layers import ChainState
from vbackup.model import (
    LIVE_XML,
    NVRAM,
    Backup,
    BlockDriver,
    BlocksRecord,
    ChangeRecord,
    Consistency,
    DiskImage,
    Group,
    GroupMember,
    HostIdentity,
    ImageFormat,
    LeftOut,
    Level,
    MachineFile,
    MachineKind,
)

NAME = "manifest.json"
SCHEMA = "vbackup.manifest/1"
#: A manifest of a thousand disks is under 1 MiB.
MAX_SIZE_BYTES = 16 * 1024 * 1024
#: Files that a backup can have in addition to its images and to what ``machine`` lists.
FURTHER_FILES = ("domain.xml", LIVE_XML, NVRAM)

#: Times in this range can be converted to every time zone.
_EARLIEST, _LATEST = (datetime(*day, tzinfo=timezone.utc) for day in ((1, 1, 2), (9999, 12, 31)))

#: The member that has the digest of all others. Earlier manifests have none.
_DIGEST = "digest"

E = TypeVar("E", bound=Enum)


def document(backup: Backup) -> dict[str, Any]:
    """Return the backup as a JSON object, without the schema member."""
    members: dict[str, Any] = {
        "id": backup.id,
        "sequence": backup.sequence,
        "level": backup.level.value,
        "parent": backup.parent,
        "time": iso(backup.time),
        "domain": {"name": backup.domain_name, "uuid": backup.domain_uuid},
        "disks": [_image_document(image) for image in backup.disks],
        "left_out": [left_out_document(left) for left in backup.left_out],
        "consistency": backup.consistency.value,
        "frozen_ms": backup.frozen_ms,
        "duration_s": backup.duration_s,
        "size_bytes": backup.size_bytes,
        "files": dict(backup.files),
        "versions": dict(backup.versions),
    }
    if backup.host is not None:
        members["host"] = host_document(backup.host)
    if backup.group is not None:
        members["group"] = group_document(backup.group)
    if backup.machine:
        members["machine"] = [_machine_document(one) for one in backup.machine]
    if backup.autostart is not None:
        members["autostart"] = backup.autostart
    if backup.loader is not None:
        members["loader"] = backup.loader
    return members


def dump(backup: Backup) -> str:
    """Return the text of manifest.json."""
    return text_of({"schema": SCHEMA, **document(backup)})


def text_of(members: Mapping[str, Any]) -> str:
    """Return the text of a manifest.json that has these members, with their digest, by which damage is noticed."""
    members = {name: value for name, value in members.items() if name != _DIGEST}
    return json.dumps({**members, _DIGEST: _digest(members)}, indent=2, ensure_ascii=False) + "\n"


def _digest(members: Mapping[str, Any]) -> str:
    """Return the digest of the members but ``digest``, whatever their order and the white space between them."""
    others = {name: value for name, value in members.items() if name != _DIGEST}
    return digest_of(_CANONICAL.encode(others).encode())


#: json.dumps would make one for each manifest.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def has_digest(text: str) -> bool:
    """Return True if the text of a manifest, which ``load`` has read, has a digest of itself; early ones have none."""
    return _DIGEST in parse_json(text)


def iso(time: datetime) -> str:
    """Return the time in UTC in the form 2026-11-23T10:15:00.250000Z (ISO 8601)."""
    return time.astimezone(timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def load(text: str, *, backup_id: str, domain_uuid: str, with_chains: bool = True) -> Backup:
    """Return the backup that a manifest describes; the id and the domain have to be those of its directory.

    Without ``with_chains``, for people who look at backups, ``chain`` is None of all disks: it is half of a manifest.
    What is there then is proved by the digest all the same; a manifest without one is read as a whole.
    Raises ChainError, which names the member that is wrong.
    """
    where = f"the manifest of backup {backup_id}"
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as err:
        raise ChainError(f"In {where}: not JSON ({err}); is it truncated?") from err
    fields = Fields(value, where, ChainError)
    if fields.text("schema") != SCHEMA:
        raise ChainError(f"In {where}: schema {fields.text('schema')} is unknown; this vbackup reads {SCHEMA}.")
    with_chains = with_chains or _DIGEST not in fields
    backup = parse(fields, where, backup_id=backup_id, domain_uuid=domain_uuid, with_chains=with_chains)
    for image in backup.disks:
        if image.blocks is None and image.digest is None:
            raise ChainError(f"In {where}: disk {image.dev} should have blocks or a digest, but has neither.")
    if _DIGEST in fields and fields.text(_DIGEST) != _digest(value):
        raise ChainError(
            f"In {where}: its content differs from its digest; it was altered or is damaged. Restore the file from a"
            " copy of the repository."
        )
    return backup


def parse(fields: Fields, where: str, *, backup_id: str, domain_uuid: str, with_chains: bool = True) -> Backup:
    """Return the backup described by an object in the form of ``document``; ``where`` names it in errors.

    Raises ChainError, which names the member that is wrong.
    """
    domain = fields.object("domain")
    if fields.text("id") != backup_id or domain.text("uuid") != domain_uuid:
        raise ChainError(f"In {where}: it belongs to backup {fields.text('id')} of domain {domain.text('uuid')}.")
    files, versions = fields.object("files"), fields.object("versions")
    disks = tuple(_image(disk, where, with_chain=with_chains) for disk in fields.objects("disks"))
    if len({image.dev for image in disks}) != len(disks):
        raise ChainError(f"In {where}: it lists a disk twice.")
    machine = tuple(_machine(fields, where))
    for one in machine:
        if one.file in files and files.text(one.file) != one.digest:
            raise ChainError(f"In {where}: it gives two digests of {one.file}.")
    return Backup(
        id=backup_id,
        sequence=fields.integer("sequence"),
        level=_enum(Level, fields.text("level"), where),
        parent=_backup_id(fields.optional_text("parent"), where),
        time=time(fields.text("time"), where),
        domain_name=domain.text("name"),
        domain_uuid=domain_uuid,
        disks=disks,
        left_out=tuple(_left_out(left) for left in fields.objects("left_out")),
        consistency=_enum(Consistency, fields.text("consistency"), where),
        frozen_ms=fields.integer("frozen_ms"),
        duration_s=fields.number("duration_s"),
        files={name: files.text(name) for name in FURTHER_FILES if name in files},
        versions={name: versions.text(name) for name in ("vbackup", "qemu", "libvirt") if name in versions},
        group=_group(fields.object("group")) if "group" in fields else None,
        host=host(fields.object("host")) if "host" in fields else None,
        machine=machine,
        autostart=fields.boolean("autostart") if "autostart" in fields else None,
        loader=fields.optional_text("loader"),
    )


def _machine_document(one: MachineFile) -> dict[str, Any]:
    dev = {} if one.dev is None else {"dev": one.dev}
    known = {"size_bytes": one.size_bytes, "digest": one.digest, "path": one.path}
    image_format = {} if one.image_format is None else {"format": one.image_format.value}
    return {"kind": one.kind.value, **dev, "file": one.file, **image_format, **known}


def _machine(fields: Fields, where: str) -> Iterator[MachineFile]:
    """Yield what the machine needs; a kind that only a newer vbackup knows is passed over."""
    seen = set()
    for entry in fields.objects("machine") if "machine" in fields else ():
        try:
            kind = MachineKind(entry.text("kind"))
        except ValueError:
            continue
        dev = entry.text("dev") if kind is MachineKind.MEDIUM else None
        path = entry.optional_text("path")
        has_format = kind is MachineKind.NVRAM and "format" in entry
        image_format = _enum(ImageFormat, entry.text("format"), where) if has_format else None
        one = MachineFile(kind, entry.integer("size_bytes"), entry.text("digest"), path, dev, image_format)
        if (dev is not None and not names.DEV.fullmatch(dev)) or entry.text("file") != one.file:
            raise ChainError(f"In {where}: vbackup never writes a {kind.value} to a file {entry.text('file')!r}.")
        if one.file in seen:
            raise ChainError(f"In {where}: it lists {one.file} twice.")
        seen.add(one.file)
        yield one


def left_out_document(left: LeftOut) -> dict[str, str]:
    """Return what is left out, and why, as a JSON object."""
    return {"kind": left.kind, "dev": left.dev, "reason": left.reason}


def _left_out(fields: Fields) -> LeftOut:
    """Return what is left out; before there was ``kind``, it was always a disk."""
    return LeftOut(fields.text("dev"), fields.text("reason"), kind=fields.optional_text("kind") or "disk")


def host_document(identity: HostIdentity) -> dict[str, str | None]:
    """Return the host as a JSON object."""
    return {"name": identity.name, "machine_id": identity.machine_id}


def host(fields: Fields) -> HostIdentity:
    """Return the host that ``host_document`` wrote. Raises the error of ``fields``."""
    return HostIdentity(fields.text("name"), fields.optional_text("machine_id"))


def group_document(group: Group) -> dict[str, Any]:
    """Return the group as a JSON object."""
    members = [
        {"domain": {"name": member.domain_name, "uuid": member.domain_uuid}, "id": member.backup_id}
        for member in group.members
    ]
    return {"id": group.id, "members": members, "spread_ms": group.spread_ms}


def _group(fields: Fields) -> Group:
    """Return the group. Its names and ids are only displayed, so they are not checked: nothing is looked up by them."""
    members = ((member.object("domain"), member.text("id")) for member in fields.objects("members"))
    return Group(
        id=fields.text("id"),
        members=tuple(
            GroupMember(domain.text("name"), domain.text("uuid"), backup_id) for domain, backup_id in members
        ),
        spread_ms=fields.number("spread_ms"),
    )


def _image_document(image: DiskImage) -> dict[str, Any]:
    chain = {} if image.chain is None else {"chain": image.chain.document()}
    blocks = {} if image.blocks is None else {"blocks": blocks_document(image.blocks)}
    change = {} if image.change is None else {"change": change_document(image.change)}
    digest = {} if image.digest is None else {"digest": image.digest}
    checkpoint = {} if image.checkpoint is None else {"checkpoint": image.checkpoint}
    full = {} if image.full is None else {"full": image.full}
    return {
        "dev": image.dev,
        "level": image.level.value,
        "base": image.base,
        "reason": image.reason,
        "file": image.file,
        "backing_file": f"../{image.base}/{image.file}" if image.base else None,
        "virtual_size_bytes": image.virtual_size_bytes,
        "file_size_bytes": image.file_size_bytes,
        "copied_bytes": image.copied_bytes,
        **digest,
        **blocks,
        **change,
        "bitmap": image.bitmap,
        **checkpoint,
        **full,
        "node_name": image.node_name,
        "source": image.source,
        "source_format": image.source_format.name,
        "encrypted": image.encrypted,
        **chain,
    }


def blocks_document(blocks: BlocksRecord) -> dict[str, Any]:
    """Return what is recorded of a block list as a JSON object."""
    return {
        "digest": blocks.digest,
        "structure": blocks.structure,
        "data_blocks": blocks.data_blocks,
        "zero_blocks": blocks.zero_blocks,
    }


def _blocks(fields: Fields) -> BlocksRecord:
    return BlocksRecord(
        digest=fields.text("digest"),
        structure=fields.text("structure"),
        data_blocks=fields.integer("data_blocks"),
        zero_blocks=fields.integer("zero_blocks"),
    )


def change_document(change: ChangeRecord) -> dict[str, Any]:
    """Return how much of a disk was copied, and how well it compresses, as a JSON object."""
    return {
        "data_bytes": change.data_bytes,
        "zero_bytes": change.zero_bytes,
        "sampled_bytes": change.sampled_bytes,
        "compressed_bytes": change.compressed_bytes,
        "unusual": change.unusual,
    }


def _change(fields: Fields) -> ChangeRecord:
    return ChangeRecord(
        data_bytes=fields.integer("data_bytes"),
        zero_bytes=fields.integer("zero_bytes"),
        sampled_bytes=fields.integer("sampled_bytes"),
        compressed_bytes=fields.integer("compressed_bytes"),
        unusual=fields.optional_text("unusual"),
    )


def _image(fields: Fields, where: str, *, with_chain: bool) -> DiskImage:
    dev = fields.text("dev")
    if not names.DEV.fullmatch(dev) or fields.text("file") != f"{dev}.qcow2":
        raise ChainError(f"In {where}: vbackup never writes a disk {dev!r} to a file {fields.text('file')!r}.")
    return DiskImage(
        dev=dev,
        level=_enum(Level, fields.text("level"), where),
        base=_backup_id(fields.optional_text("base"), where),
        reason=fields.text("reason"),
        file=f"{dev}.qcow2",
        virtual_size_bytes=fields.integer("virtual_size_bytes"),
        file_size_bytes=fields.integer("file_size_bytes"),
        copied_bytes=fields.integer("copied_bytes"),
        digest=fields.optional_text("digest"),
        blocks=_blocks(fields.object("blocks")) if "blocks" in fields else None,
        change=_change(fields.object("change")) if "change" in fields else None,
        bitmap=fields.optional_text("bitmap"),
        checkpoint=_backup_id(fields.optional_text("checkpoint"), where) if "checkpoint" in fields else None,
        full=_backup_id(fields.optional_text("full"), where) if "full" in fields else None,
        node_name=fields.text("node_name"),
        source=fields.optional_text("source"),
        source_format=BlockDriver(fields.text("source_format")),
        encrypted=fields.boolean("encrypted"),
        chain=ChainState.read(fields.object("chain")) if with_chain and "chain" in fields else None,
    )


def _backup_id(text: str | None, where: str) -> str | None:
    if text is not None and not names.BACKUP_ID.fullmatch(text):
        raise ChainError(f"In {where}: {text!r} is not a backup id.")
    return text


def _enum(kind: type[E], text: str, where: str) -> E:
    try:
        return kind(text)
    except ValueError as err:
        raise ChainError(f"In {where}: {err}.") from err


def time(text: str, where: str) -> datetime:
    """Return the time that ``iso`` wrote; ``where`` names its origin in the error. Raises ChainError."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)
    except (ValueError, OverflowError) as err:
        raise ChainError(f"In {where}: {text!r} is not a time.") from err
    if not _EARLIEST <= moment < _LATEST:
        raise ChainError(f"In {where}: {text!r} cannot be the time of a backup.")
    return moment
