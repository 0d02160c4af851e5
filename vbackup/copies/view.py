"""The points of a target as a repository, in a directory of this machine: for commands that read one.

    CACHE/<target id>/manifests/            the ledger: manifests that were read before
    CACHE/<target id>/run-<token>/          the repository of one command, which is removed when that ends

It has all manifests and no image at first: a list and the record of a point need no more. ``bring`` fetches the files
that a restore of one point needs, whole, and no others; ``show`` only what is read of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vbackup.copies import download, parts, points
from vbackup.copies import point as of_points
from vbackup.copies import target as targets
from vbackup.copies.download import Means, Wanted
from vbackup.copies.ledger import Known, Ledger
from vbackup.copies.parts import Parts
from vbackup.copies.point import Point
from vbackup.copies.points import There
from vbackup.copies.target import MANIFEST, Target
from vbackup.errors import ChainError, IdentityError
from vbackup.files import make_private, storage_errors
from vbackup.images import scratch
from vbackup.model import Backup, HostIdentity
from vbackup.report import Reporter
from vbackup.repository import choice, readers
from vbackup.repository.choice import Wanted as WantedPoint
from vbackup.repository.history import Link
from vbackup.repository.repository import COPIES, MARKER, VERSION, Repository
from vbackup.stop import Stop
from vbackup.stores.sealed import Keys
from vbackup.stores.store import Store

#: Descriptors of an image that is served.
_FILES = 3
_MANIFESTS, _RUN = "manifests", "run-"
_NO_KEYS = Keys()


@dataclass(frozen=True)
class View:
    """What a target has, as a repository that is there until the end of the block."""

    known: Known
    repository: Repository
    there: Mapping[str, There]  #: by the UUID of the domain
    reporter: Reporter
    stop: Stop
    stack: ExitStack  #: what ends with the block

    @property
    def target(self) -> Target:
        """The target."""
        return self.known.target

    def bring(self, uuid: str, wanted: WantedPoint, *, bytes_s: int | None = None) -> int:
        """Fetch what a restore or a mount of a point needs; return the number of bytes that were fetched.

        Raises what vbackup.repository.choice.choose raises, ChainError if an object is missing or damaged,
        StorageError, NoSpaceError, InterruptedBySignalError.
        """
        self.repository.has_images = False  # or what is not brought yet would count as missing
        with storage_errors(f"write to {self.repository.path}"):
            for path in self.repository.served:  # of which ``show`` has brought a part
                path.unlink(missing_ok=True)
        self.repository.served.clear()
        catalogue = self.repository.catalogue(uuid)
        chosen = choice.choose(catalogue, wanted)
        objects = self._files(uuid, chosen.backup.id)
        for dev, backup in chosen.disks.items():
            for link in catalogue.history.links(backup.id, dev):
                objects += self._image(uuid, link)
        fetched = download.fetch(list(dict.fromkeys(objects)), self.means(bytes_s=bytes_s))
        self.repository.has_images = True
        return fetched

    def show(self, uuid: str, wanted: WantedPoint) -> Parts:
        """Let the disks of a point be opened for reading (``OpenedPoint``); return what serves them.

        Small images are fetched whole, and of the others only what is read. A restore needs ``bring``. Raises as that.
        """
        self.repository.has_images = False
        catalogue = self.repository.catalogue(uuid)
        chosen = choice.choose(catalogue, wanted)
        links = [link for dev, backup in chosen.disks.items() for link in catalogue.history.links(backup.id, dev)]
        # Of each image that is served, a file, a connection of QEMU's and the lock of its backup are open.
        readers.allow_files(_FILES * (len(links) + len(self.repository.served)))
        images = [each for each in dict.fromkeys(self._image(uuid, link)[0] for link in links) if not _is_there(each)]
        small = [each for each in images if each.record.size_bytes <= parts.SMALL_BYTES]
        download.fetch(small, self.means())
        with ExitStack() as made:
            place = made.enter_context(scratch.directory(scratch.place_of_sockets()))
            served = Parts(self.target.store, place, reporter=self.reporter, check=self.stop.check)
            made.callback(served.close)
            served.add([each for each in images if each not in small], self.repository.served)
            self.stack.enter_context(made.pop_all())
        self.repository.has_images = True
        return served

    def means(self, *, bytes_s: int | None = None, parallel: int = download.PARALLEL_OBJECTS) -> Means:
        """Return what objects are fetched with."""
        return Means(self.target, self.reporter, self.stop, bytes_s, parallel)

    def point(self, uuid: str, backup_id: str) -> Point:
        """Return a point. Raises ChainError if there is none, or why its manifest cannot be read."""
        there = self.there.get(uuid, There({}, {}))
        if backup_id in there.unreadable:
            raise there.unreadable[backup_id]
        if backup_id not in there.points:
            raise ChainError(
                f"No backup {backup_id!r} of this domain at {self.target.name};"
                f" 'vbackup list DOMAIN{self.repository.source_option}' lists them."
            )
        return there.points[backup_id]

    def _files(self, uuid: str, backup_id: str) -> list[Wanted]:
        point = self.point(uuid, backup_id)
        return [self._wanted(point, name, None) for name in point.backup.digests]

    def _image(self, uuid: str, link: Link) -> list[Wanted]:
        point, image = self.point(uuid, link.backup.id), link.image
        names = [image.file] if image.blocks is None else [image.file, of_points.list_name(image)]
        return [self._wanted(point, name, image.dev) for name in names]

    def _wanted(self, point: Point, name: str, dev: str | None) -> Wanted:
        uuid, backup_id = point.backup.domain_uuid, point.backup.id
        path = self.repository.directory(uuid, backup_id) / name
        return Wanted(f"{uuid}/{backup_id}/{name}", point.objects[name], dev, path)


@contextmanager
def opened(
    store: Store,
    cache: Path,
    *,
    keys: Keys = _NO_KEYS,
    source: Path | None = None,
    reporter: Reporter,
    stop: Stop,
) -> Iterator[View]:
    """Yield what the target in a store has.

    ``cache``: a directory for this, which is made if necessary; ``keys``: of a target that is encrypted; ``source``: a
    repository from which points were copied, which knows their manifests. Raises StorageError if there is no target,
    IdentityError if it is encrypted and no manifest can be read, InterruptedBySignalError. If only some cannot be read,
    that is a warning.
    """
    target = targets.opened(store, keys)
    copied = None if source is None else Ledger(source / COPIES / target.id)
    known = Known(target, Ledger(cache / target.id / _MANIFESTS, other=copied))
    with _directory(cache / target.id) as path:
        there = {uuid: points.read(known, listed, stop=stop) for uuid, listed in targets.listings(target).items()}
        _refuse_sealed(there)
        with storage_errors(f"write to {path}"):
            marker = {"schema": "vbackup.repository/1", "version": VERSION, "id": target.repository_id}
            _write(path / MARKER, json.dumps(marker))
            repository = Repository(path, target.repository_id, has_images=False, target=target.name)
            for uuid, each in there.items():
                (path / uuid).mkdir(mode=0o700)
                for backup_id, point in each.points.items():
                    (path / uuid / backup_id).mkdir(mode=0o700)
                    _write(path / uuid / backup_id / MANIFEST, of_points.dump(point))
                remember(repository, uuid, (point.backup for point in each.points.values()))
                for backup_id, err in each.unreadable.items():
                    (path / uuid / backup_id).mkdir(mode=0o700)
                    reporter.warning(f"Backup {backup_id} at {target.name}: {err}")
        with ExitStack() as stack:
            yield View(known, repository, there, reporter, stop, stack)


def _is_there(each: Wanted) -> bool:
    return each.path is not None and each.path.exists()


def _refuse_sealed(there: Mapping[str, There]) -> None:
    """Raise IdentityError if that is why nothing can be read."""
    errors = [err for each in there.values() for err in each.unreadable.values() if isinstance(err, IdentityError)]
    if errors and not any(each.points for each in there.values()):
        raise errors[0]


def _write(path: Path, text: str) -> None:
    """Write a file that is only needed until the command ends."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)


def remember(repository: Repository, uuid: str, backups: Iterable[Backup]) -> None:
    """Record the names and hosts that a domain has had by its backups, oldest first. Raises StorageError."""
    previous: tuple[str, HostIdentity | None] | None = None
    for backup in backups:
        if (backup.domain_name, backup.host) != previous:
            previous = (backup.domain_name, backup.host)
            repository.remember_name(uuid, *previous)


@contextmanager
def _directory(parent: Path) -> Iterator[Path]:
    """Make a directory for the block. It is locked, so that others see that it is not the rest of a killed run."""
    with storage_errors(f"write to {parent}"):
        make_private(parent)  # who could put manifests there would decide what is restored
        for rest in parent.glob(f"{_RUN}*"):
            _remove_rest(rest)
        path = parent / f"{_RUN}{secrets.token_hex(6)}"
        path.mkdir(mode=0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a filesystem without locks; nothing is removed there while it is in use
            fcntl.flock(fd, fcntl.LOCK_SH)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)


def _remove_rest(path: Path) -> None:
    """Remove the directory of a run that is gone."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)
