"""Keep a standby of a domain warm at the libvirt of another host: ``vbackup replicate``.

The changes of a backup are applied to the stopped images there: by writing only what differs
(vbackup.operations.rollback, which knows from the standby's bitmaps what it is like), or by a new image of a disk where
that cannot be known. New images are complete and checked before anything of the standby changes. From then until all is
as in the backup the standby's definition cannot be started (vbackup.domain.standby_xml), whichever process dies, and
the next run, of this or a later backup, repairs it. So a standby is always as at one backup, or says that it is not.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from vbackup.domain import defining, domain_xml, standby_xml
from vbackup.domain.host import Host
from vbackup.domain.standby_xml import Mark, State
from vbackup.errors import UnsuitableError, UsageError, VbackupError, domain_argument
from vbackup.images.destination import Destination
from vbackup.model import Backup, ImageFormat
from vbackup.operations import restore, restored_machine, standby
from vbackup.operations.linked_standby import LinkedFiles
from vbackup.operations.restore import RestoreRequest
from vbackup.operations.restored_domain import DefineRequest
from vbackup.operations.rollback import RollbackRequest, RolledBack
from vbackup.operations.standby import Standby
from vbackup.operations.standby_files import Files, NewImage, StandbyFiles
from vbackup.remote import address
from vbackup.remote.link import Link
from vbackup.report import Reporter
from vbackup.repository import chosen, standbys
from vbackup.repository.choice import Wanted
from vbackup.repository.chosen import Chosen
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.repository.standbys import Record
from vbackup.stop import Stop


@dataclass(frozen=True)
class ReplicateRequest:
    """The options of ``vbackup replicate``."""

    domain: str  #: name or UUID
    to: str  #: URI of the libvirt that has the standby
    directory: Path | None = None  #: of its images; None: where they are
    backup_id: str | None = None  #: None: the newest
    host: str | None = None  #: only backups of the host with this name or machine id
    exclusive: bool = False  #: no other host uses these images
    speed_bytes_s: int | None = None  #: of each disk
    wait_lock_s: float = 0.0  #: for another vbackup that works on the domain


@dataclass(frozen=True)
class Replicated:
    """A standby that is as at a backup."""

    backup: Backup
    uri: str
    directory: Path
    before: str | None  #: id of the backup that it was as before; None if it is new, or was half applied
    disks: tuple[RolledBack, ...]
    new_images: tuple[NewImage, ...]
    is_redefined: bool  #: its definition was made from that of the backup

    @property
    def written_bytes(self) -> int:
        """What was written, in bytes."""
        rolled = sum(one.written_bytes for one in self.disks)
        return rolled + sum(one.written_bytes for one in self.new_images)


def run(request: ReplicateRequest, *, host: Host, repository: Repository, reporter: Reporter, stop: Stop) -> Replicated:
    """Bring a standby to a backup, or make it, and return what was done. ``host`` is that of ``request.to``.

    Raises DomainNotFoundError, UnsuitableError (the standby runs or has taken over, the domain there is another one,
    or the host is another one), UsageError (of the directory), ChainError, DamagedError, StorageError, NoSpaceError,
    BusyError, AmbiguousHostError, PartialBackupError, InterruptedBySignalError, and what libvirt's calls raise. The
    standby is as it was then, unless a warning says that it is half applied: the same call repairs it.
    """
    uuid = repository.find(request.domain)
    wait = LockWait(request.wait_lock_s, reporter, stop)
    with (
        repository.lock(uuid, wait=wait),
        chosen.held(repository, uuid, Wanted(request.backup_id, host=request.host), stop=stop) as point,
        link_to(request.to, host, stop) as link,
    ):
        found = standby.find(host, uuid, repository)
        if found is not None and found.mark.state is State.ACTIVE:
            raise UnsuitableError(
                f"The standby {found.handle.name} at {host.real_uri} has taken over, and what its guest has written"
                f" would be lost. '{_failback(found.handle.name, request)}' brings it back to the original{_ORIGINAL}."
            )
        if found is not None:
            standby.refuse_running(found)
        _refuse_pending(request, point, repository)
        return apply(request, point, found, host=host, repository=repository, reporter=reporter, stop=stop, link=link)


def link_to(uri: str, host: Host, stop: Stop) -> AbstractContextManager[Link | None]:
    """Return the link to the host of the standby; None if that is this host. Raises UnsuitableError, UsageError."""
    if host.is_local:
        return nullcontext()
    place = address.parse(uri)
    if place is None:
        raise UnsuitableError(
            f"{uri} is another host, and no data can come to it through this connection: use a URI such as"
            " qemu+ssh://root@HOST/system."
        )
    return Link(place, check=stop.check)


def apply(
    request: ReplicateRequest,
    point: Chosen,
    found: Standby | None,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    link: Link | None = None,
) -> Replicated:
    """Bring a standby, whatever its state, to a backup. The caller has the domain's lock. As ``run``.

    ``link``: to the host of the standby; None: it is this one.
    """
    record = standbys.find(repository.path / point.backup.domain_uuid, request.to)
    where = _directory(request, point, found, record)
    these: StandbyFiles
    if link is None:
        repository.refuse_inside(where)
        these = Files(point, where, repository, reporter, stop, request.speed_bytes_s)
    else:
        these = LinkedFiles(link, point, where, repository, reporter, stop)
    return _Work(request, these, found, record, host).run()


def _refuse_pending(request: ReplicateRequest, point: Chosen, repository: Repository) -> None:
    """Raise UnsuitableError if what the standby has still has to go to the original."""
    record = standbys.find(repository.path / point.backup.domain_uuid, request.to)
    pending = None if record is None else record.failback
    if pending not in (None, point.backup.id):
        raise UnsuitableError(
            f"A failback to backup {pending} has not ended: the original may be without what the standby's guest has"
            f" written. Run '{_failback(point.backup.domain_name, request)}' again first{_ORIGINAL}."
        )


def _failback(name: str, request: ReplicateRequest) -> str:
    """Return the command that brings the domain back, for people."""
    return f"vbackup failback {domain_argument(name)} --from {shlex.quote(request.to)}"


#: What is said after it: where the original is, a replicate does not know.
_ORIGINAL = " (with -c for its libvirt, unless that is the default one)"


def _directory(request: ReplicateRequest, point: Chosen, found: Standby | None, record: Record | None) -> Path:
    """Return where the images are, or will be. Raises UsageError."""
    asked = None if request.directory is None else request.directory.absolute()
    known = found.directory if found is not None else None if record is None else record.directory
    if known is None and asked is None:
        raise UsageError(
            f"{request.to} has no standby of domain {point.backup.domain_name} yet: give the directory for its images"
            " with --directory."
        )
    if known is not None and asked not in (None, known):
        raise UsageError(f"The images of the standby are in {known}: leave --directory out.")
    return known or asked or Path()


class _Work:
    """One run."""

    def __init__(
        self, request: ReplicateRequest, these: StandbyFiles, found: Standby | None, record: Record | None, host: Host
    ) -> None:
        self._request, self._files, self._found, self._record, self._host = request, these, found, record, host
        self._point, self._repository, self._reporter = these.point, these.repository, these.reporter
        self._backup = these.point.backup
        self._handle = None if found is None else found.handle
        self._is_redefined = True

    def run(self) -> Replicated:
        """Do it."""
        if self._found is None and self._record is None:
            self._files.refuse_existing()
        self._files.refuse_unfit()
        restored_machine.check(self._files.machine, self._backup, repository=self._repository, stop=self._files.stop)
        before = None if self._found is None else self._found.definition()
        text = self._definition()
        how = RollbackRequest(self._request.exclusive, speed_bytes_s=self._request.speed_bytes_s, of_standby=True)
        with self._recorded(), self._files.opened(self._handle, text, how) as ready:
            reasons = dict.fromkeys(self._point.chains, "there is none yet") if ready is None else ready.reasons
            self._refuse_elsewhere(text, list(reasons))
            made = self._files.write_images(ready, reasons)
            try:
                self._files.stop.check()
                self._define(standby_xml.half_applied(text, self._backup.id))
            except BaseException:
                self._files.discard(list(reasons))
                raise
            with self._half_applied():
                self._files.begin_images(ready, reasons, text)
                rolled = [] if ready is None else ready.run()
        whole = [NewImage(one.dev, reasons[one.dev], one.written_bytes) for one in rolled if one.dev in reasons]
        with self._half_applied():
            self._ended(text, made)
            self._remove_others(text if before is None else before, text)
        return self._done([one for one in rolled if one.dev not in reasons], [*made, *whole])

    def _ended(self, text: str, new_images: Sequence[NewImage]) -> None:
        """Put all in place, and let the standby be ready."""
        self._files.put_images([one.dev for one in new_images])
        self._files.put_machine(text, self._host)
        self._define(standby_xml.ready(text, self._backup.id))
        if self._handle is not None and self._handle.autostart():
            defining.set_autostart(self._handle, is_on=False)  # a failover had set it
        directory = self._repository.path / self._backup.domain_uuid
        record = standbys.find(directory, self._request.to) or Record(self._request.to, self._files.directory)
        standbys.put(
            directory,
            replace(record, backup=self._backup.id, applied=datetime.now(timezone.utc), taken_over=None),
        )

    def _remove_others(self, before: str, text: str) -> None:
        """Remove the images of disks that the standby had, and the domain has not any more."""
        had = {disk.dev for disk in domain_xml.parse(before).disks if disk.path == str(self._files.image(disk.dev))}
        self._files.remove_images(sorted(had - {disk.dev for disk in domain_xml.parse(text).disks}))

    def _done(self, rolled: Sequence[RolledBack], new_images: Sequence[NewImage]) -> Replicated:
        mark = None if self._found is None else self._found.mark
        return Replicated(
            self._backup,
            self._request.to,
            self._files.directory,
            None if mark is None or mark.state is State.HALF_APPLIED else mark.backup,
            tuple(rolled),
            tuple(new_images),
            self._is_redefined,
        )

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Record a new standby before its first file; if the block fails before libvirt knows it, nothing is left."""
        directory, where = self._repository.path / self._backup.domain_uuid, self._files.directory
        is_new = self._found is None and self._record is None
        if is_new:
            standbys.put(directory, Record(self._request.to, where))
        is_made = False
        try:
            is_made = self._files.make_directory()
            yield
        except BaseException:
            with suppress(VbackupError):
                if is_new and standby.find(self._host, self._backup.domain_uuid, self._repository) is None:
                    standbys.remove(directory, self._request.to)
                    if is_made:
                        self._files.remove_directory()
            raise

    @contextmanager
    def _half_applied(self) -> Iterator[None]:
        """Say that the standby is half applied if the block fails."""
        try:
            yield
        except BaseException:
            self._reporter.warning(
                f"The standby {self._backup.domain_name} at {self._host.real_uri} is half applied: libvirt does not"
                " start it. Run the same command again, which repairs it."
            )
            raise

    # the definition

    def _define(self, text: str) -> None:
        self._handle = standby.define(self._host, text, self._handle)

    def _definition(self) -> str:
        """Return the XML of the standby, which libvirt would define. Raises what restored_domain.prepare raises."""
        made, whole = self._from_backup()
        if self._found is not None and self._found.mark.definition == whole.definition:
            self._is_redefined = False
            return self._found.definition()  # which somebody may have fitted to the host
        defining.check(self._host, made)
        return made

    def _from_backup(self) -> tuple[str, Mark]:
        """Return the definition that the backup gives the standby, with its mark."""
        these, choice = self._files, self._point.choice
        request = RestoreRequest(
            self._backup.domain_uuid, these.directory, define=DefineRequest(), uri=self._host.real_uri
        )
        restored = restore.definition_for(
            request,
            choice,
            these.machine,
            [Destination(dev, these.image(dev), ImageFormat.QCOW2) for dev in self._point.chains],
            repository=self._repository,
            reporter=self._reporter,
            stop=these.stop,
        )
        text = these.definition(restored, self._host, is_new=self._found is None)
        mark = Mark(State.READY, self._repository.id, self._backup.id, str(these.directory))
        return standby_xml.made(text, mark)

    def _refuse_elsewhere(self, text: str, devs: Sequence[str]) -> None:
        """Raise UnsuitableError if the definition names other images than those that are made of these disks."""
        paths = {disk.dev: disk.path for disk in domain_xml.parse(text).disks}
        for dev in devs:
            if paths.get(dev) != str(self._files.image(dev)):
                edit = self._host.command(f"virsh edit {domain_argument(self._backup.domain_name)}")
                raise UnsuitableError(
                    f"Disk {dev} of the standby {self._backup.domain_name} needs a new image, but its definition does"
                    f" not name {self._files.image(dev)}: change that with '{edit}', or undefine the standby and make"
                    " another one."
                )
