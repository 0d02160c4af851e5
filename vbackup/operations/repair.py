"""Repair the backups of a domain: ``vbackup check --repair``.

Nothing is believed that the manifest does not prove: lists and files have exactly the digest that it records, or are
not put in place. Nothing is removed: what is replaced or cannot be used goes to the quarantine. Every step ends in one
rename, so a repair that is killed leaves the repository as it was, or repaired further; the next one goes on.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from vbackup import files, names
from vbackup.errors import BusyError, ChainError, InterruptedBySignalError, NoSpaceError, StorageError, VbackupError
from vbackup.fields import parse_json
from vbackup.files import fsync, is_directory, storage_errors
from vbackup.operations import consolidation
from vbackup.report import Reporter
from vbackup.repository import (
    audited,
    backup_repair,
    block_list,
    block_scan,
    image_check,
    image_repair,
    inspection,
    manifest,
    merge_journal,
    quarantine,
    readers,
    verification,
    verify,
)
from vbackup.repository.block_list import algorithm_of
from vbackup.repository.block_sources import BlockSources
from vbackup.repository.catalogue import Catalogue, domain_names, read_text
from vbackup.repository.history import Link
from vbackup.repository.image_check import Watch
from vbackup.repository.image_repair import ImageRepair
from vbackup.repository.inspection import REPAIRED, TEMPORARY, Inspected, Kind
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Verdict
from vbackup.stop import Stop

_PROTECTED = "protected"
#: Errors that say nothing about a file: it may be readable tomorrow, or for another user.
_FAILING = frozenset(
    (errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.EHOSTDOWN)
)


@dataclass(frozen=True)
class Repair:
    """Something that was repaired, would be, or could not be."""

    what: str  #: a sentence
    uuid: str
    is_done: bool = True  #: False: it could not be repaired


def run(
    uuid: str,
    *,
    repository: Repository,
    copies: Sequence[Repository],
    reporter: Reporter,
    stop: Stop,
    dry_run: bool = False,
) -> list[Repair]:
    """Repair what can be repaired of a domain, under its lock; with ``dry_run`` only find out what that is.

    Raises BusyError, StorageError, NoSpaceError, InterruptedBySignalError: what was repaired until then stays.
    """
    with repository.lock(uuid):
        return _Work(uuid, repository, copies, reporter=reporter, stop=stop, dry_run=dry_run).run()


def top(repository: Repository, *, dry_run: bool) -> list[Repair]:
    """Set the mode of the repository's directory, and remove what dead runs left there. Raises StorageError."""
    done = []
    verb = "would be" if dry_run else "was"
    if repository.path.stat().st_mode & 0o077:
        if not dry_run:
            with storage_errors(f"change the mode of {repository.path}"):
                repository.path.chmod(0o700)
        done.append(Repair(f"The mode of {repository.path} {verb} set to 0700.", ""))
    for probe in sorted(repository.path.glob(f"{merge_journal.PROBE}*")):
        if Path(f"/proc/{probe.name[len(merge_journal.PROBE) :]}").exists():
            continue  # another check is asking the filesystem now
        if not dry_run:
            with storage_errors(f"remove {probe}"):
                shutil.rmtree(probe)
        done.append(Repair(f"{probe} {verb} removed.", ""))
    return done


class _Work:
    """The repair of one domain."""

    def __init__(
        self,
        uuid: str,
        repository: Repository,
        copies: Sequence[Repository],
        *,
        reporter: Reporter,
        stop: Stop,
        dry_run: bool,
    ) -> None:
        self._uuid, self._repository, self._dry_run = uuid, repository, dry_run
        self._reporter, self._stop = reporter, stop
        self._directory = repository.path / uuid
        self._copies = copies
        self._sources = BlockSources(repository, copies, uuid, check=stop.check)
        self._done: list[Repair] = []
        self._is_merging = False  #: a merge or removal is half done, so what its backups are is not known
        self._is_incomplete = False  #: a dry run: what backups would be brought back, on which others depend
        self._lost_journal: str | None = None  #: why the journal of an interrupted merge cannot be read
        self._good: set[str] = set()  #: images that were read and are good now, as verified.json names them

    def run(self) -> list[Repair]:
        """Do it."""
        self._merges()
        self._take_back()
        found = self._inspect()
        for kind, repair in (
            (Kind.LEFTOVER, self._leftovers),
            (Kind.MODE, self._rights),
            (Kind.OWNER, self._rights),
            (Kind.MANIFEST, self._manifests),
        ):
            if any(trouble.kind is kind for trouble in found.troubles):
                self._stop.check()
                repair()
        self._missing()
        found = self._inspect()
        self._images(found)
        self._files(found)
        self._verdicts()
        if any(trouble.kind is Kind.NAMES for trouble in found.troubles):
            self._names()
        if any(trouble.kind is Kind.AUDITS for trouble in found.troubles):
            self._audits()
        self._put_away()
        return self._done

    def _inspect(self) -> Inspected:
        return inspection.inspect(self._repository, self._uuid, check=self._stop.check)

    def _note(self, done: str, would: str) -> None:
        repair = Repair(would if self._dry_run else done, self._uuid)
        self._done.append(repair)
        self._reporter.step(repair.what)

    def _fail(self, what: str) -> None:
        self._done.append(Repair(what, self._uuid, is_done=False))

    def _merges(self) -> None:
        """Finish or undo the merges and removals that a dead run began."""
        if not merge_journal.leftovers(self._directory):
            return
        try:
            merge_journal.read(self._directory)
        except ChainError as err:
            self._is_merging = True
            self._lost_journal = str(err)  # _images finds out whether it is needed
            return
        except StorageError:
            pass  # a newer one: it is reported below
        if self._dry_run:
            self._is_merging = True
            self._note("", "An interrupted merge or removal of backups would be finished or undone.")
            return
        try:
            done = consolidation.recover(self._repository, self._uuid, reporter=self._reporter, stop=self._stop)
        except InterruptedBySignalError:
            raise
        except VbackupError as err:
            self._is_merging = True
            self._fail(f"An interrupted merge of backups cannot be finished: {err}")
            return
        self._done += [Repair(what, self._uuid) for what in done]

    def _take_back(self) -> None:
        """Take back from the quarantine what a copy could repair; if it cannot, it is put away again."""
        store = self._repository.path / quarantine.NAME / self._uuid
        if not is_directory(store):
            return
        for kept in sorted(store.iterdir()):
            path = self._directory / kept.name
            can_be_repaired = any(is_directory(twin) for twin in self._sources.twins(path))
            if not names.BACKUP_ID.fullmatch(kept.name) or not can_be_repaired or os.path.lexists(path):
                continue
            if not self._dry_run:
                with storage_errors(f"move {kept}"):
                    kept.rename(path)
                    fsync(self._directory)
            self._note(f"Backup {kept.name} was taken back.", f"Backup {kept.name} would be taken back.")

    def _leftovers(self) -> None:
        """Remove what dead runs have left half written: there is nothing in it that is not elsewhere."""
        for path, _ in list(inspection.walk(self._directory)):
            if not path.name.startswith(REPAIRED) and not (TEMPORARY.fullmatch(path.name) and not _has_writer(path)):
                continue
            if not self._dry_run:
                with storage_errors(f"remove {path}"):
                    if is_directory(path):
                        shutil.rmtree(path)
                    else:
                        path.unlink()
            self._note(f"{path} was removed.", f"{path} would be removed.")

    def _rights(self) -> None:
        owner = self._repository.path.stat()
        changed = 0
        for path, status in list(inspection.walk(self._directory)):
            wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
            is_open = bool(status.st_mode & 0o077) and not stat.S_ISLNK(status.st_mode)
            is_foreign = status.st_uid != owner.st_uid and os.geteuid() == 0
            if not is_open and not is_foreign:
                continue
            changed += 1
            if self._dry_run:
                continue
            with storage_errors(f"change the mode of {path}"):
                if is_foreign:
                    os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
                if is_open:
                    path.chmod(wanted)
        if changed:
            self._note(
                f"Modes and owners of {changed} files and directories were set.",
                f"Modes and owners of {changed} files and directories would be set.",
            )

    def _manifests(self) -> None:
        """Take manifests from a copy: they record the digests of what is here, which proves that they belong to it."""
        for broken in self._repository.catalogue(self._uuid).unreadable:
            path = self._directory / broken.id / "manifest.json"
            for twin in self._sources.twins(path):
                with suppress(ChainError, OSError, ValueError):
                    text = read_text(twin)
                    backup = manifest.load(text, backup_id=broken.id, domain_uuid=self._uuid)
                    links = [Link(backup, image) for image in backup.disks]
                    proofs = self._proofs(path.parent, backup.digests, links)
                    # Without a digest of itself, only what is here proves what it says.
                    if not proofs or (not manifest.has_digest(text) and proofs < len(links) + len(backup.digests)):
                        continue
                    if not self._dry_run:
                        self._replace(path, text.encode())
                    self._note(
                        f"The manifest of backup {broken.id} was taken from {twin}.",
                        f"The manifest of backup {broken.id} would be taken from {twin}.",
                    )
                    break

    def _missing(self) -> None:
        """Bring back from a copy the backups that others depend on, and that are not here or are without an image."""
        if self._is_merging:
            return  # what has been removed is known only when that has ended
        tried: set[str] = set()
        while wanted := self._wanted() - tried:
            tried |= wanted
            for backup_id in sorted(wanted):
                self._stop.check()
                try:
                    self._bring_back(backup_id)
                except NoSpaceError:
                    raise
                except (ChainError, StorageError, BusyError) as err:
                    self._fail(str(err))

    def _wanted(self) -> set[str]:
        read = self._repository.catalogue(self._uuid)
        gaps = [gap[1] for backup in read.history.backups if (gap := read.history.gap(backup)) is not None]
        wanted = {backup_id for backup_id in gaps if not os.path.lexists(self._directory / backup_id)}
        for broken in read.unreadable:  # an image would prove its manifest, or show that it is another
            if is_directory(self._directory / broken.id) and not any((self._directory / broken.id).glob("*.qcow2")):
                wanted.add(broken.id)
        return wanted

    def _bring_back(self, backup_id: str) -> None:
        path = self._directory / backup_id
        # A backup is known by its id in one repository only.
        copies = [copy for copy in self._copies if copy.id == self._repository.id]
        twins = [copy.path / path.relative_to(self._repository.path) for copy in copies]
        if os.path.lexists(path):
            if not any(is_directory(twin) for twin in twins) or self._why_not_moved(path) is not None:
                return  # _put_away deals with it
            if not self._dry_run:
                quarantine.put(self._repository, path)
        source = backup_repair.bring_back(path, twins, check=self._stop.check, is_dry=self._dry_run)
        if source is not None:
            self._is_incomplete = self._dry_run
            self._note(
                f"Backup {backup_id} was brought back from {source}.",
                f"Backup {backup_id} would be brought back from {source}.",
            )
        elif len(copies) < len(self._copies):
            self._fail(
                f"Backup {backup_id} is missing. What has another id than {self._repository.id} is no copy of this"
                " repository, so a whole backup is not taken from there. Give a copy of it with --from."
            )
        else:
            self._fail(f"Backup {backup_id} is missing. Give a copy of the repository that has it with --from.")

    def _proofs(self, directory: Path, recorded: Mapping[str, str], links: Sequence[Link]) -> int:
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
                    verify.check_digest(path, link, check=self._stop.check, progress=lambda _done_bytes: None)
                proofs += 1
        for name, digest in recorded.items():
            with suppress(StorageError):
                proofs += files.digest(directory / name, check=self._stop.check) == digest
        return proofs

    def _images(self, found: Inspected) -> None:
        read = self._repository.catalogue(self._uuid)
        suspect = {
            (trouble.backup, trouble.dev)
            for trouble in found.troubles
            if trouble.kind in (Kind.IMAGE, Kind.STRUCTURE, Kind.LIST)
        }
        suspect |= {*self._damaged_by_verify(read)}
        written = self._written(read) if self._lost_journal is not None else {}
        suspect |= {(link.backup.id, link.image.dev) for link in written.values()}
        for backup in read.history.backups:
            for image in backup.disks:
                if (backup.id, image.dev) in suspect:
                    self._stop.check()
                    link = Link(backup, image)
                    path = verify.image_path(self._repository, link)
                    try:
                        if self._list(path, link):
                            self._image(path, link)
                    except NoSpaceError:
                        raise
                    except (ChainError, StorageError) as err:
                        self._fail(str(err))
        if self._lost_journal is not None:
            self._put_journal_away([name for name in written if name not in self._good])

    def _written(self, read: Catalogue) -> dict[str, Link]:
        """Read the images on which others depend: a merge in place may have written into one. Return those that differ.

        By the names that verified.json has for them.
        """
        bases = {(image.base, image.dev) for backup in read.history.backups for image in backup.disks}
        differing = {}
        for backup in read.history.backups:
            for image in backup.disks:
                link = Link(backup, image)
                if (backup.id, image.dev) in bases:
                    path = verify.image_path(self._repository, link)
                    if image_check.check(path, link, Watch(lambda _read_bytes: self._stop.check())).findings:
                        differing[f"{backup.id}/{image.file}"] = link
        return differing

    def _put_journal_away(self, differing: Sequence[str]) -> None:
        """Put a damaged journal of merges away if no image has to be finished; then undo what was only staged."""
        path = self._directory / merge_journal.NAME
        if differing:
            self._fail(f"{self._lost_journal} Not as they were: {', '.join(differing)}.")
            return
        kept = quarantine.put(self._repository, path) if not self._dry_run else None
        why = "it is damaged, and all images on which others depend are as they were"
        self._note(f"{path} was moved to {kept}: {why}.", f"{path} would be moved to the quarantine: {why}.")
        self._is_merging, self._lost_journal = False, None
        if not self._dry_run:
            self._merges()

    def _damaged_by_verify(self, read: Catalogue) -> Iterator[tuple[str, str]]:
        for backup in read.history.backups:
            result = verification.read(self._repository.directory(self._uuid, backup.id))
            for damage in result.damage if result is not None else ():
                backup_id, _, name = damage.file.partition("/")
                yield backup_id, Path(name).stem

    def _list(self, path: Path, link: Link) -> bool:
        """Put the recorded block list in place, made from the image or taken from a copy.

        Return False if it is not there, as in a dry run: the image cannot be compared. Raises ChainError.
        """
        blocks = link.image.blocks
        if blocks is None:
            return True
        with suppress(ChainError), verify.opened_list(path, link):
            return True
        target = path.with_suffix(block_list.SUFFIX)
        staged = path.with_name(f"{REPAIRED}{target.name}")
        algorithm = algorithm_of(blocks.digest, where=f"The manifest of backup {link.backup.id}")
        source = None
        try:
            with suppress(ChainError):
                made = block_scan.make(path, staged, algorithm=algorithm, check=self._stop.check)
                if (made.digest, made.structure) == (blocks.digest, blocks.structure):
                    source = path
            for twin in self._sources.twins(path) if source is None else ():
                with suppress(ChainError):
                    verify.opened_list(twin, link).close()
                    with storage_errors(f"write {staged}"):
                        staged.unlink(missing_ok=True)
                        image_repair.copy(twin.with_suffix(block_list.SUFFIX), staged, check=self._stop.check)
                    verify.opened_list(staged, link).close()
                    source = twin.with_suffix(block_list.SUFFIX)
                    break
            if source is None:
                raise ChainError(
                    f"Disk {link.image.dev}: the block list {target} of backup {link.backup.id} cannot be repaired: the"
                    " image is not the one that it was made of. Give a copy of the repository with --from."
                )
            if not self._dry_run:
                with storage_errors(f"write {staged}"):
                    fsync(staged)
                quarantine.replace(self._repository, target, staged)
        finally:
            with suppress(OSError):
                staged.unlink()
        self._note(
            f"The block list {target} was made again from {source}.",
            f"The block list {target} would be made again from {source}.",
        )
        return not self._dry_run

    def _image(self, path: Path, link: Link) -> None:
        work = ImageRepair(path, link, self._sources, check=self._stop.check)
        repaired = work.run(is_dry=self._dry_run)
        name = f"{link.backup.id}/{link.image.file}"
        if not repaired.repaired and repaired.source is None:
            if repaired.left:
                self._fail(
                    f"Disk {link.image.dev}: {repaired.left} blocks of {path} are damaged, and no image has the same."
                    " Give a copy of the repository with --from."
                )
            else:
                self._good.add(name)
            return
        kept = None
        if repaired.staged is not None:
            with ExitStack() as stack:
                stack.callback(lambda: work.staged.unlink(missing_ok=True))
                kept = quarantine.replace(self._repository, path, repaired.staged)
        whole = f", made from {repaired.source}" if repaired.source is not None else ""
        still = f"; {repaired.left} are still damaged" if repaired.left else ""
        was = f" What was there is {kept}." if kept is not None else ""
        blocks = f"{repaired.repaired} block{'s' * (repaired.repaired != 1)}"
        self._note(
            f"The image {path} was repaired ({blocks}{whole}{still}).{was}",
            f"The image {path} would be repaired ({blocks}{whole}{still}).",
        )
        if repaired.left:
            self._fail(
                f"Disk {link.image.dev}: {repaired.left} blocks of {path} are damaged, and no image has the same."
            )
        else:
            self._good.add(name)

    def _files(self, found: Inspected) -> None:
        """Take what is no image, such as domain.xml, from a copy, or from another backup that has the same."""
        history = self._repository.catalogue(self._uuid).history
        for trouble in found.troubles:
            if trouble.kind is not Kind.FILE or trouble.path is None or trouble.backup is None:
                continue
            path = trouble.path
            digest = history.get(trouble.backup).digests[path.name]
            others = (self._directory / other.id / path.name for other in history.backups)
            for source in (*self._sources.twins(path), *others):
                if self._digest_of(source) == digest:
                    if not self._dry_run:
                        self._take(path, source)
                    self._note(f"{path} was taken from {source}.", f"{path} would be taken from {source}.")
                    self._good.add(f"{trouble.backup}/{path.name}")
                    break
            else:
                self._fail(f"{path} cannot be repaired: no backup has the same. Give a copy with --from.")

    def _digest_of(self, path: Path) -> str | None:
        try:
            return files.digest(path, check=self._stop.check)
        except StorageError:
            return None

    def _take(self, path: Path, source: Path) -> None:
        """Put a copy of the source in the place of a file."""
        staged = path.with_name(f"{REPAIRED}{path.name}")
        with storage_errors(f"write {staged}"):
            staged.unlink(missing_ok=True)
            with os.fdopen(files.open_regular(source), "rb") as given:
                fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                with os.fdopen(fd, "wb") as file:
                    shutil.copyfileobj(given, file)
            fsync(staged)
        quarantine.replace(self._repository, path, staged)

    def _replace(self, path: Path, data: bytes) -> None:
        staged = path.with_name(f"{REPAIRED}{path.name}")
        with storage_errors(f"write {staged}"):
            staged.unlink(missing_ok=True)
            _write(staged, data)
            fsync(staged)
        quarantine.replace(self._repository, path, staged)

    def _verdicts(self) -> None:
        """Take what was repaired out of the results of verifies: all of these images was read again."""
        if self._dry_run or not self._good:
            return
        for backup in self._repository.catalogue(self._uuid).history.backups:
            directory = self._repository.directory(self._uuid, backup.id)
            result = verification.read(directory)
            if result is None or not any(damage.file in self._good for damage in result.damage):
                continue
            left = tuple(damage for damage in result.damage if damage.file not in self._good)
            whole = Verdict.GOOD if result.percent >= 100 else Verdict.PARTIAL  # noqa: PLR2004
            verification.write(directory, replace(result, damage=left, verdict=Verdict.DAMAGED if left else whole))

    def _names(self) -> None:
        """Make domain.json from the manifests."""
        backups = self._repository.catalogue(self._uuid).history.backups
        if not backups:
            return
        if not self._dry_run:
            for backup in backups:
                self._repository.remember_name(self._uuid, backup.domain_name, backup.host)
        self._note(
            f"{self._directory / 'domain.json'} was made from the manifests: {domain_names(self._directory)[-1]}.",
            f"{self._directory / 'domain.json'} would be made from the manifests.",
        )

    def _audits(self) -> None:
        """Rewrite audit.json: what it said of the backups is not known, so none may start from them."""
        path = self._directory / audited.NAME
        if not self._dry_run:
            history = self._repository.catalogue(self._uuid).history
            now = datetime.now(timezone.utc)
            self._replace(path, audited.renewed([*history.backups, *history.merging], now=now).encode())
        after = "the next backup of each disk is a full"
        self._note(f"{path} was rewritten: {after}.", f"{path} would be rewritten: {after}.")

    def _put_away(self) -> None:
        """Move backups of which nothing can be restored to the quarantine."""
        read = self._repository.catalogue(self._uuid)
        usable = {backup.id for backup in read.history.backups if _has_a_whole_disk(read, backup.id)}
        unusable = [broken.id for broken in read.unreadable]
        unusable += [backup.id for backup in read.history.backups if backup.disks and backup.id not in usable]
        if self._is_incomplete:
            return
        if unusable and self._is_merging:
            self._fail(
                f"What cannot be restored now ({', '.join(unusable)}) stays where it is until the interrupted merge or"
                " removal is finished."
            )
            return
        for backup_id in unusable:
            path = self._directory / backup_id
            reason = self._why_not_moved(path)
            if reason is not None:
                self._fail(f"Backup {backup_id} cannot be restored now, but stays where it is: {reason}.")
                continue
            kept = quarantine.put(self._repository, path) if not self._dry_run else None
            self._note(
                f"Backup {backup_id}, of which nothing can be restored, was moved to {kept}.",
                f"Backup {backup_id}, of which nothing can be restored, would be moved to the quarantine.",
            )

    def _why_not_moved(self, path: Path) -> str | None:
        """Return why a backup that cannot be restored stays where it is; None if it may be moved."""
        if (path / _PROTECTED).exists():
            return "it is protected"
        reason = _why_it_stays(path)
        if reason is None:
            with storage_errors(f"lock {path}"), readers.claimed(path) as is_free:
                if not is_free:
                    return "it is being read"
        return reason


def _has_a_whole_disk(read: Catalogue, backup_id: str) -> bool:
    for image in read.history.get(backup_id).disks:
        with suppress(ChainError):
            read.history.links(backup_id, image.dev)
            return True
    return False


def _why_it_stays(directory: Path) -> str | None:
    """Return why a backup that cannot be used now may be usable all the same; None if there is no such reason."""
    try:
        value = parse_json(read_text(directory / "manifest.json"))
        schema = value.get("schema") if isinstance(value, dict) else None
        if isinstance(schema, str) and schema.startswith("vbackup.manifest/") and schema != manifest.SCHEMA:
            return "a newer vbackup made it"
        for entry in directory.iterdir():
            entry.lstat()
    except (ValueError, RecursionError):
        return None
    except OSError as err:
        if err.errno in _FAILING:
            return f"its storage may be failing ({err.strerror})"
    return None


def _has_writer(path: Path) -> bool:
    """Return True if the process that a temporary file is named after lives."""
    return Path(f"/proc/{path.name.rpartition('.')[2]}").exists()


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
