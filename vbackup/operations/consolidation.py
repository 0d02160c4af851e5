"""Remove backups on which others depend: those take over what the removed ones hold. The domain is not read.

vbackup.repository.merging decides, vbackup.images.merge has QEMU make the images, vbackup.repository.merge_stage puts
them in the place of the old ones. The repository is right at every instant: a run that is killed leaves what was there
before, and a stage that nobody reads, or a merge in place that the next run finishes (repository.merge_journal).

All this needs the domain's lock. ``recover`` comes first, in whatever has it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vbackup import files, names
from vbackup.errors import BusyError, ChainError, StorageError, VbackupError
from vbackup.files import storage_errors
from vbackup.images import joining
from vbackup.images import merge as images_merge
from vbackup.model import BlocksRecord, DiskImage
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.report import Phase, Reporter
from vbackup.repository import (
    block_list,
    block_scan,
    filesystem,
    immutability,
    journal,
    manifest,
    merge_journal,
    merge_stage,
    merged_list,
    merging,
    readers,
    verify,
)
from vbackup.repository.block_list import BlockList
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.history import History, Link
from vbackup.repository.merge_journal import MergeJournal
from vbackup.repository.merge_stage import MergeStage, Patience
from vbackup.repository.merged_list import Layer
from vbackup.repository.merging import DiskMerge, Merge, Place, Plan, Way
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: File of a backup that must not be removed (vbackup.repository.protection).
_PROTECTED = "protected"
#: Prefix of what a stage has only for a while: it is not published.
_TEMPORARY = ".temporary-"
#: Files that a merge has open besides the directories and block lists of its chain.
_FILES = 32
#: How long the storage daemon of a dead run may take to end.
_CLOSING_S = 30.0


@dataclass(frozen=True)
class Done:
    """What became of a plan."""

    removed: tuple[str, ...]
    kept: Mapping[str, str]  #: why backups that were to be removed stay, by id
    merged: tuple[str, ...]  #: the backups that took over others, or became fulls
    busy: Mapping[str, str] = field(default_factory=dict)  #: why those did not that were to, by id


@dataclass(frozen=True)
class ConsolidateRequest:
    """The options of ``vbackup consolidate``."""

    uuid: str
    backup_id: str | None = None  #: makes this backup a full
    max_chain: int | None = None  #: makes fulls until no chain is longer
    way: Way = Way.AUTO
    speed_bytes_s: int | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Consolidated:
    """What was planned, and done unless it was a dry run."""

    plan: Plan
    merged: tuple[str, ...] = ()
    busy: Mapping[str, str] = field(default_factory=dict)  #: why a backup was left as it was, by id


def run(request: ConsolidateRequest, *, repository: Repository, reporter: Reporter, stop: Stop) -> Consolidated:
    """Lock the domain, and make backups independent of others, all of which stay.

    Raises BusyError if another vbackup works on the domain, ChainError if a backup is unknown, damaged, or its chain is
    broken, NoSpaceError, StorageError, InterruptedBySignalError; what is not done yet then stays as it was.
    """

    def planned() -> Plan:
        catalogue = repository.catalogue(request.uuid)
        if request.backup_id is not None:
            return plan_full(catalogue, request.backup_id, repository=repository, way=request.way)
        return plan_length(catalogue, request.max_chain or 1, repository=repository, way=request.way)

    with repository.lock(request.uuid):
        if request.dry_run:
            return Consolidated(planned())
        recover(repository, request.uuid, reporter=reporter, stop=stop)
        wanted = planned()
        done = carry_out(
            wanted, repository=repository, reporter=reporter, stop=stop, speed_bytes_s=request.speed_bytes_s
        )
    return Consolidated(wanted, done.merged, done.busy)


# the plan


def plan(catalogue: Catalogue, remove: Collection[str], *, repository: Repository, way: Way | None = None) -> Plan:
    """Plan the removal of backups. The domain's lock is held, or this only shows what would be done.

    Those in use, and those on which an interrupted backup depends, stay. Raises ChainError if one is unknown or
    protected, or if the chain of one that stays is broken; NoSpaceError if there is no room, StorageError.
    """
    directory = repository.path / catalogue.uuid
    for backup_id in remove:
        catalogue.history.get(backup_id)
        if os.path.lexists(directory / backup_id / _PROTECTED):
            raise ChainError(
                f"Backup {backup_id} is protected, so it is not removed; 'vbackup unprotect' takes the protection away."
            )
    kept = {
        backup_id: f"it is in use: {readers.users(directory / backup_id)} reads it"
        for backup_id in remove
        if readers.is_in_use(directory / backup_id)
    }
    for backup_id, unfinished in _bases_of_unfinished(repository, catalogue.uuid).items():
        if backup_id in remove:
            kept[backup_id] = f"{unfinished}, which was interrupted, depends on it ('vbackup recover' ends that)"
    found = merging.removal(catalogue.history, remove, way=way or Way.AUTO, place=place(directory), kept=kept)
    for merge in found.merges:
        held = immutability.reason(directory / merge.heir)
        if held is not None:
            raise ChainError(f"Backup {merge.heir} depends on one that is to be removed, and is {held}.")
    return found


def plan_full(catalogue: Catalogue, backup_id: str, *, repository: Repository, way: Way | None = None) -> Plan:
    """Plan to make all images of a backup independent of other backups, which stay.

    Raises ChainError if it is unknown or its chain is broken; NoSpaceError, StorageError.
    """
    backup = catalogue.history.get(backup_id)
    held = immutability.reason(repository.directory(catalogue.uuid, backup_id))
    if held is not None:
        raise ChainError(f"Backup {backup_id} is {held}, so its images cannot become fulls. Nothing was done.")
    wanted = [(backup_id, image.dev) for image in backup.disks]
    found = place(repository.path / catalogue.uuid)
    return merging.independence(catalogue.history, wanted, way=way or Way.AUTO, place=found)


def plan_length(catalogue: Catalogue, limit: int, *, repository: Repository, way: Way | None = None) -> Plan:
    """Plan to make images independent so that no chain has more than ``limit`` images. Raises as ``plan_full``."""
    wanted = [
        (backup_id, dev)
        for backup_id, dev in merging.too_long(catalogue.history, limit)
        if immutability.reason(repository.directory(catalogue.uuid, backup_id)) is None
    ]
    found = place(repository.path / catalogue.uuid)
    return merging.independence(catalogue.history, wanted, way=way or Way.AUTO, place=found)


def place(directory: Path) -> Place:
    """Return what the filesystem of a domain's directory offers. Raises StorageError."""
    with storage_errors(f"write to {directory}"):
        found = filesystem.abilities(directory)
        linked = {(path.parent.name, path.stem) for path in directory.glob("*/*.qcow2") if path.lstat().st_nlink > 1}
    return Place(found.reflinks, found.links, found.free_bytes, frozenset(linked))


def _bases_of_unfinished(repository: Repository, uuid: str) -> dict[str, str]:
    """Return the backups on which interrupted ones depend, and which those are."""
    bases: dict[str, str] = {}
    for backup_id in repository.unfinished(uuid):
        if not names.BACKUP_ID.fullmatch(backup_id):
            continue
        try:
            entry = journal.read(repository.stage_path(uuid, backup_id), backup_id=backup_id, domain_uuid=uuid)
        except VbackupError:
            continue
        for image in entry.draft.disks if entry is not None else ():
            if image.base is not None:
                bases[image.base] = backup_id
    return bases


# carrying it out


def carry_out(
    wanted: Plan, *, repository: Repository, reporter: Reporter, stop: Stop, speed_bytes_s: int | None = None
) -> Done:
    """Merge and remove as planned; the domain's lock is held since the plan was made.

    A backup that somebody begins to read meanwhile is kept. If it fails, what was not merged stays as it was; only a
    merge in place that had begun is finished by the next run, and until then the backup that was to be removed cannot
    be restored. Raises ChainError if an image is damaged, NoSpaceError, StorageError, InterruptedBySignalError.
    """
    directory = repository.path / wanted.domain_uuid
    with MergeJournal(directory, wanted.removed) as written:
        run = _Run(repository, wanted.domain_uuid, reporter, stop, written, speed_bytes_s)
        return run.carry_out(wanted)


def recover(repository: Repository, uuid: str, *, reporter: Reporter, stop: Stop) -> list[str]:
    """Finish or undo what a dead run left of merges and removals; return what was done. The domain's lock is held.

    Raises what ``carry_out`` raises if a merge in place cannot be finished now: nothing that stays is harmed by that.
    """
    directory = repository.path / uuid
    done = merge_stage.clear(directory)
    entry = merge_journal.read(directory)
    if entry is not None:
        history = repository.catalogue(uuid).history
        if history.merging:
            ids = [backup.id for backup in history.merging]
            # How much is written already is not known; if there is no room for the rest, QEMU says so.
            place = Place(reflinks=False, links=True, free_bytes=sys.maxsize)
            wanted = merging.removal(history, ids, way=Way.AUTO, place=place)
            with MergeJournal(directory, entry.removed, in_place=ids) as written:
                run = _Run(repository, uuid, reporter, stop, written, None, is_resumed=True)
                result = run.carry_out(wanted)
            if result.kept:
                raise BusyError("; ".join(f"{backup_id}: {reason}" for backup_id, reason in result.kept.items()) + ".")
            done.append(f"Finished the merge of {', '.join(ids)}, which was interrupted.")
        else:
            with storage_errors(f"remove {directory / merge_journal.NAME}"):
                (directory / merge_journal.NAME).unlink(missing_ok=True)
                files.fsync(directory)
    for message in done:
        reporter.step(message)
    return done


@dataclass
class _Run:
    """One run over a plan."""

    repository: Repository
    uuid: str
    reporter: Reporter
    stop: Stop
    written: MergeJournal
    speed_bytes_s: int | None
    is_resumed: bool = False  #: a merge in place may have been begun
    kept: dict[str, str] = field(default_factory=dict)
    busy: dict[str, str] = field(default_factory=dict)
    merged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.patience = Patience(self.reporter)

    @property
    def directory(self) -> Path:
        """The domain's."""
        return self.repository.path / self.uuid

    def carry_out(self, wanted: Plan) -> Done:
        self.kept.update(wanted.kept)
        with storage_errors(f"write to {self.directory}"):
            self._exchanges = filesystem.abilities(self.directory).exchanges
        for each in wanted.merges:
            self.stop.check()
            try:
                if each.is_in_place:
                    self._merge_in_place(each, wanted)
                else:
                    self._merge(each)
            except BusyError as err:
                if not self.is_resumed and set(_below(each)) & self.written.in_place:
                    raise  # it had begun, so these are not kept
                self.busy[each.heir] = str(err).rstrip(".")
                for backup_id in _below(each):
                    if backup_id in wanted.removed:
                        self.kept.setdefault(backup_id, str(err).rstrip("."))
                continue
            self.merged.append(each.heir)
        self._remove(wanted.removed)
        return Done(tuple(self.removed), dict(self.kept), tuple(self.merged), dict(self.busy))

    def _remove(self, backup_ids: Sequence[str]) -> None:
        """Remove those on which no other depends any more."""
        needed = {
            image.base: backup.id
            for backup in self.repository.catalogue(self.uuid).history.backups
            for image in backup.disks
            if backup.id not in backup_ids
        }
        for backup_id in backup_ids:
            self.stop.check()
            if backup_id in needed:
                self.kept.setdefault(backup_id, f"{needed[backup_id]} depends on it")
            if backup_id not in self.kept:
                try:
                    merge_stage.remove(self.directory, backup_id, stop=self.stop)
                except BusyError as err:
                    self.kept[backup_id] = str(err).rstrip(".")
            if backup_id in self.kept:
                needed.update(self._bases_of(backup_id))
                continue
            self.removed.append(backup_id)
            self.reporter.step(f"Removed backup {backup_id}.")
        self.written.set_in_place(set(self.written.in_place) - set(self.removed))

    def _bases_of(self, backup_id: str) -> dict[str | None, str]:
        history = self.repository.catalogue(self.uuid).history
        found = [one for one in (*history.backups, *history.merging) if one.id == backup_id]
        return {image.base: backup_id for one in found for image in one.disks}

    def _merge(self, each: Merge) -> None:
        """Merge into new images: what is published does not change before the end."""
        with MergeStage(self.directory, each.heir) as stage:
            history = self.repository.catalogue(self.uuid).history
            images = {disk.dev: self._image(disk, history, stage) for disk in each.disks}
            self._publish(each, images, history, stage, self.patience)

    def _merge_in_place(self, each: Merge, wanted: Plan) -> None:
        """Merge into published images: from the first write on, the backups that these are of cannot be restored."""
        history = self.repository.catalogue(self.uuid).history
        in_place = [disk for disk in each.disks if disk.way is Way.IN_PLACE]
        lost = _lost(history, in_place, wanted.removed)
        with MergeStage(self.directory, each.heir) as stage, ExitStack() as stack:
            images = {
                disk.dev: self._image(disk, history, stage) for disk in each.disks if disk.way is not Way.IN_PLACE
            }
            for disk in in_place:
                self._check_before(disk, history)
                self._refuse_used(disk)
            _refuse_needed(history, each.heir, in_place, lost)
            claimed = [self.directory / backup_id for backup_id in (*lost, each.heir)]
            _allow_files(len(claimed) + max(len(disk.layers) for disk in in_place))
            stack.enter_context(merge_stage.claim(claimed, stop=self.stop))
            stack.enter_context(self._marked(lost, [self._path(disk.layers[-1], disk.dev) for disk in in_place]))
            for disk in in_place:
                images[disk.dev] = self._image(disk, history, stage)
            self._publish(each, images, history, stage, None)

    @contextmanager
    def _marked(self, lost: Collection[str], paths: Sequence[Path]) -> Iterator[None]:
        """Record that these backups cannot be restored any more, unless the block fails before it has written.

        ``paths``: the images that are written. Raises BusyError if it had written; the merge has to be finished then.
        """
        with storage_errors(f"read {self.directory}"):
            before = [_change(path) for path in paths]
        marked = self.written.in_place
        self.written.set_in_place({*marked, *lost})
        try:
            yield
        except BaseException as err:
            with storage_errors(f"read {self.directory}"):
                is_same = not self.is_resumed and [_change(path) for path in paths] == before
            if is_same:
                self.written.set_in_place(marked)
            elif isinstance(err, BusyError):
                raise BusyError(
                    f"{err} The merge into {', '.join(lost)} had begun, and these cannot be restored any more: 'vbackup"
                    " recover' finishes it."
                ) from err
            raise

    def _refuse_used(self, disk: DiskMerge) -> None:
        """Raise BusyError if another process has the image open; the daemon of a dead run may still be closing it."""
        deadline = time.monotonic() + (_CLOSING_S if self.is_resumed else 0.0)
        while True:
            try:
                images_merge.refuse_used(self._path(disk.layers[-1], disk.dev))
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                self.stop.check()
                time.sleep(readers.TICK_S)
            else:
                return

    def _publish(
        self,
        each: Merge,
        images: Mapping[str, tuple[BlocksRecord, int]],
        history: History,
        stage: MergeStage,
        patience: Patience | None,
    ) -> None:
        backup = merging.merged_backup(history.get(each.heir), images, each.disks, history)
        stage.publish(manifest.dump(backup), exchanges=self._exchanges, stop=self.stop, patience=patience)
        others = ", ".join(sorted(_below(each)))
        self.reporter.step(f"Backup {each.heir} has taken over what it needs of {others}.")

    def _path(self, backup_id: str, dev: str) -> Path:
        return self.directory / backup_id / f"{dev}.qcow2"

    def _check_before(self, disk: DiskMerge, history: History) -> None:
        """Read what will be merged, before anything is written into an image that is in use."""
        with self._layers(disk, history) as layers:
            for layer in layers[:-1]:
                merged_list.check_image(disk.dev, layer, check=self.stop.check)

    def _image(self, disk: DiskMerge, history: History, stage: MergeStage) -> tuple[BlocksRecord, int]:
        """Make the new image and its list in the stage; return what the manifest records of them."""
        target = stage.path / f"{disk.dev}.qcow2"
        with self._layers(disk, history) as layers:
            self._begin(disk, layers[-1].path, target)
            blocks = joining.join(
                disk.dev,
                layers,
                target,
                scratch=stage.path / f"{_TEMPORARY}{disk.dev}",
                is_published=disk.way is Way.IN_PLACE,
                is_whole=disk.way is Way.COPY or self.is_resumed,  # what a dead run wrote is not trusted
                speed_bytes_s=self.speed_bytes_s,
                reporter=self.reporter,
                stop=self.stop,
            )
            with storage_errors(f"write {stage.path}"):
                for temporary in stage.path.glob(f"{_TEMPORARY}*"):
                    temporary.unlink()
                return blocks, target.stat().st_size

    def _begin(self, disk: DiskMerge, lowest: Path, target: Path) -> None:
        """Make the image into which the others are committed."""
        size_bytes = lowest.stat().st_size

        def progress(done_bytes: int) -> None:
            self.reporter.progress(disk.dev, Phase.COPY, done_bytes, size_bytes)

        with storage_errors(f"write {target}"):
            if disk.way is Way.REFLINK:
                filesystem.clone(lowest, target)
            elif disk.way is Way.IN_PLACE:
                os.link(lowest, target)
            else:
                filesystem.copy(lowest, target, check=self.stop.check, progress=progress)

    @contextmanager
    def _layers(self, disk: DiskMerge, history: History) -> Iterator[list[Layer]]:
        """Yield the images and their lists, the newest first; headers, lists and tables are checked.

        Raises ChainError, StorageError.
        """
        links = history.links(disk.layers[0], disk.dev)[: len(disk.layers)]
        layers = []
        readers.allow_files(len(links))
        with ExitStack() as stack:
            for link in links:
                path = self._path(link.backup.id, disk.dev)
                verify.check_header(path, link)
                is_changed = self.is_resumed and disk.way is Way.IN_PLACE and link is links[-1]
                listed = self._list(link, path, is_changed=is_changed)
                stack.callback(listed.close)
                layers.append(Layer(path, link.backup.id, listed))
            yield layers

    def _list(self, link: Link, path: Path, *, is_changed: bool) -> BlockList:
        """Open the list of an image that is as it was recorded; one of a backup without lists is made.

        ``is_changed``: an interrupted run has written into the image.
        """
        if link.image.blocks is not None:
            if not is_changed:
                with Qcow2Layer(path) as image:
                    verify.check_structure(image, link)
            return verify.opened_list(path, link)
        if files.digest(path, check=self.stop.check) != link.image.digest:
            raise ChainError(
                f"Disk {link.image.dev}: the image {path} of backup {link.backup.id} was altered or is damaged: its"
                " digest differs from the recorded one. Nothing was merged with it; restore the file from a copy of the"
                " repository."
            )
        temporary = self.directory / f"{merge_journal.PROBE}{os.getpid()}.{link.backup.id}.{link.image.dev}"
        try:
            block_scan.make(path, temporary, algorithm=block_list.best_algorithm(), check=self.stop.check)
            return BlockList.open(temporary)
        finally:
            temporary.unlink(missing_ok=True)


def _below(each: Merge) -> set[str]:
    return {backup_id for disk in each.disks for backup_id in disk.layers[1:]}


def _lost(history: History, disks: Sequence[DiskMerge], removed: Collection[str]) -> list[str]:
    """Return the backups that need an image that is written into."""
    written = {(disk.layers[-1], disk.dev) for disk in disks}
    lost = []
    for backup in (*history.backups, *history.merging):
        if backup.id in removed and any(
            (link.backup.id, image.dev) in written
            for image in backup.disks
            for link in _links(history, backup.id, image)
        ):
            lost.append(backup.id)
    return lost


def _allow_files(count: int) -> None:
    """Let this process have these files open, and some more. Raises StorageError if it may not."""
    limit = readers.allow_files(count)
    if limit is not None and limit < count + _FILES:
        raise StorageError(
            f"A merge in place of so long a chain needs {count + _FILES} open files at a time, and this process may"
            f" have {limit}. Nothing was written; raise the limit (ulimit -Hn), remove fewer backups at a time, or use"
            " --consolidate copy."
        )


def _refuse_needed(history: History, heir: str, disks: Sequence[DiskMerge], lost: Collection[str]) -> None:
    """Raise BusyError if others than the heir, and what depends on it, need an image that will be written into.

    The plan has given them theirs before, but a merge is put off if its backup is in use.
    """
    for backup in (*history.backups, *history.merging):
        if backup.id == heir or backup.id in lost:
            continue
        for image in backup.disks:
            chain = [link.backup.id for link in history.present(backup.id, image.dev)]
            for disk in disks:
                written = disk.layers[-1]
                if disk.dev == image.dev and written in chain and heir not in chain:
                    raise BusyError(
                        f"Backup {backup.id} still needs the image of disk {disk.dev} of {written}, because its own"
                        " merge was put off. Run the same command again."
                    )


def _links(history: History, backup_id: str, image: DiskImage) -> Sequence[Link]:
    try:
        return history.links(backup_id, image.dev)
    except ChainError:
        return ()  # it cannot be restored anyway


def _change(path: Path) -> tuple[int, int, int]:
    """Return what every write into a file changes. A new name changes the time of the inode, but not this."""
    status = path.lstat()
    return status.st_mtime_ns, status.st_size, status.st_blocks
