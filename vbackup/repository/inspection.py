"""Look through the backups of a domain without reading data: what is wrong, which backups that concerns, what to do.

Manifests, block lists, headers and tables of images, chains, small files, modes and owners, leftovers. Whether the data
is as it was is known only after reading it (vbackup.operations.verify); the last result of that is looked at too.
Nothing is written and nothing is locked.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from enum import Enum
from pathlib import Path

from vbackup import names
from vbackup.errors import ChainError, StorageError
from vbackup.files import is_directory, is_regular, of_link, storage_errors
from vbackup.model import Backup
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.repository import (
    affected,
    audited,
    block_list,
    catalogue,
    in_place_journal,
    liveness,
    merge_journal,
    quarantine,
    stream_tar,
    verification,
    verify,
)
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.history import Link
from vbackup.repository.repository import PARTIAL, Repository
from vbackup.repository.verification import Verdict

#: Images looked at at the same time.
_MAX_IMAGES = 4
#: A backup whose time is later than that was made with a wrong clock.
_CLOCK_DRIFT = timedelta(minutes=10)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
#: Files of a backup beside the manifest, the images and what the manifest names.
_KNOWN = frozenset(
    (
        *("manifest.json", "journal", "verified.json", "boot.json", "boot.png", "fsck.json", "protected", "note"),
        stream_tar.SUMS,  # of a stream that tar has unpacked here
    )
)
_DOMAIN_KNOWN = frozenset(("domain.json", "lock", "audit.json", "restored.json", "in-place.json", "standbys.json"))
#: Prefix of an image that is being repaired, which takes its name when it is complete.
REPAIRED = ".repaired-"
#: Temporary files of a dead run: vbackup.files.replace_text and vbackup.repository.late_lists.
TEMPORARY = re.compile(r"\.[a-z0-9_.-]+\.(json|png|blocks|note|protected)\.[0-9]+|\.(note|protected)\.[0-9]+")
#: How many names a sentence has at most.
_MAX_NAMED = 4


class Severity(Enum):
    """How bad a trouble is."""

    DAMAGE = "damage"  #: a backup cannot be restored, or not as it was
    STORAGE = "storage"  #: the storage does not do what a repository needs
    WARNING = "warning"  #: everything can be restored


class Kind(Enum):
    """What a trouble is about."""

    MANIFEST = "manifest"
    CHAIN = "chain"  #: an image depends on one that is missing
    IMAGE = "image"  #: an image is missing, or has another size
    STRUCTURE = "structure"  #: header or tables of an image
    CONTENT = "content"  #: a verify has found damage
    LIST = "list"
    FILE = "file"  #: domain.xml, live.xml, nvram
    QUARANTINED = "quarantined"  #: a backup was put away
    NAMES = "names"  #: domain.json
    AUDITS = "audits"  #: audit.json
    UNFINISHED = "unfinished"
    LEFTOVER = "leftover"  #: of a dead run
    UNKNOWN = "unknown"  #: nothing that vbackup writes
    MODE = "mode"
    OWNER = "owner"
    CLOCK = "clock"
    SPACE = "space"
    LOCKS = "locks"


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong."""

    severity: Severity
    kind: Kind
    what: str  #: a sentence
    remedy: str  #: a sentence
    uuid: str | None = None
    backup: str | None = None
    dev: str | None = None
    path: Path | None = None
    affected: tuple[str, ...] = ()  #: ids of the backups that cannot be restored as they were

    @property
    def sentence(self) -> str:
        """All of it, for people."""
        others = [one for one in self.affected if one != self.backup]
        concerned = f" It concerns {_listed(others)}, too." if others else ""
        return f"{self.what}{concerned} {self.remedy}"


@dataclass(frozen=True)
class Inspected:
    """What was looked at, and found, of one domain."""

    uuid: str
    troubles: tuple[Trouble, ...]
    backups: int
    images: int


REPAIR = "'vbackup check --repair' repairs it if it can, with --from DIR from a copy of the repository."


def inspect(repository: Repository, uuid: str, *, check: Callable[[], None]) -> Inspected:
    """Look through the backups of a domain; ``check`` is called between images and may raise. Raises StorageError."""
    read = repository.catalogue(uuid)
    links = [Link(backup, image) for backup in read.history.backups for image in backup.disks]
    troubles = [*_entries(repository, uuid), *_names(repository, uuid, read), *_manifests(read)]
    troubles += _quarantined(repository, uuid, read)
    troubles += _audits(repository.path / uuid)
    with ThreadPoolExecutor(max_workers=_MAX_IMAGES) as pool:

        def look(link: Link) -> list[Trouble]:
            check()
            return [*image_troubles(verify.image_path(repository, link), link)]

        found = [trouble for each in pool.map(look, links) for trouble in each]
    troubles += [_with_affected(trouble, read) for trouble in found]
    troubles += _chains(read, found)
    for backup in read.history.backups:
        check()
        troubles += _files(repository, backup, check)
        troubles += _clock(backup)
        troubles += _verified(repository, backup)
    troubles += _rights(repository, uuid)
    return Inspected(
        uuid,
        tuple(replace(trouble, uuid=uuid) for trouble in troubles),
        backups=len(read.history.backups) + len(read.unreadable),
        images=len(links),
    )


def image_troubles(path: Path, link: Link) -> Iterator[Trouble]:
    """Yield what is wrong with an image or its list, as far as its data need not be read for that."""

    def damage(kind: Kind, what: str) -> Trouble:
        return Trouble(Severity.DAMAGE, kind, what, REPAIR, backup=link.backup.id, dev=link.image.dev, path=path)

    where = f"Disk {link.image.dev}: the image {path} of backup {link.backup.id}"
    if not is_regular(path):
        yield damage(Kind.IMAGE, f"{where} is missing, or is no regular file.")
    elif (size_bytes := path.lstat().st_size) != link.image.file_size_bytes:
        yield damage(Kind.IMAGE, f"{where} has {size_bytes} bytes; it had {link.image.file_size_bytes}.")
    else:
        try:
            verify.check_header(path, link)
            if link.image.blocks is not None:
                with Qcow2Layer(path) as layer:
                    verify.check_structure(layer, link)
        except ChainError as err:
            yield damage(Kind.STRUCTURE, str(err))
    trouble = _list_trouble(path, link)
    if trouble is not None:
        yield replace(damage(Kind.LIST, trouble), path=path.with_suffix(block_list.SUFFIX))


def _list_trouble(path: Path, link: Link) -> str | None:
    blocks = link.image.blocks
    if blocks is None:
        return None
    try:
        with verify.opened_list(path, link) as listed:
            has = (listed.virtual_size_bytes, listed.data_blocks, listed.zero_blocks)
    except ChainError as err:
        return str(err)
    expected = (link.image.virtual_size_bytes, blocks.data_blocks, blocks.zero_blocks)
    if has != expected:
        return (
            f"Disk {link.image.dev}: the block list {path.with_suffix(block_list.SUFFIX)} of backup {link.backup.id} is"
            f" of {has[0]} bytes, {has[1]} blocks of data and {has[2]} of zeros; its manifest says {expected[0]},"
            f" {expected[1]} and {expected[2]}."
        )
    return None


def _with_affected(trouble: Trouble, read: Catalogue) -> Trouble:
    assert trouble.backup is not None
    assert trouble.dev is not None
    dependents = affected.dependents(trouble.backup, affected.heirs(read.history, trouble.dev))
    in_order = [backup.id for backup in read.history.backups if backup.id in dependents]
    return replace(trouble, affected=tuple(in_order))


def _manifests(read: Catalogue) -> Iterator[Trouble]:
    for broken in read.unreadable:
        yield Trouble(Severity.DAMAGE, Kind.MANIFEST, broken.sentence, REPAIR, backup=broken.id, affected=(broken.id,))


def _quarantined(repository: Repository, uuid: str, read: Catalogue) -> Iterator[Trouble]:
    """Yield one trouble for all backups that were put away; it is damage if the domain has no others."""
    present = {backup.id for backup in read.history.backups}
    away = [backup_id for backup_id in quarantine.backups(repository, uuid) if backup_id not in present]
    if not away:
        return
    store = repository.path / quarantine.NAME / uuid
    are = "s are" if len(away) > 1 else " is"
    yield Trouble(
        Severity.WARNING if present else Severity.DAMAGE,
        Kind.QUARANTINED,
        f"{len(away)} backup{are} in the quarantine {store}, since nothing of what is there could be restored.",
        "'vbackup check --repair --from DIR' takes back what a copy of the repository has; remove the directory if you"
        " do not need it.",
        path=store,
        affected=() if present else tuple(away),
    )


def _chains(read: Catalogue, found: Iterable[Trouble]) -> Iterator[Trouble]:
    """Yield the broken chains that no image which was looked at explains."""
    explained = {(trouble.backup, trouble.dev) for trouble in found if trouble.kind is Kind.IMAGE}
    for backup in read.history.backups:
        for image in backup.disks:
            followed = backup.id, image.dev
            try:
                read.history.links(*followed)
            except ChainError as err:
                chain = {(link.backup.id, image.dev) for link in read.history.present(*followed)}
                if not explained & {*chain, followed}:
                    yield Trouble(
                        Severity.DAMAGE,
                        Kind.CHAIN,
                        str(err),
                        REPAIR,
                        backup=backup.id,
                        dev=image.dev,
                        affected=(backup.id,),
                    )


def _files(repository: Repository, backup: Backup, check: Callable[[], None]) -> Iterator[Trouble]:
    """Yield what is wrong with the further files of a backup, and which files do not belong to it."""
    directory = repository.directory(backup.domain_uuid, backup.id)
    for name in backup.digests:
        try:
            verify.check_file(repository, backup, name, stop=check, quick=True)
        except ChainError as err:
            yield Trouble(
                Severity.DAMAGE,
                Kind.FILE,
                str(err),
                REPAIR,
                backup=backup.id,
                path=directory / name,
                affected=(backup.id,),
            )
    known = {*_KNOWN, *backup.digests}
    for image in backup.disks:
        known |= {image.file, f"{image.dev}{block_list.SUFFIX}"}
    for entry in _entries_of(directory):
        if entry.name not in known:
            yield replace(_stranger(entry), backup=backup.id)


def _stranger(entry: Path) -> Trouble:
    if entry.name.startswith(REPAIRED) or TEMPORARY.fullmatch(entry.name):
        return Trouble(
            Severity.WARNING,
            Kind.LEFTOVER,
            f"{entry} was left by a run that was killed.",
            "'vbackup check --repair' puts it away.",
            path=entry,
        )
    if names.BACKUP_ID.fullmatch(entry.name) and entry.is_symlink():
        return Trouble(Severity.STORAGE, Kind.UNKNOWN, *of_link(entry), path=entry)
    return Trouble(
        Severity.WARNING,
        Kind.UNKNOWN,
        f"{entry} is nothing that this vbackup writes.",
        "Move it away if you do not need it here; vbackup leaves it alone.",
        path=entry,
    )


def _clock(backup: Backup) -> Iterator[Trouble]:
    now = datetime.now(timezone.utc)
    if backup.time > now + _CLOCK_DRIFT:
        yield Trouble(
            Severity.WARNING,
            Kind.CLOCK,
            f"Backup {backup.id} is of a time in the future ({backup.time.isoformat(' ', 'seconds')}).",
            "Check the clock of the host. The order of the backups is right all the same, but rules that keep or remove"
            " backups by their age take it for the newest until then.",
            backup=backup.id,
        )


def _verified(repository: Repository, backup: Backup) -> Iterator[Trouble]:
    result = verification.read(repository.directory(backup.domain_uuid, backup.id))
    if result is None or result.verdict is not Verdict.DAMAGED:
        return
    parts = sorted({f"{one.file}" for one in result.damage})
    yield Trouble(
        Severity.DAMAGE,
        Kind.CONTENT,
        f"Backup {backup.id}: a verify of {result.time.isoformat(' ', 'seconds')} found damage in {_listed(parts)}.",
        REPAIR,
        backup=backup.id,
        affected=(backup.id,),
    )


def _entries(repository: Repository, uuid: str) -> Iterator[Trouble]:
    """Yield the entries of the domain's directory that are no committed backups."""
    directory = repository.path / uuid
    running = frozenset(repository.running(uuid))
    merges = merge_journal.leftovers(directory)
    if merges and not _is_merging(directory):
        yield Trouble(
            Severity.WARNING,
            Kind.UNFINISHED,
            f"A merge or a removal of backups was interrupted: {_paths(merges)}.",
            "'vbackup check --repair' finishes or undoes it, and so does the next command that changes the domain.",
            path=merges[0],
        )
    yield from _in_place(directory)
    for entry in _entries_of(directory):
        name = entry.name
        if entry in merges:
            continue
        if name in _DOMAIN_KNOWN or (names.BACKUP_ID.fullmatch(name) and is_directory(entry)):
            continue
        if not name.endswith(PARTIAL) or not is_directory(entry):
            yield _stranger(entry)
        elif (backup_id := name[: -len(PARTIAL)]) not in running:
            yield Trouble(
                Severity.WARNING,
                Kind.UNFINISHED,
                f"Backup {backup_id} is unfinished: a run was interrupted.",
                f"'vbackup recover {uuid}' finishes or undoes it, and so does the next backup.",
                backup=backup_id,
                path=entry,
            )


def _in_place(directory: Path) -> Iterator[Trouble]:
    path = directory / in_place_journal.NAME
    remedy = f"'vbackup restore {directory.name} --in-place' ends it, while the domain is off."
    try:
        entry = in_place_journal.read(directory)
        if entry is None:
            return
        remedy = f"'vbackup restore {directory.name} --in-place{entry.option}' ends it, while the domain is off."
        if liveness.is_at_work(entry.writer, directory, silent_s=time.time() - path.lstat().st_mtime):
            return
        what = f"A restore in place to backup {entry.backup} was interrupted"
        if entry.is_begun:
            what += ", and some disks of the domain may be as in that backup and others as before"
            remedy = (
                f"'vbackup restore {directory.name} {entry.backup} --in-place{entry.option}' ends it, while the domain"
                " is off."
            )
        what = f"{what}: {path}."
    except FileNotFoundError:  # it has just ended
        return
    except (ChainError, StorageError) as err:
        what = str(err)
    yield Trouble(Severity.WARNING, Kind.UNFINISHED, what, remedy, path=path)


def _is_merging(directory: Path) -> bool:
    """Return True if the process that merges seems to be at work."""
    try:
        entry = merge_journal.read(directory)
        silent_s = time.time() - (directory / merge_journal.NAME).stat().st_mtime
    except (ChainError, StorageError, OSError):
        return False
    return entry is not None and liveness.is_at_work(entry.writer, directory, silent_s=silent_s)


def _names(repository: Repository, uuid: str, read: Catalogue) -> Iterator[Trouble]:
    if read.history.backups and catalogue.domain_names(repository.path / uuid) == [uuid]:
        yield Trouble(
            Severity.WARNING,
            Kind.NAMES,
            f"{repository.path / uuid / 'domain.json'} is missing or damaged: the domain is not found by its name.",
            "'vbackup check --repair' makes it from the manifests.",
            path=repository.path / uuid / "domain.json",
        )


def _audits(directory: Path) -> Iterator[Trouble]:
    flaw = audited.flaw(directory)
    if flaw is not None:
        yield Trouble(
            Severity.WARNING,
            Kind.AUDITS,
            f"{flaw} An audit may have found that changes were missed, so no bitmap is trusted, and the next backup of"
            " each disk is a full.",
            "That backup rewrites the file, and so does 'vbackup check --repair'.",
            path=directory / audited.NAME,
        )


def _rights(repository: Repository, uuid: str) -> Iterator[Trouble]:
    """Yield one trouble each for all modes and all owners that are not as vbackup makes them."""
    owner = repository.path.stat().st_uid
    open_to_others, of_others = [], []
    for path, status in walk(repository.path / uuid):
        if status.st_mode & _OTHERS and not stat.S_ISLNK(status.st_mode):
            open_to_others.append(path)
        if status.st_uid != owner:
            of_others.append(path)
    if open_to_others:
        yield Trouble(
            Severity.WARNING,
            Kind.MODE,
            f"Other users than the owner may read or change {_paths(open_to_others)}.",
            "Disks of virtual machines hold secrets: 'vbackup check --repair' sets modes 0600 and 0700.",
            path=open_to_others[0],
        )
    if of_others:
        yield Trouble(
            Severity.WARNING,
            Kind.OWNER,
            f"The repository belongs to user {owner}, but not {_paths(of_others)}: something else has used it there.",
            f"'chown -R --reference={repository.path} {repository.path / uuid}' gives it back; as root, 'vbackup check"
            " --repair' does.",
            path=of_others[0],
        )


def walk(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield a directory and all below it that is not behind a symbolic link, with its status. Raises StorageError."""
    with storage_errors(f"read {directory}"):
        try:
            status = directory.lstat()
        except FileNotFoundError:  # removed at this moment
            return
    yield directory, status
    if stat.S_ISDIR(status.st_mode):
        for entry in _entries_of(directory):
            yield from walk(entry)


def _entries_of(directory: Path) -> list[Path]:
    """Return what is in a directory; nothing if another vbackup has just removed it. Raises StorageError."""
    with storage_errors(f"read {directory}"):
        try:
            return sorted(directory.iterdir())
        except FileNotFoundError:
            return []


def _paths(paths: list[Path]) -> str:
    return _listed([*map(str, paths)])


def _listed(words: list[str]) -> str:
    more = f" and {len(words) - _MAX_NAMED} more" if len(words) > _MAX_NAMED else ""
    return ", ".join(words[:_MAX_NAMED]) + more
