"""The directory that holds the backups: find a domain, lock it, stage a new backup and commit it.

    REPO/vbackup.json                          format version, repository id
    REPO/<domain uuid>/domain.json             the names and hosts that the domain has had
    REPO/<domain uuid>/lock                    locked while a backup of the domain runs
    REPO/<domain uuid>/<backup id>/            manifest.json  domain.xml  nvram  tpm.tar  vda.qcow2 ...
    REPO/<domain uuid>/<backup id>.partial/    the stage of a running or interrupted backup; also has a journal
    REPO/<domain uuid>/merge.json              who merges backups of the domain now, or was interrupted
    REPO/<domain uuid>/.merge-<backup id>/     the stage of new images of a backup (vbackup.repository.merge_stage)

A backup exists once its directory has its final name: that rename is the commit. vbackup-repository(5) describes the
format. vbackup.repository.catalogue reads what was committed, vbackup.repository.manifest reads and writes manifests,
vbackup.repository.journal records what a running backup does in QEMU.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbackup import names
from vbackup.errors import AmbiguousNameError, DomainNotFoundError, StorageError
from vbackup.fields import Fields, parse_json
from vbackup.files import (
    MAX_FSYNCS,
    digest_of,
    fsync,
    is_directory,
    refuse_link,
    replace_text,
    storage_errors,
)
from vbackup.model import Backup, HostIdentity
from vbackup.names import Naming
from vbackup.repository import catalogue, liveness, lock, manifest
from vbackup.repository.catalogue import Catalogue, read_text
from vbackup.repository.journal import JOURNAL
from vbackup.repository.lock import LockWait

if TYPE_CHECKING:
    from vbackup.qemu.nbd_address import NbdAddress

VERSION = 1
MARKER = "vbackup.json"
PARTIAL = ".partial"
#: What was put away (vbackup.repository.quarantine), by domain.
QUARANTINE = "quarantine"
#: What is known of targets (vbackup.copies.ledger, vbackup.copies.staging), by their ids.
COPIES = "copies"
#: Prefix of files in a stage that are no part of the backup.
_SCRATCH = ".scratch-"


class Repository:
    """A repository whose marker file has been read or written.

    One that ``is_stage`` has no images: they were streamed (vbackup.operations.stream_backup), and only what the next
    backup starts from is kept.
    """

    def __init__(
        self,
        path: Path,
        repository_id: str,
        *,
        is_stage: bool = False,
        has_images: bool = True,
        former_ids: Iterable[str] = (),
        target: str | None = None,
    ) -> None:
        """``has_images``: False if images are elsewhere, and count as whole. ``former_ids``: before ``adopt``.

        ``target``: of copies, as users call it, if the directory only shows what that has.
        """
        self.path = path
        self.id = repository_id
        self.ids = (repository_id, *former_ids)  #: the id, and those that it has had
        self.is_stage = is_stage
        self.has_images = has_images and not is_stage
        #: The images of which the files are only a part, and the server that has all of each.
        self.served: dict[Path, NbdAddress] = {}
        self.place = os.fspath(path) if target is None else target  #: as users call it
        #: What a command needs to read this in the place of the repository: empty, or an option with a space before it.
        self.source_option = "" if target is None else f" --from {shlex.quote(target)}"
        self.naming = Naming(repository_id, names.place_of(os.fspath(path)))

    @classmethod
    def create(cls, path: Path, *, is_stage: bool = False) -> Repository:
        """Create a repository in a directory that is empty or does not exist. Raises StorageError."""
        with storage_errors(f"create a {'stage of streams' if is_stage else 'repository'} in {path}"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (path / MARKER).exists():
                raise StorageError(f"{path} is already a vbackup repository; nothing was changed.")
            if any(path.iterdir()):
                for_it = " with --stage" if is_stage else ""
                raise StorageError(f"{path} is not empty; give a new or empty directory{for_it}.")
            path.chmod(0o700)
            _refuse_without_locks(path)
            repository_id = names.new_repository_id()
            marker: dict[str, Any] = {"schema": "vbackup.repository/1", "version": VERSION, "id": repository_id}
            if is_stage:
                marker["stage"] = True
            replace_text(path / MARKER, json.dumps(marker, indent=2) + "\n")
        return cls(path.resolve(), repository_id, is_stage=is_stage)

    @classmethod
    def open(cls, path: Path, *, is_stage: bool = False) -> Repository:
        """Open an existing repository, or with ``is_stage`` the stage of streams.

        Raises StorageError if there is none at this path, if it is the other of the two, or if its format is newer.
        """
        with storage_errors(f"read {path / MARKER}"):
            try:
                fields = Fields(parse_json(read_text(path / MARKER)), os.fspath(path / MARKER), StorageError)
            except (FileNotFoundError, NotADirectoryError):
                raise StorageError(
                    f"{path} is not a stage of streams; 'vbackup stream backup' makes it."
                    if is_stage
                    else f"{path} is not a vbackup repository; is the disk mounted? 'vbackup init' creates a new one."
                ) from None
            except (ValueError, RecursionError) as err:
                raise StorageError(
                    f"{path / MARKER} is damaged ({err}); restore it from a copy of the repository."
                ) from err
        version = fields.integer("version")
        if version > VERSION:
            raise StorageError(
                f"{path} has repository format {version}, but this vbackup only knows {VERSION}; use a newer vbackup."
            )
        if (fields.optional_text("schema") or "").startswith("vbackup.target/"):
            raise StorageError(
                f"{path} is a target of copies and not a repository: give it with --from, or make a repository of it"
                " with 'vbackup fetch'."
            )
        repository_id = fields.text("id")
        if not names.REPOSITORY_ID.fullmatch(repository_id):
            raise StorageError(f"{path / MARKER} has the id {repository_id[:50]!r}, which vbackup never assigns.")
        if is_stage != ("stage" in fields and fields.boolean("stage")):
            raise StorageError(
                f"{path} is a repository and not a stage of streams: give another directory with --stage."
                if is_stage
                else f"{path} is a stage of streams: its backups were sent to where 'vbackup stream' wrote to, and only"
                " 'vbackup stream' and 'vbackup engine' work with it."
            )
        former = fields.strings("former_ids") if "former_ids" in fields else ()
        return cls(path.resolve(), repository_id, is_stage=is_stage, former_ids=sorted(former))

    # reading

    def uuids(self) -> list[str]:
        """Return the UUIDs of the domains that have backups, sorted for display."""
        with storage_errors(f"read {self.path}"):
            return sorted(
                entry.name for entry in self.path.iterdir() if names.UUID.fullmatch(entry.name) and is_directory(entry)
            )

    def linked(self) -> list[str]:
        """Return the UUIDs that are symbolic links; every command refuses them (vbackup.files.refuse_link)."""
        with storage_errors(f"read {self.path}"):
            entries = [entry for entry in self.path.iterdir() if names.UUID.fullmatch(entry.name)]
            return sorted(entry.name for entry in entries if entry.is_symlink())

    def find(self, domain: str) -> str:
        """Return the UUID of a domain, given by UUID or name; current names come before former ones.

        Raises DomainNotFoundError, also if the name could mean several domains.
        """
        bearers = self.find_all(domain)
        matches = [uuid for uuid in bearers if self.name_of(uuid) == domain] or bearers
        if len(matches) > 1:
            raise AmbiguousNameError(domain, self.place, matches, source_option=self.source_option)
        return matches[0]

    def find_all(self, domain: str) -> list[str]:
        """Return the UUIDs of all domains that have, or have had, this name; or the one with this UUID.

        Raises DomainNotFoundError if there is none, StorageError if the directory of one is a symbolic link.
        """
        bearers = self._bearers(domain)
        for uuid in bearers:
            refuse_link(self.path / uuid)
        return bearers

    def _bearers(self, domain: str) -> list[str]:
        uuids = [*self.uuids(), *self.linked()]
        if domain.lower() in uuids:
            return [domain.lower()]
        names_of = {uuid: catalogue.domain_names(self.path / uuid) for uuid in uuids}
        bearers = [uuid for uuid, had in names_of.items() if domain in had]
        if not bearers:
            known = itertools.chain.from_iterable(names_of.values())
            option = self.source_option or f" -r {shlex.quote(self.place)}"
            raise DomainNotFoundError(
                domain,
                f"in {self.place}{names.closest(domain, known)}",
                f"'vbackup list{option}' lists them"
                if not self.is_stage
                else "none of its backups was ever sent from this stage",
            )
        return bearers

    def name_of(self, uuid: str) -> str:
        """Return the name that the domain had last, its UUID if none is recorded."""
        return catalogue.domain_names(self.path / uuid)[-1]

    def catalogue(self, uuid: str, *, with_chains: bool = True) -> Catalogue:
        """Return the domain's backups (vbackup.repository.catalogue)."""
        return catalogue.read(
            self.path / uuid,
            uuid,
            with_chains=with_chains,
            has_images=self.has_images,
            source_option=self.source_option,
        )

    def refuse_inside(self, *paths: Path) -> None:
        """Raise StorageError if one of the paths, for something to write, is the repository or below it."""
        with storage_errors(f"read {self.path}"):
            own = self.path.resolve()
            inside = [path for path in paths if own in (path.resolve(), *path.resolve().parents)]
        if inside:
            raise StorageError(
                f"{inside[0]} is in the repository {self.path}, where only backups belong: nothing was written. Give"
                " another place."
            )

    def directory(self, uuid: str, backup_id: str) -> Path:
        """Return the path of a committed backup."""
        return self.path / uuid / backup_id

    # writing

    @contextmanager
    def lock(self, uuid: str, *, wait: LockWait | None = None, presume_dead: bool = False) -> Iterator[None]:
        """Lock the domain during the block, so that no other vbackup writes to its directory.

        Raises BusyError if another vbackup has the lock, or makes a backup of the domain without one that locks, at
        once or at the end of ``wait``; and InterruptedBySignalError if a signal ends the wait. ``presume_dead``: see
        vbackup.repository.liveness. The lock ends with its process, however that ends.
        """
        directory = self.path / uuid

        def check() -> None:
            self.refuse_live_writers(uuid, presume_dead=presume_dead)
            liveness.refuse_live_merger(directory, domain_uuid=uuid, presume_dead=presume_dead)

        with storage_errors(f"write to {self.path}"):
            name = (wait.name if wait is not None else None) or self.name_of(uuid)
            if wait is None:
                fd = lock.take(directory, name, check=check)
            else:
                fd = lock.wait_for(directory, name, wait, check=check)
        try:
            yield
        finally:
            # A first backup that failed leaves nothing. The file of the lock has to be removed last and while the lock
            # is held, or another process could lock it in between. The directory is removed only when nothing in it is
            # open: NFS and SMB keep a removed file in it until it is closed. rmdir spares what another process put
            # there.
            is_unused = False
            with suppress(OSError):
                is_unused = not any(entry.is_dir() for entry in directory.iterdir()) and not self._is_remembered(uuid)
                if is_unused:
                    for entry in sorted(directory.iterdir(), key=lambda entry: entry.name == lock.LOCK):
                        entry.unlink()
            lock.release(fd)
            if is_unused:
                with suppress(OSError):
                    directory.rmdir()

    def _is_remembered(self, uuid: str) -> bool:
        """Return True if backups of the domain were put away: then what its directory says of it is still needed."""
        has_files = any(entry.name != lock.LOCK for entry in (self.path / uuid).iterdir())
        return has_files and (self.path / QUARANTINE / uuid).is_dir()

    def locks(self, uuid: str | None = None) -> bool:
        """Return False if the filesystem does not lock files, in the directory of a domain or of the repository."""
        path = self.path / MARKER if uuid is None else self.path / uuid / "lock"
        with storage_errors(f"lock {path}"):
            return lock.works(path)

    def refuse_live_writers(self, uuid: str, *, but: str | None = None, presume_dead: bool = False) -> None:
        """Raise BusyError if another process makes a backup of the domain, other than the one with the id ``but``."""
        for backup_id in self.unfinished(uuid):
            if backup_id != but and names.BACKUP_ID.fullmatch(backup_id):
                with storage_errors(f"read {self.path}"):
                    liveness.refuse_live_writer(
                        self.stage_path(uuid, backup_id),
                        backup_id=backup_id,
                        domain_uuid=uuid,
                        presume_dead=presume_dead,
                    )

    def adopt(self) -> Repository:
        """Give a copy of a repository a new id, and return it: it no longer has a claim to anything in QEMU.

        Raises StorageError. The caller has the locks of all domains.
        """
        with storage_errors(f"write {self.path / MARKER}"):
            marker = parse_json(read_text(self.path / MARKER))
            former = [each for each in marker.get("former_ids") or [] if isinstance(each, str)]
            marker = {**marker, "id": names.new_repository_id(), "former_ids": [*former, self.id]}
            replace_text(self.path / MARKER, json.dumps(marker, indent=2) + "\n")
        return Repository(self.path, marker["id"], former_ids=marker["former_ids"])

    def taken_ids(self, uuid: str) -> frozenset[str]:
        """Return the names of all entries of the domain's directory: a new backup cannot have such an id.

        They include the ids of backups whose manifest cannot be read.
        """
        with storage_errors(f"read {self.path / uuid}"):
            return frozenset(entry.name for entry in (self.path / uuid).iterdir())

    def unfinished(self, uuid: str) -> list[str]:
        """Return the ids of running and interrupted backups, oldest first: an id begins with its time."""
        try:
            entries = sorted(entry.name for entry in (self.path / uuid).iterdir() if entry.name.endswith(PARTIAL))
        except FileNotFoundError:
            return []
        return [name[: -len(PARTIAL)] for name in entries]

    def running(self, uuid: str) -> list[str]:
        """Return those of the unfinished backups whose process seems to be at work, without disturbing it."""
        return [
            backup_id
            for backup_id in self.unfinished(uuid)
            if names.BACKUP_ID.fullmatch(backup_id)
            and liveness.seems_at_work(self.stage_path(uuid, backup_id), backup_id=backup_id, domain_uuid=uuid)
        ]

    def stage_path(self, uuid: str, backup_id: str) -> Path:
        """Return the path of a backup until its commit."""
        return self.path / uuid / (backup_id + PARTIAL)

    @contextmanager
    def stage(self, uuid: str, backup_id: str, *, existing: bool = False) -> Iterator[Stage]:
        """Yield the stage of a new backup, or the ``existing`` one of an interrupted backup; needs the domain's lock.

        Without a commit, or ``Stage.hold``, its directory is removed at the end of the block. Raises StorageError,
        NoSpaceError.
        """
        stage = Stage(self.stage_path(uuid, backup_id), self.directory(uuid, backup_id))
        if not existing:
            with storage_errors(f"write to {self.path}"):
                stage.path.mkdir(mode=0o700)
        try:
            yield stage
        finally:
            if not (stage.committed or stage.held):
                _remove(stage.path)

    def remember_name(self, uuid: str, name: str, host: HostIdentity | None = None) -> None:
        """Record the current name of the domain, and the host that it is on."""
        directory = self.path / uuid
        former = [other for other in catalogue.domain_names(directory) if other not in (name, uuid)]
        hosts = [other for other in catalogue.domain_hosts(directory) if other != host]
        hosts += [host] if host is not None else []
        document: dict[str, Any] = {"names": [*former, name]}
        if hosts:
            document["hosts"] = [manifest.host_document(other) for other in hosts]
        with storage_errors(f"write to {self.path}"):
            replace_text(directory / "domain.json", json.dumps(document, ensure_ascii=False) + "\n")


class Stage:
    """The directory of a backup until its commit."""

    def __init__(self, path: Path, final: Path) -> None:
        self.path = path
        self._final = final
        self.committed = False
        self.held = False

    def write(self, name: str, data: bytes) -> str:
        """Write a new file and return its digest."""
        with storage_errors(f"write {self.path / name}"):
            fd = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
        return digest_of(data)

    def write_pieces(self, name: str, pieces: Iterable[bytes], *, check: Callable[[], None]) -> tuple[str, int]:
        """Write a new file piece by piece, and return its digest and its size in bytes.

        ``check`` is called before each piece. If that or ``pieces`` raises, nothing of the file is left.
        """
        path, sha256, size_bytes = self.path / name, hashlib.sha256(), 0
        with storage_errors(f"write {path}"):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(fd, "wb") as file:
                    for piece in pieces:
                        check()
                        sha256.update(piece)
                        size_bytes += file.write(piece)
            except BaseException:
                path.unlink()
                raise
        return f"sha256:{sha256.hexdigest()}", size_bytes

    def share(self, name: str, earlier: Path) -> None:
        """Let a file that was written be a further name of one of an earlier backup, which has the same content.

        It stays as it was where the filesystem has no hard links, or none for this file.
        """
        path, link = self.path / name, self.path / f".shared-{name}"
        with suppress(OSError):
            os.link(earlier, link, follow_symlinks=False)
            link.replace(path)
        with suppress(OSError):
            link.unlink()

    def scratch(self, name: str) -> Path:
        """Make an empty file for what QEMU needs while it copies, and return its path; a commit removes it.

        It is not removed while QEMU has it open: where that is allowed at all, SMB and NFS keep it in the directory.
        Raises StorageError, NoSpaceError.
        """
        path = self.path / f"{_SCRATCH}{name}"
        with storage_errors(f"write {path}"):
            path.touch(mode=0o600, exist_ok=False)
        return path

    def commit(self, backup: Backup, *, ready: Callable[[], None] = lambda: None) -> None:
        """Write the manifest, sync everything to disk, and rename the directory to the backup's final name.

        ``ready`` is called when everything except the rename is done; if it raises, the backup is not committed. When
        it returns, no file in the stage may be open any more: an SMB server does not rename the directory otherwise.
        """
        self.complete(backup)
        ready()
        self.publish()

    def complete(self, backup: Backup) -> None:
        """Write the manifest, and sync everything to disk: all of a commit but the rename."""
        with storage_errors(f"write to {self.path}"):
            (self.path / "manifest.json").unlink(missing_ok=True)  # of a run that was killed in this function
            for path in self.path.glob(f"{_SCRATCH}*"):
                path.unlink()
        self.write("manifest.json", manifest.dump(backup).encode())
        with storage_errors(f"write to {self._final.parent}"):
            from concurrent.futures import ThreadPoolExecutor  # costs start-up time; reading does not need it

            with ThreadPoolExecutor(max_workers=MAX_FSYNCS) as pool:
                for _ in pool.map(fsync, self.path.iterdir()):
                    pass
            fsync(self.path)

    def publish(self) -> None:
        """Rename the directory, which is complete, to the backup's final name: that is the commit.

        The journal is removed last, because until then another vbackup can finish an interrupted commit.
        """
        with storage_errors(f"write to {self._final.parent}"):
            self.path.rename(self._final)
            self.committed = True
            fsync(self._final.parent)
            (self._final / JOURNAL).unlink(missing_ok=True)

    def hold(self) -> None:
        """Leave the directory as it is at the end of the block, for another process to commit or to undo."""
        self.held = True


def _refuse_without_locks(path: Path) -> None:
    """Raise StorageError if files cannot be locked in that directory; a lock that does nothing is not refused."""
    probe = path / f".{MARKER}.{os.getpid()}"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        lock.works(probe)
    except OSError as err:
        if err.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise StorageError(
            f"The filesystem of {path} cannot lock files (flock: {err.strerror}), so two backups of a domain could"
            " damage each other; put the repository on another filesystem, or mount this one with locks."
        ) from err
    finally:
        probe.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a stage, or what was put in its place. What cannot be removed stays and takes up space.

    Whatever the filesystem says: the error that ended the backup is the one to report.
    """
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            _remove_tree(path, ignore_errors=True)


def _remove_tree(path: Path, *, ignore_errors: bool = False) -> None:
    import shutil  # imports all compression modules; a backup that succeeds does not need it

    shutil.rmtree(path, ignore_errors=ignore_errors)
