"""A copy of a domain boots on another host that SSH leads to, which has the images.

All that it needs is made there through the link, and goes with it: the directory for sockets and files, the storage
daemon, the overlays, which have no names, and the copy itself, which the helper destroys (vbackup.remote.helper). Its
consoles end in sockets of this process, which the user's ssh forwards.
"""

from __future__ import annotations

import os
import select
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vbackup.domain import defining, machine_xml, qemu_user
from vbackup.domain.boot_console import BootConsoles
from vbackup.domain.host import Host
from vbackup.domain.qemu_user import QemuUser
from vbackup.engine.fleecing import RESERVE_BYTES, RESERVE_SHARE
from vbackup.engine.fleecing_area import REMOTE_DIRECTORY
from vbackup.errors import LinkLostError, NoSpaceError, RemoteError, UnsuitableError
from vbackup.images.flatten import Layer
from vbackup.images.opened_point import OpenedPoint
from vbackup.model import Backup, MachineKind
from vbackup.operations import restore_there
from vbackup.operations.boot_place import SOCKET, Exported, Workplace, why_not_given
from vbackup.operations.boot_tpm import Given
from vbackup.remote.daemon import Hypervisor
from vbackup.remote.link import Link
from vbackup.remote.nameless import NamelessFile
from vbackup.report import Reporter
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: Where root has the directory of a copy: others may enter /run, and it is gone after a boot.
_RUN = "/run"
#: How long a kernel and its initial RAM disk may take to be copied.
_COPY_S = 120.0
#: How often to ask for the room there, which takes a round trip.
_ROOM_S = 1.0


class There:
    """That host. Making it raises UnsuitableError, SshError, HelperError, RemoteError."""

    def __init__(self, host: Host, reporter: Reporter, *, stop: Stop) -> None:
        self._reporter = reporter
        self._link = host.link(check=stop.check)
        self._user = qemu_user.there(self._link, defining.of(host).labels)
        own = self._link.hello.get("uid")
        if own not in (0, self._user.uid):
            raise UnsuitableError(
                f"QEMU on {self._link.host} runs as user {self._user.uid}, and only root can give that user the disks"
                " of the copy: use a URI of root."
            )
        self._is_other = own != self._user.uid

    @contextmanager
    def workplace(self, uuid: str) -> Iterator[Workplace]:
        """Make a directory there that QEMU's group can enter, and let the helper destroy the copy if need be."""
        link, user = self._link, self._user
        directory = link.stage(_RUN if self._is_other else link.directory())
        try:
            if self._is_other:
                link.run(["chown", f":{user.gid}", "--", directory])
                link.run(["chmod", "0710", "--", directory])
            link.claim_copy(uuid)
            made = WorkplaceThere(Path(directory), link, user, self._reporter, is_other=self._is_other)
            yield made
            if not made.is_left:
                link.release_copy(uuid)
        finally:
            with suppress(LinkLostError, RemoteError):  # it goes with the link
                link.unstage(directory)


@dataclass
class WorkplaceThere:
    """What that host has for a copy."""

    directory: Path
    link: Link
    user: QemuUser
    reporter: Reporter
    is_other: bool  #: QEMU's user is not that of the link, who is root then
    is_left: bool = field(default=False, init=False)  #: the copy may run

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Send it."""
        with tempfile.TemporaryDirectory(prefix="vbackup-") as temporary:
            path = Path(temporary, name)
            write(path)
            restore_there.send(self.link, path, self.directory / name)
        self._give(name)

    def copy_host_file(self, path: Path, name: str) -> str | None:
        """Look at it, and copy it with the rights of QEMU's user: it can have become another file meanwhile."""
        try:
            status = self.link.stat(os.fspath(path))
        except RemoteError as err:
            return f"cannot be read on {self.link.host} ({err.reason}): copy it to that path"
        if not stat.S_ISREG(status["mode"]):
            return f"is not a regular file on {self.link.host}"
        owner = (self.user.uid, self.user.gid) if self.is_other else None
        why = why_not_given(status["mode"], status["uid"], status["size"], path, owner=owner, host=self.link.host)
        if why is not None:
            return why
        target = os.fspath(self.directory / name)
        self.link.write_file(target, [])
        self._give(name)
        as_user = ["setpriv", f"--reuid={self.user.uid}", f"--regid={self.user.gid}", "--clear-groups", "--"]
        copying = ["dd", "bs=1M", "status=none", f"if={path}", f"of={target}"]
        done = self.link.try_run([*(as_user if self.is_other else ()), *copying], timeout_s=_COPY_S)
        if done.status != 0:
            said = (done.stderr.strip().splitlines() or [f"dd ended with status {done.status}"])[-1]
            return f"cannot be read by QEMU on {self.link.host} ({said}): copy it to that path"
        return None

    def real_path(self, path: str) -> str:
        """Ask a program there; a path that is not there is as it is."""
        done = self.link.try_run(["readlink", "-f", "--", path])
        return done.stdout.decode(errors="surrogateescape").removesuffix("\n") if done.status == 0 else path

    def tpm(
        self, backup: Backup, definition: str, *, repository: Repository, stop: Stop
    ) -> AbstractContextManager[Given]:
        """Leave it out: libvirt there would look for its state beside those of the host's own domains."""
        has_state = any(one.kind is MachineKind.TPM for one in backup.machine_files)
        if not has_state or machine_xml.tpm(definition) is None:
            return nullcontext(Given())
        return nullcontext(Given(why_not="a copy on another host gets no state of a TPM"))

    @contextmanager
    def consoles(self, paths: Sequence[str]) -> Iterator[BootConsoles]:
        """Listen here, and let ssh lead to it from there."""
        with ExitStack() as stack:
            here = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vbackup-")))
            sockets = [here / Path(path).name for path in paths]
            consoles = stack.enter_context(BootConsoles(sockets, owner=None))
            for socket, path in zip(sockets, paths):
                remote = self.link.serve_at(socket, Path(path), uid=self.user.uid, gid=self.user.gid)
                stack.callback(self._end_forward, remote)
            yield consoles

    @contextmanager
    def exported(self, layers: Mapping[str, Sequence[Layer]]) -> Iterator[Exported]:
        """Start a storage daemon there. Overlays are files without names, which it alone has open."""
        room = _Room.now(self.link)
        with OpenedPoint(layers, reporter=self.reporter, elsewhere=Hypervisor(self.link)) as point:
            for dev in layers:
                self._take_writes(point, dev)
            point.listen(self.directory / SOCKET)
            self._give(SOCKET)
            for dev in layers:
                point.export_nbd(dev, is_writable=True)
            yield _Exported(point, self.link, room)

    def _take_writes(self, point: OpenedPoint, dev: str) -> None:
        overlay = NamelessFile.make(self.link, os.fspath(REMOTE_DIRECTORY))
        try:
            size_bytes = str(point.size_bytes(dev))
            self.link.run(["qemu-img", "create", "-q", "-f", "qcow2", "--", overlay.path, size_bytes])
            point.write_to(dev, Path(overlay.path))
        finally:
            overlay.close()

    def act(self) -> None:
        """Leave it to the helper, which does so when the link ends."""
        self.is_left = True

    def _give(self, name: str) -> None:
        path = os.fspath(self.directory / name)
        self.link.run(["chmod", "0600", "--", path])
        if self.is_other:
            self.link.run(["chown", f"{self.user.uid}:{self.user.gid}", "--", path])

    def _end_forward(self, remote: str) -> None:
        with suppress(LinkLostError, RemoteError):  # it went with the link
            self.link.end_forward(remote)


@dataclass
class _Room:
    """The filesystem of the overlays, which the host's own guests may need, too."""

    link: Link
    reserve_bytes: int  #: has to stay free
    due: float = 0.0  #: when to ask again

    @classmethod
    def now(cls, link: Link) -> _Room:
        """Ask for what is free now. Raises NoSpaceError if that is nothing."""
        free_bytes = link.free_bytes(os.fspath(REMOTE_DIRECTORY))
        made = cls(link, max(1, min(RESERVE_BYTES, free_bytes // RESERVE_SHARE)))
        made.check(free_bytes)
        return made

    def check(self, free_bytes: int | None = None) -> None:
        """Raise NoSpaceError if the copy has to end. ``free_bytes``: what is free; None asks, if that is due."""
        now = time.monotonic()
        if free_bytes is None:
            if now < self.due:
                return
            free_bytes = self.link.free_bytes(os.fspath(REMOTE_DIRECTORY))
        self.due = now + _ROOM_S
        if free_bytes < self.reserve_bytes:
            raise NoSpaceError(
                f"The test was ended: {REMOTE_DIRECTORY} on {self.link.host}, where what the copy writes goes until its"
                f" end, has only {free_bytes >> 20} MiB free. Nothing of the copy is left there; free space, and run"
                " the same command again."
            )


@dataclass(frozen=True)
class _Exported:
    """The disks of the copy, which a storage daemon there serves (vbackup.operations.boot_place.Exported)."""

    point: OpenedPoint
    link: Link
    room: _Room

    def wait(self, stop: Stop, *, timeout_s: float) -> None:
        """Wait for a stop, and then ask whether the link, and the daemon at its end, are still there.

        Raises NoSpaceError, too, before what the copy writes has filled a filesystem there.
        """
        self.room.check()
        with stop.descriptor() as stopping:
            poll = select.poll()
            poll.register(stopping, select.POLLIN)
            poll.poll(timeout_s * 1000)
        self.link.refuse_lost()
        if self.point.daemon.has_ended:
            self.link.refuse_lost()
            raise self.point.daemon.gone(
                remedy="Nothing can be read of the disks any more; run the same command again."
            )
