"""A live restore on another host that SSH leads to: its files are made there through the link, and stay there.

The images are overlays above a socket that leads to this host (vbackup.images.live_point_there). Until all data is at
home, the guest depends on the link: what it has written is in its images, and what it reads of the rest waits while
nobody serves it. So a restore whose link is lost has lost nothing, and ``--resume`` goes on.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vbackup.domain import qemu_user
from vbackup.domain.host import Host
from vbackup.domain.qemu_user import QemuUser
from vbackup.engine import restored_checkpoint
from vbackup.errors import QmpError, RemoteError, StorageError, UnsuitableError
from vbackup.hooks import half_restored
from vbackup.images.flatten import Layer
from vbackup.images.live_point import Serving
from vbackup.images.live_point_there import LivePointThere
from vbackup.layers import ChainState, FileState, LayerState
from vbackup.model import MachineKind, SecurityLabel
from vbackup.operations import disk_places_there, live_files, restore_there, restored_machine, tpm_there
from vbackup.operations.live_files import Writing
from vbackup.operations.restored_domain import Prepared
from vbackup.operations.restored_machine import Placed
from vbackup.process import BOOT_ID, Process
from vbackup.qemu.storage_daemon import END_S, StorageDaemon
from vbackup.remote import connection
from vbackup.remote.daemon import Hypervisor
from vbackup.remote.link import Link
from vbackup.report import Reporter
from vbackup.repository import live_state
from vbackup.repository.live_state import LiveState
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

log = logging.getLogger(__name__)

#: How long the helper of a dead run may have the lock: as long as it takes to notice that its line is silent.
LOCK_S = connection.SILENCE_S + 2.0
#: The pause between two attempts to lock.
TICK_S = 0.25


class There:
    """The host of libvirt, as the place of a live restore (vbackup.operations.live_place.Place)."""

    def __init__(self, host: Host, *, stop: Stop | None) -> None:
        self._host = host
        self._check: Callable[[], None] = (lambda: None) if stop is None else stop.check
        self._locked: Path | None = None
        self._lock: tuple[Link, int] | None = None
        self._record: Callable[[Link], object] | None = None
        self._tpm: Path | None = None

    @property
    def _link(self) -> Link:
        """The link, which is made again when it was lost."""
        return self._host.link(check=self._check)

    @property
    def is_missing(self) -> Callable[[str | Path], bool]:
        """Ask the kernel there."""
        return restore_there.missing_on(self._link)

    def absolute(self, output: Path) -> Path:
        """Refuse a relative one: nobody knows to which directory there."""
        restore_there.refuse_relative(output)
        return output

    # what is refused before anything is written

    def refuse_unfit(self, output: Path, others: Iterable[Path], repository: Repository) -> None:
        """Whether the directory can be written is seen when that begins; no repository of this host is there."""

    def refuse_existing(self, paths: Sequence[Path]) -> None:
        """Ask the kernel there."""
        restore_there.refuse_existing(paths, self.is_missing, self._link)

    def refuse_closed(self, prepared: Prepared, output: Path) -> None:
        """Look at the modes of the directories."""
        restore_there.refuse_closed(prepared, output, self.is_missing, self._link)

    def user_of(self, labels: Sequence[SecurityLabel]) -> QemuUser:
        """Look names up on that host; without a label, QEMU runs as the user of the link."""
        return qemu_user.there(self._link, labels)

    def room(self, path: Path) -> tuple[int, Path, int]:
        """Ask the kernel there."""
        link = self._link
        nearest = disk_places_there.existing(path.parent, self.is_missing)
        return link.stat(os.fspath(nearest))["dev"], nearest, link.free_bytes(os.fspath(nearest))

    # files

    def write(self, state: LiveState, what: Writing) -> None:
        """Write them in a directory that goes with the link, beside their places."""
        link, output, machine = self._link, state.output, self._in_place(what.text, what.machine)
        tpm = restored_machine.path_of(machine, MachineKind.TPM)
        if tpm is not None:
            tpm_there.refuse_existing(tpm, self.is_missing, link)
        stage = Path(link.stage(os.fspath(output)))
        moves: list[tuple[Path, Path]] = []
        for dev, one in state.disks.items():
            path = stage / one.path.name
            link.write_file(os.fspath(path), [])  # with the mode that it is to have
            backing = ["-u", "-b", live_files.backing(state, dev), "-F", "raw"]
            size_bytes = what.found.chains[dev][0].image.virtual_size_bytes
            link.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, os.fspath(path), str(size_bytes)])
            moves.append((path, one.path))
        if what.checkpoint and state.is_original:
            self._add_bitmaps(link, state, dict(zip(state.disks, (path for path, _ in moves))), what)
        for path, _ in moves:
            link.run(["sync", os.fspath(path)], timeout_s=END_S)
        with tempfile.TemporaryDirectory(prefix="vbackup-") as directory:
            here = Path(directory)
            restored_machine.write(machine, what.found.backup, here, repository=what.repository, stop=what.stop)
            for placed in machine:
                is_elsewhere = placed.path.parent != output
                new = tpm_there.stage(link, placed.path) if is_elsewhere else stage / placed.path.name
                restore_there.send(link, here / placed.path.name, new)
                if placed.path == tpm:
                    tpm_there.give(link, self._host, new)
                moves.append((new, placed.path))
        for name, text in (("domain.xml", what.text), (live_state.FILE, state.text())):
            link.write_file(os.fspath(stage / name), [text.encode()])
            moves.append((stage / name, output / name))
        what.stop.check()
        link.publish([(os.fspath(source), os.fspath(target)) for source, target in moves])
        self._tpm = tpm
        with suppress(RemoteError):  # or it goes with the link
            link.unstage(os.fspath(stage))

    def machine(self, prepared: Prepared, machine: Sequence[Placed]) -> tuple[Placed, ...]:
        """They were written there."""
        return self._in_place(prepared.text, machine)

    def _in_place(self, text: str, machine: Sequence[Placed]) -> tuple[Placed, ...]:
        """Return the files of the machine with the state of the TPM where libvirt there looks for it."""
        place = restored_machine.tpm_place(text, machine, self._host.real_uri)
        return tuple(
            replace(one, path=place) if place is not None and one.file.kind is MachineKind.TPM else one
            for one in machine
        )

    def _add_bitmaps(self, link: Link, state: LiveState, images: Mapping[str, Path], what: Writing) -> None:
        """Let the chain of the original go on from the backup; what goes wrong is a warning, as in a restore here."""
        backups = {dev: what.found.choice.disks[dev] for dev in images}
        devs = [dev for dev, one in backups.items() if restored_checkpoint.can_start(one, dev, what.reporter)]
        if not devs:
            return
        nodes: list[dict[str, Any]] = [
            {
                "driver": "qcow2",
                "node-name": f"restored-{number}",
                "file": {"driver": "file", "filename": os.fspath(images[dev])},
                "backing": None,
            }
            for number, dev in enumerate(devs)
        ]
        try:
            recorded = restored_checkpoint.record(
                # of files that this host cannot look at
                [
                    (dev, backups[dev], ChainState((LayerState("", FileState(os.fspath(state.image(dev)))),)))
                    for dev in devs
                ],
                uuid=state.original,
                repository=what.repository,
            )
            with StorageDaemon(what.reporter, nodes=nodes, elsewhere=Hypervisor(link)) as daemon:
                restored_checkpoint.write_bitmaps(
                    daemon,
                    nodes,
                    recorded,
                    naming=what.repository.naming,
                    reporter=what.reporter,
                    stop=what.stop,
                )
        except (StorageError, QmpError, UnsuitableError) as err:
            what.reporter.warning(
                f"The restored disks got no bitmap of the restored checkpoint, so their next backup is a full: {err}"
            )

    def remove(self, state: LiveState) -> None:
        """Remove one after the other; what is not there any more is none.

        With its domain, libvirt has removed the state of a TPM. One of a domain that was not defined is this run's.
        """
        link = self._link
        tpm = state.output / restored_machine.TPM if restored_machine.TPM in state.files else None
        for directory in filter(None, {self._tpm, tpm}):
            link.run(["rm", "-rf", "--", os.fspath(directory)])
        names = [os.fspath(state.image(dev)) for dev in state.disks]
        last = {live_state.FILE: 1, live_state.LOCKED: 2}
        made = {*state.files, *state.later, live_state.FILE} - {restored_machine.TPM}
        found = sorted(made, key=lambda name: last.get(name, 0))
        for path in (*names, os.fspath(state.socket), *(os.fspath(state.output / name) for name in found)):
            _remove(link, path)
        with suppress(RemoteError):  # others have put something there
            link.run(["rmdir", os.fspath(state.output)])

    def domain_xml(self, state: LiveState) -> str:
        """Read the file there."""
        content = self._content(state.output / "domain.xml")
        if content is None:
            raise StorageError(f"{state.output / 'domain.xml'} is not on {self._link.host} any more.")
        try:
            return content.decode()
        except ValueError as err:
            raise StorageError(f"{state.output / 'domain.xml'} on {self._link.host} is no text: {err}.") from err

    def flush(self, image: Path) -> None:
        """Run a program there."""
        self._link.run(["sync", os.fspath(image)], timeout_s=END_S)

    def _content(self, path: Path) -> bytes | None:
        """Return the content of a file there, None if there is none. Raises StorageError if it is too long."""
        found = bytearray()
        try:
            for piece in self._link.read_file(os.fspath(path), follow=False):
                found += piece
                if len(found) > live_state.MAX_BYTES:
                    raise StorageError(f"{path} on {self._link.host} has more than {live_state.MAX_BYTES} bytes.")
        except RemoteError as err:
            if restore_there.is_none(err):
                return None
            raise
        return bytes(found)

    # the record

    def _read(self, output: Path) -> LiveState:
        content = self._content(output / live_state.FILE)
        if content is None:
            raise live_state.missing(output)
        return replace(live_state.parse(content, output), uri=self._host.real_uri)

    @contextmanager
    def locked(self, output: Path) -> Iterator[LiveState]:
        """Lock a file there, whose lock goes with the link, and comes back with the next one."""
        self._read(output)
        self._locked = output
        try:
            self._take_lock(self._link)
            yield self._read(output)
        finally:
            self._locked = None
            if self._lock is not None:
                self._lock[0].close_handle(self._lock[1])
                self._lock = None

    def _take_lock(self, link: Link) -> None:
        """Lock the live restore, unless this link has done so. Raises BusyError."""
        if self._locked is None or (self._lock is not None and self._lock[0] is link):
            return
        until = time.monotonic() + LOCK_S
        while (handle := link.lock_file(os.fspath(self._locked / live_state.LOCKED))) is None:
            self._check()
            if time.monotonic() >= until:
                raise live_state.busy(self._locked)
            time.sleep(TICK_S)
        self._lock = link, handle

    def record(self, state: LiveState) -> None:
        """Replace the file there."""
        self._link.write_file(os.fspath(state.output / live_state.FILE), [state.text().encode()])

    def forget(self, output: Path) -> None:
        """Remove the file there."""
        _remove(self._link, os.fspath(output / live_state.FILE))

    # what serves the data

    def serving(
        self,
        layers: Mapping[str, Sequence[Layer]],
        state: LiveState,
        user: QemuUser,
        locks: Sequence[int],
        reporter: Reporter,
    ) -> AbstractContextManager[Serving]:
        """Let a daemon listen here, and the link lead to it; both end with this process, which has the locks."""
        del locks
        return LivePointThere(layers, state.socket, user=user, host=self._host, hold=self._hold, reporter=reporter)

    def _hold(self, link: Link) -> None:
        self._take_lock(link)
        if self._record is not None:
            self._record(link)

    def end_earlier(self, state: LiveState) -> None:
        """It has ended with its link, and the helper has given the lock back."""

    def refuse_start(self, state: LiveState, command: str, reporter: Reporter) -> None:
        """Record it there; the helper is the process that the data depends on.

        As in other restores there, a host on which it cannot be recorded goes without, and a warning says so unless
        the user may not record it.
        """

        def record(link: Link) -> RemoteError | None:
            try:
                earlier = self._content(_record_of(state.uuid))
                pid = int(link.hello["pid"])
                stat, boot_id = (self._content(Path(path)) or b"" for path in (f"/proc/{pid}/stat", BOOT_ID))
                owner = Process.parse(pid, stat, boot_id)
                assert owner is not None  # it has just answered
                text = half_restored.live_text(
                    state.away, domain=state.name, command=command, owner=owner, earlier=earlier
                )
                link.run(["mkdir", "-p", "-m", "0700", os.fspath(half_restored.DIRECTORY)])
                link.write_file(os.fspath(_record_of(state.uuid)), [text.encode()])
            except RemoteError as err:
                return err
            except (StorageError, ValueError, IndexError) as err:
                log.debug("no record on %s: %s", link.host, err)
            return None

        restore_there.warn_of_record(
            record(self._link), _record_of(state.uuid), domain=state.name, link=self._link, reporter=reporter
        )
        self._record = record

    def allow_start(self, uuid: str, *, is_undone: bool) -> None:
        """Remove the record there, or write the one that was there before."""
        self._record = None
        with suppress(RemoteError, StorageError):
            earlier = self._content(_record_of(uuid)) if is_undone else None
            before = None if earlier is None else half_restored.text_before(earlier)
            if before is not None:
                self._link.write_file(os.fspath(_record_of(uuid)), [before.encode()])
            else:
                _remove(self._link, os.fspath(_record_of(uuid)))


def _record_of(uuid: str) -> Path:
    return half_restored.DIRECTORY / uuid


def _remove(link: Link, path: str) -> None:
    try:
        link.remove_file(path)
    except RemoteError as err:
        if not restore_there.is_none(err):
            raise
