"""Repair: modes, manifests, and what is no image."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from vbackup import files
from vbackup.errors import ChainError, StorageError
from vbackup.files import is_directory, storage_errors
from vbackup.operations.repair_work import Work
from vbackup.repository import audited, inspection, manifest, verify
from vbackup.repository.catalogue import domain_names, read_text
from vbackup.repository.history import Link
from vbackup.repository.inspection import REPAIRED, TEMPORARY, Inspected, Kind


def remove_leftovers(work: Work) -> None:
    """Remove what dead runs have left half written: there is nothing in it that is not elsewhere."""
    for path, _ in list(inspection.walk(work.directory)):
        if not path.name.startswith(REPAIRED) and not (TEMPORARY.fullmatch(path.name) and not _has_writer(path)):
            continue
        if not work.is_dry:
            with storage_errors(f"remove {path}"):
                if is_directory(path):
                    shutil.rmtree(path)
                else:
                    path.unlink()
        work.note(f"{path} was removed.", f"{path} would be removed.")


def set_rights(work: Work) -> None:
    """Set modes and owners: a backup is its owner's alone."""
    owner = work.repository.path.stat()
    changed = 0
    for path, status in list(inspection.walk(work.directory)):
        wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
        is_open = bool(status.st_mode & 0o077) and not stat.S_ISLNK(status.st_mode)
        is_foreign = status.st_uid != owner.st_uid and os.geteuid() == 0
        if not is_open and not is_foreign:
            continue
        changed += 1
        if work.is_dry:
            continue
        with storage_errors(f"change the mode of {path}"):
            if is_foreign:
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
            if is_open:
                path.chmod(wanted)
    if changed:
        work.note(
            f"Modes and owners of {changed} files and directories were set.",
            f"Modes and owners of {changed} files and directories would be set.",
        )


def take_manifests(work: Work) -> None:
    """Take manifests from a copy: they record the digests of what is here, which proves that they belong to it."""
    for broken in work.repository.catalogue(work.uuid).unreadable:
        path = work.directory / broken.id / "manifest.json"
        for twin in work.sources.twins(path):
            with suppress(ChainError, OSError, ValueError):
                text = read_text(twin)
                backup = manifest.load(text, backup_id=broken.id, domain_uuid=work.uuid)
                links = [Link(backup, image) for image in backup.disks]
                proofs = _proofs(work, path.parent, backup.digests, links)
                # Without a digest of itself, only what is here proves what it says.
                if not proofs or (not manifest.has_digest(text) and proofs < len(links) + len(backup.digests)):
                    continue
                if not work.is_dry:
                    work.replace(path, text.encode())
                work.note(
                    f"The manifest of backup {broken.id} was taken from {twin}.",
                    f"The manifest of backup {broken.id} would be taken from {twin}.",
                )
                break


def _proofs(work: Work, directory: Path, recorded: Mapping[str, str], links: Sequence[Link]) -> int:
    """Return how many images and files of the backup are those of this manifest; 0 if an image has another size."""
    proofs = 0
    for link in links:
        path = directory / link.image.file
        if path.exists() and path.stat().st_size != link.image.file_size_bytes:
            return 0
        with suppress(ChainError, StorageError):
            if link.image.blocks is not None:
                verify.opened_list(path, link).close()
            else:
                verify.check_digest(path, link, check=work.stop.check, progress=lambda _done_bytes: None)
            proofs += 1
    for name, digest in recorded.items():
        with suppress(StorageError):
            proofs += files.digest(directory / name, check=work.stop.check) == digest
    return proofs


def take_others(work: Work, found: Inspected) -> None:
    """Take what is no image, such as domain.xml, from a copy, or from another backup that has the same."""
    history = work.repository.catalogue(work.uuid).history
    for trouble in found.troubles:
        if trouble.kind is not Kind.FILE or trouble.path is None or trouble.backup is None:
            continue
        path = trouble.path
        digest = history.get(trouble.backup).digests[path.name]
        others = (work.directory / other.id / path.name for other in history.backups)
        for source in (*work.sources.twins(path), *others):
            if work.digest_of(source) == digest:
                if not work.is_dry:
                    work.take(path, source)
                work.note(f"{path} was taken from {source}.", f"{path} would be taken from {source}.")
                work.good.add(f"{trouble.backup}/{path.name}")
                break
        else:
            work.fail(f"{path} cannot be repaired: no backup has the same. Give a copy with --from.")


def make_domain_json(work: Work) -> None:
    """Make domain.json from the manifests."""
    backups = work.repository.catalogue(work.uuid).history.backups
    if not backups:
        return
    if not work.is_dry:
        for backup in backups:
            work.repository.remember_name(work.uuid, backup.domain_name, backup.host)
    work.note(
        f"{work.directory / 'domain.json'} was made from the manifests: {domain_names(work.directory)[-1]}.",
        f"{work.directory / 'domain.json'} would be made from the manifests.",
    )


def renew_audits(work: Work) -> None:
    """Rewrite audit.json: what it said of the backups is not known, so none may start from them."""
    path = work.directory / audited.NAME
    if not work.is_dry:
        history = work.repository.catalogue(work.uuid).history
        now = datetime.now(timezone.utc)
        work.replace(path, audited.renewed([*history.backups, *history.merging], now=now).encode())
    after = "the next backup of each disk is a full"
    work.note(f"{path} was rewritten: {after}.", f"{path} would be rewritten: {after}.")


def _has_writer(path: Path) -> bool:
    """Return True if the process that a temporary file is named after lives."""
    return Path(f"/proc/{path.name.rpartition('.')[2]}").exists()
