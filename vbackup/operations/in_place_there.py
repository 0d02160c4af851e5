"""Restore in place the disks of a domain on another host, through the link to it (vbackup.operations.in_place_host).

The storage daemon that has the images to roll back runs there. One here reads the repository, and its jobs write
through NBD (vbackup.engine.rollback_reach). New images are written as a restore to another host writes them, in a
directory that goes with the link; each gets its name beside the old one when all are complete and compared. If the link
is lost before that, the helper removes them; later, the journal in the repository has what the next run ends.
"""

from __future__ import annotations

import itertools
import logging
import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from vbackup.domain import source, tpm
from vbackup.domain.access import Access
from vbackup.domain.host import DomainHandle
from vbackup.domain.image_host import ImagesThere
from vbackup.domain.offline import OffSource
from vbackup.engine.rollback_reach import There as Reach
from vbackup.errors import BusyError, RemoteError, StorageError, domain_argument
from vbackup.files import storage_errors
from vbackup.hooks import half_restored
from vbackup.hooks.marks import Work
from vbackup.images.replacement import Replacement
from vbackup.images.replacement_there import ReplacementThere
from vbackup.images.there import ImageThere, Served, Writing
from vbackup.model import Disk
from vbackup.operations import restore_there, rollback
from vbackup.operations.in_place_host import NewImage, Restore, Status, named_path
from vbackup.operations.rollback import Rollback, RollbackRequest
from vbackup.qemu import qcow2
from vbackup.qemu.backing_chain import Image
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Reporter
from vbackup.repository.in_place_journal import Seen
from vbackup.stop import Stop

log = logging.getLogger(__name__)

_NUMBERS = itertools.count(1)


class There:
    """The host that the domain is on (vbackup.operations.in_place_host.Place)."""

    def __init__(self, handle: DomainHandle, *, stop: Stop) -> None:
        self._handle, self._stop = handle, stop
        self._link = handle.host.link(check=stop.check)

    @property
    def host(self) -> str | None:
        """What that host calls itself."""
        name = self._link.hello.get("host")
        if type(name) is str:
            return name
        raise RemoteError(self._link.host, "find out its name", f"it says {name!r:.100}")

    @property
    def uri(self) -> str | None:
        """As libvirt has resolved it."""
        return self._handle.host.real_uri

    @property
    def on_host(self) -> str:
        """Name the host as in other messages."""
        return f" on {self._link.host}"

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Raise them. It is the user of the URI who may not do it, whoever runs vbackup here."""
        with storage_errors(f"{what}{self.on_host}"):
            try:
                yield
            except PermissionError as err:
                if self._link.hello.get("uid") == 0:
                    raise
                raise StorageError(f"Cannot {what}{self.on_host}: {err.strerror}. Use a URI of root.") from err

    # files

    def path_of(self, disk: Disk) -> Path | None:
        """Let realpath(1) follow symbolic links there."""
        path = named_path(disk, self._handle)
        if path is None or not path.startswith("/"):
            return None
        found = self._link.run(["realpath", "--zero", "--canonicalize-missing", "--", path])
        return Path(os.fsdecode(found.rstrip(b"\0")))

    def replacement(self, path: Path, backup: str) -> Replacement:
        """Return one there."""
        return ReplacementThere(self._link, path, backup)

    def seen(self, path: Path) -> Seen | None:
        """Ask the kernel there."""
        with _kernel_errors():
            try:
                found = self._link.stat(os.fspath(path), follow=False)
            except RemoteError as err:
                if restore_there.is_none(err):
                    return None
                raise
        return Seen(found["ino"], found["size"], found["mtime_ns"])

    def status(self, path: Path) -> Status | None:
        """Ask the kernel there."""
        with _kernel_errors():
            try:
                found = self._link.stat(os.fspath(path))
            except RemoteError as err:
                if restore_there.is_none(err):
                    return None
                raise
        return Status(found["mode"], (found["dev"], found["ino"]), found["blocks"] * 512)

    def header(self, path: Path) -> qcow2.Header:
        """Read it through the helper."""
        with _kernel_errors():
            data = next(self._link.read_file(os.fspath(path)), b"")
        return qcow2.header_in(data, path)

    def doubt(self, image: Image) -> str | None:
        """Look at its file system there."""
        return ImagesThere(self._link).doubt(image)

    def room(self, directory: Path) -> tuple[int, int]:
        """Ask the kernel there. Whether it is writable, Replacement.check_attributes finds out."""
        with _kernel_errors():
            return self._link.stat(os.fspath(directory))["dev"], self._link.free_bytes(os.fspath(directory))

    @contextmanager
    def held(self, paths: Sequence[Path]) -> Iterator[None]:
        """Let the helper lock them; its end unlocks them."""
        with ExitStack() as stack:
            for path in paths:
                with self.errors(f"lock {path}"), _kernel_errors():
                    handle = self._link.lock_image(os.fspath(path))
                if handle is None:
                    raise BusyError(
                        f"The image {path} is open in another process on {self._link.host}; nothing was written. Run"
                        " the same command again when it is not."
                    )
                stack.callback(self._link.close_handle, handle)
            yield

    # the restore

    def marked(self) -> AbstractContextManager[None]:
        """Let the helper set the mark, which counts as long as it lives."""
        return self._link.marked(self._handle.uuid, Work.RESTORE.value)

    @contextmanager
    def rollback(self, request: RollbackRequest, what: Restore) -> Iterator[Rollback]:
        """Open the images in a storage daemon there, and the repository in one here."""
        rollback.refuse_running(self._handle)
        access = Access(request.exclusive, writes_data=True, check=what.stop.check)
        with (
            source.open_source(self._handle, reporter=what.reporter, access=access) as opened,
            StorageDaemon(what.reporter, is_only_read=True) as here,
            ExitStack() as stack,
        ):
            if not isinstance(opened, OffSource):
                raise BusyError(
                    f"Domain {self._handle.name} has been started; run the same command again when it is off."
                )
            path = f"{self._link.directory()}/rollback-{next(_NUMBERS)}"
            opened.monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": path}}})
            yield rollback.planned(
                request,
                opened,
                what.point,
                stack,
                repository=what.repository,
                reporter=what.reporter,
                stop=what.stop,
                reach=Reach(here, opened.monitor, stack.enter_context(self._link.connected(path))),
            )

    def make(self, images: Sequence[NewImage], what: Restore, *, checkpoint: bool, speed_bytes_s: int | None) -> None:
        """Write them in directories that go with the link, and let them have their names when all are complete."""
        with ExitStack() as stack:
            stages: dict[Path, Path] = {}
            for directory in dict.fromkeys(one.replacement.path.parent for one in images):
                stages[directory] = Path(self._link.stage(os.fspath(directory)))
                stack.callback(restore_there.remove_stage, stages[directory], self._link)
            made = {one.dev: stages[one.replacement.path.parent] / one.replacement.path.name for one in images}
            paths = {one.dev: one.replacement.path for one in images}

            def finish(image: ImageThere, served: Served) -> None:
                if checkpoint:
                    restore_there.add_checkpoint(
                        served,
                        image,
                        paths[image.dev],
                        choice=what.point.choice,
                        repository=what.repository,
                        reporter=what.reporter,
                        stop=what.stop,
                    )

            Writing(self._link, what.repository, what.reporter, what.stop, speed_bytes_s).write_all(
                [
                    ImageThere(one.dev, os.fspath(made[one.dev]), one.image_format, _size_bytes(what, one.dev))
                    for one in images
                ],
                what.point.chains,
                finish=finish,
            )
            for one in images:
                with self.errors(f"make {one.replacement.new}"):
                    one.replacement.adopt(made[one.dev])

    def elsewhere(self, backup: str, *, option: str) -> str:
        """Return how the domain gets new images; undefining it leaves its files, but not the state of a TPM.

        (With --keep-tpm, no restore could define the domain again: it would not overwrite that state.)
        """
        del option  # it names what only a vbackup on that host writes to
        name, uri = domain_argument(self._handle.name), shlex.quote(self._handle.host.real_uri)
        lost = tpm.lost_by_undefining(self._handle)
        save = "" if lost is None else f"save a copy of {lost}; then "
        return (
            f"Run vbackup on that host, or restore to a new directory DIR there: {save}run 'virsh -c {uri} undefine"
            f" {name} --keep-nvram', and then 'vbackup restore {name} --backup {backup} --define -c {uri} --output"
            " DIR'."
        )

    def half_restored(self, devs: Sequence[str], *, command: str, reporter: Reporter) -> None:
        """Write the record there. A user who may not, such as one who is not root, goes without, as on this host."""
        text = half_restored.text(devs, domain=self._handle.name, command=command, earlier=self._earlier())
        try:
            self._link.run(["mkdir", "-p", "-m", "0700", os.fspath(half_restored.DIRECTORY)])
            self._link.write_file(self._record, [text.encode()])
        except RemoteError as err:
            restore_there.warn_of_record(
                err, self._record, domain=self._handle.name, link=self._link, reporter=reporter
            )

    def whole(self, devs: Collection[str]) -> None:
        """Take the disks out of the record there. Raises LinkLostError."""
        earlier = self._earlier()
        text = None if earlier is None else half_restored.text_without(earlier, devs)
        try:
            if text is None:
                self._link.remove_file(self._record)
            else:
                self._link.write_file(self._record, [text.encode()])
        except RemoteError as err:
            log.debug("%s", err)

    @property
    def _record(self) -> str:
        return os.fspath(half_restored.DIRECTORY / self._handle.uuid)

    def _earlier(self) -> bytes | None:
        """Return the record that is there, None if there is none, or if it is none of ours."""
        found = bytearray()
        try:
            for piece in self._link.read_file(self._record, follow=False):
                found += piece
                if len(found) > half_restored.LIMIT_BYTES:
                    return None
        except RemoteError as err:
            log.debug("%s", err)
            return None
        return bytes(found)


def _size_bytes(what: Restore, dev: str) -> int:
    return what.point.chains[dev][0].image.virtual_size_bytes


@contextmanager
def _kernel_errors() -> Iterator[None]:
    """Raise what the kernel there says as an OSError, as the same call here would."""
    try:
        yield
    except RemoteError as err:
        if err.errno:
            raise OSError(err.errno, err.reason) from err
        raise
