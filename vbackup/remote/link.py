"""The link to a hypervisor: one SSH connection by the user's own ssh, and the helper at its other end.

No agent is installed there. The helper hands QEMU sockets and files through the hypervisor's own libvirt, and it is the
dead man's switch: vbackup.remote.helper says what it does when the link is lost.
"""

from __future__ import annotations

import base64
import errno
import itertools
import logging
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbackup import names
from vbackup.errors import BusyError, ForwardingError, LinkLostError, RemoteError, UnsuitableError
from vbackup.hooks import marks
from vbackup.hooks.marks import Work
from vbackup.model import NodeBitmap
from vbackup.names import Naming
from vbackup.process import Process
from vbackup.remote import ciphers, command, connection, host_key
from vbackup.remote.address import Address
from vbackup.remote.connection import Connection

log = logging.getLogger(__name__)

#: How long ssh may take to forward one more socket.
FORWARD_S = 30.0
#: How much of a file goes into one message.
PIECE_BYTES = 256 * 1024
#: How long a program there may run that is not expected to take long.
RUN_S = 60.0
#: What is said of a file.
_STAT = ("mode", "size", "mtime_ns", "ctime_ns", "dev", "ino", "uid", "gid", "blocks")
#: A path that means only itself to ssh, which has "PATH:PATH" and replaces "%h" and "${NAME}" in both.
_PLAIN = re.compile(r"/[A-Za-z0-9._/-]+")
#: The longest path of a socket (sun_path of sockaddr_un(7)), without what ssh appends to that of its control socket.
_MAX_DIRECTORY_BYTES = 70


@dataclass(frozen=True)
class Result:
    """How a program on the hypervisor ended."""

    status: int
    stdout: bytes
    stderr: str


class Link:
    """A connection to a hypervisor. A context manager; any thread may use it.

    Entering raises SshError if ssh cannot connect, HelperError if the helper cannot run there. All methods raise
    LinkLostError once the link is lost, and RemoteError if something fails there. ``check`` is called while the
    connection is being made; it raises if vbackup is asked to stop.
    """

    def __init__(self, address: Address, *, check: Callable[[], None] = lambda: None) -> None:
        self.address = address
        self._check = check
        self._numbers = itertools.count(1)
        self._forwarded: dict[str, Path] = {}  #: what leads here, by its path there
        self._connected: dict[str, Path] = {}  #: what leads there, by its path there
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def __enter__(self) -> Link:
        self._directory = _private_directory()
        try:
            made = Connection(
                command.connection(
                    self.address,
                    str(self._control),
                    command.bootstrap(),
                    ciphers=ciphers.preferred(self.address),
                ),
                host=self.address.place,
                try_first=command.by_hand(self.address),
                changed_key=lambda said: host_key.changed(said, self.address),
            )
            self.hello = made.begin(self.address.libvirt, check=self._check)
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        self._connection = made
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and with it all that the helper started; closing twice is fine."""
        if self._connection is not None:
            self._connection.close()
            shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def host(self) -> str:
        """What the hypervisor is called in messages."""
        return self.address.place

    @property
    def is_lost(self) -> bool:
        """True once the link is known to be lost."""
        return self._connection is None or self._connection.is_lost

    def refuse_lost(self) -> None:
        """Raise LinkLostError if the link is lost."""
        self._open.refuse_lost()

    @property
    def _open(self) -> Connection:
        if self._connection is None:
            raise LinkLostError(self.host, "is not open")
        return self._connection

    @property
    def _control(self) -> Path:
        return self._directory / "ssh"

    def _call(self, do: str, what: str, *, timeout_s: float = connection.REQUEST_S, **parameters: Any) -> Any:
        return self._open.call(do, what=what, timeout_s=timeout_s, **parameters)

    def _integer(self, value: Any, what: str, *, least: int = 0) -> int:
        """Return a number of an answer. Raises RemoteError if it is none, or too small."""
        if type(value) is not int or value < least:
            raise RemoteError(self.host, what, f"the answer has {value!r:.100} in the place of a number")
        return value

    def _members(self, value: Any, what: str, *names: str) -> list[Any]:
        """Return these members of an answer, None where one is missing. Raises RemoteError if it is no object."""
        if type(value) is not dict:
            raise RemoteError(self.host, what, f"the answer is {value!r:.100}")
        return [value.get(name) for name in names]

    def _result(self, answer: Any, what: str) -> Result:
        """Return how a program ended. Raises RemoteError for anything else."""
        status, stdout, stderr = self._members(answer, what, "status", "stdout", "stderr")
        try:
            if type(status) is int and type(stderr) is str:
                return Result(status, base64.b64decode(stdout or "", validate=True), stderr)
        except (ValueError, TypeError):
            pass
        raise RemoteError(self.host, what, "the answer does not say how it ended")

    # Sockets

    def forward(self, socket: Path) -> str:
        """Forward a unix socket of this host to the hypervisor; returns its path there, which only this user may use.

        It carries any number of connections, until ``end_forward`` or the end of the link. Raises ForwardingError if
        sshd does not allow it.
        """
        number = next(self._numbers)
        remote = f"{self.directory()}/{number}.sock"
        local = self._directory / f"{number}.sock"
        local.symlink_to(socket.absolute())  # no path of the user's is in ssh's syntax, nor is it too long
        self._forward(command.forwarding(self.address, str(self._control), remote=remote, local=str(local)))
        self._call("forwarded", "use a forwarded socket", path=remote)
        with self._lock:
            self._forwarded[remote] = local
        return remote

    def serve_at(self, socket: Path, place: Path, *, uid: int, gid: int) -> str:
        """Forward a unix socket of this host to the hypervisor as ``place``, which only that user there may use.

        A socket that is there, of a link that is lost, is replaced. Returns what ``end_forward`` takes. Raises
        ForwardingError, UnsuitableError if the user of the link may not give it to that one.
        """
        number = next(self._numbers)
        # sshd is asked for a path that is plain and short, whatever that of the directory is.
        shortcut = f"{self.directory()}/{number}"
        remote = f"{shortcut}/{place.name}"
        local = self._directory / f"{number}.sock"
        local.symlink_to(socket.absolute())
        what = f"make the socket {place}"
        self._call("shortcut", what, path=shortcut, directory=str(place.parent), name=place.name)
        self._forward(command.forwarding(self.address, str(self._control), remote=remote, local=str(local)))
        try:
            self._call("forwarded", what, path=remote, uid=uid, gid=gid)
        except RemoteError as err:
            if err.errno != errno.EPERM:
                raise
            raise UnsuitableError(
                f"QEMU on {self.host} runs as user {uid}, to whom the user of the URI cannot give the socket {place}:"
                " use a URI of root."
            ) from err
        with self._lock:
            self._forwarded[remote] = local
        return remote

    def lock_file(self, path: str) -> int | None:
        """Lock a file there, which ``close_handle``, or the end of the link, unlocks; None if somebody else has it."""
        what = f"lock {path}"
        try:
            return self._integer(self._call("lock", what, path=path), what)
        except RemoteError as err:
            if err.errno == errno.EAGAIN:
                return None
            raise

    def lock_image(self, path: str) -> int | None:
        """Keep every QEMU there from opening an image until ``close_handle``, or the end of the link.

        Returns None if a program that locks as QEMU does has it open.
        """
        what = f"lock {path}"
        found = self._call("lock_image", what, path=path)
        return None if found is None else self._integer(found, what)

    def end_forward(self, remote: str) -> None:
        """Let no new connections through; those that are there stay."""
        with self._lock:
            local = self._forwarded.pop(remote, None)
        if local is not None:
            self._end_forwarding(remote, local)
            self._call("remove_socket", "remove a forwarded socket", path=remote)

    def connect(self, remote: str) -> Path:
        """Forward a unix socket of the hypervisor to this host; returns its path here, which only this user may use.

        It lasts as long as the link, unless ``disconnect`` ends it.
        """
        local = self._directory / f"{next(self._numbers)}.sock"
        order = command.forwarding(self.address, str(self._control), remote=remote, local=str(local), to_remote=True)
        self._forward(order)
        with self._lock:
            self._connected[remote] = local
        return local

    def disconnect(self, remote: str) -> None:
        """End what ``connect`` has made: no new connections are let through, and those that are there stay."""
        with self._lock:
            local = self._connected.pop(remote, None)
        if local is not None:
            self._end_forwarding(remote, local, to_remote=True)

    @contextmanager
    def connected(self, remote: str) -> Iterator[Path]:
        """Yield what ``connect`` returns; after the block, ``disconnect`` has ended it."""
        try:
            yield self.connect(remote)
        finally:
            self.disconnect(remote)

    def _end_forwarding(self, remote: str, local: Path, *, to_remote: bool = False) -> None:
        """Have ssh close its listener, here or there; one that stays does no harm until the end of the link."""
        control = str(self._control)
        argv = command.forwarding(
            self.address, control, remote=remote, local=str(local), to_remote=to_remote, ends=True
        )
        try:
            if not self.is_lost:
                self._forward(argv)
        except (ForwardingError, LinkLostError) as err:
            log.debug("the forwarding of %s stays: %s", remote, err)
        local.unlink(missing_ok=True)

    def unforwarded(self) -> ForwardingError:
        """Return the error for a connection through a forwarded socket that sshd has ended, with ssh's last words."""
        return ForwardingError(self.host, " ".join(self._open.words().split()) or "sshd ended a connection through it")

    def _forward(self, argv: Sequence[str]) -> None:
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=FORWARD_S
            )
        except subprocess.TimeoutExpired:
            self.refuse_lost()
            raise ForwardingError(self.host, f"there was no answer within {FORWARD_S:.0f} s") from None
        if done.returncode != 0:
            self.refuse_lost()
            raise ForwardingError(self.host, " ".join((done.stderr + " " + self._open.words()).split()))

    # QEMU, through the hypervisor's libvirt

    def pass_nbd(self, uuid: str, name: str, remote: str) -> None:
        """Give the domain's QEMU, as descriptor ``name``, a socket that is connected to the server behind ``remote``.

        ``remote`` comes from ``forward``. The server has greeted by then, so that QEMU does not wait for it.
        """
        self._call("pass_nbd", f"connect QEMU of domain {uuid}", uuid=uuid, name=name, path=remote)

    def pass_nbd_by_tcp(self, uuid: str, name: str, host: str, port: int) -> None:
        """Give the domain's QEMU, as descriptor ``name``, a socket that is connected to a port of the backup host.

        The server has greeted by then. The kernel there ends the connection when the backup host is silent.
        """
        what = f"connect QEMU of domain {uuid} to {host}:{port}"
        self._call("pass_nbd_by_tcp", what, uuid=uuid, name=name, host=host, port=port)

    def pass_file(self, uuid: str, opaque: str, directory: str, size_bytes: int) -> int:
        """Make an empty qcow2 image of that size, without a name, in a directory there, and give it to the QEMU.

        Returns the id of its descriptor set, which is labelled ``opaque``.
        """
        what = f"make an image in {directory} and pass it to QEMU"
        found = self._call("pass_file", what, uuid=uuid, opaque=opaque, directory=directory, size_bytes=size_bytes)
        return self._integer(found, what)

    def pass_handle(self, uuid: str, opaque: str, handle: int) -> int:
        """Give the QEMU an open file, which stays open here too; returns as ``pass_file`` does."""
        what = f"pass a file to QEMU of domain {uuid}"
        return self._integer(self._call("pass_handle", what, uuid=uuid, opaque=opaque, handle=handle), what)

    def guard(self, uuid: str, *, jobs: str, nodes: str, bitmaps: Sequence[NodeBitmap] = ()) -> None:
        """Have the helper undo in the domain's QEMU, when the link is lost, what has names that begin like these.

        These are jobs, and nodes with the labels of their descriptors; it also removes ``bitmaps``. It waits until the
        helper of an earlier link, which was lost, has done so.
        """
        pairs = [[one.node_name, one.bitmap] for one in bitmaps]
        self._call("guard", f"guard domain {uuid}", uuid=uuid, jobs=jobs, nodes=nodes, bitmaps=pairs)

    def guard_session(self, uuid: str, naming: Naming, *, server: str | None = None) -> None:
        """Have the helper end a tracker's pull session in the domain's QEMU when this link ends, however it does.

        Its bitmaps stay. There can be sessions of other trackers, and a backup. ``server``: where QEMU's NBD server is
        bound, which is stopped with its last export. Waits as ``guard`` does.
        """
        what = f"guard a session of domain {uuid}"
        names, session = naming.prefix, f"-{naming.repository_id}"
        self._call("guard", what, uuid=uuid, jobs=names, nodes=names, session=session, server=server)

    def listen(self, uuid: str, name: str) -> str:
        """Give the domain's QEMU, as descriptor ``name``, a unix socket that listens there; returns its path.

        ``connect`` leads to it. Its name goes with the link.
        """
        what = "make a socket for QEMU"
        return self._plain(self._call("listen", what, uuid=uuid, name=name), what)

    def share(self, remote: str) -> str:
        """Give a socket that another link has made (``listen``) a second name, which goes with this one."""
        what = "share a socket"
        return self._plain(self._call("share", what, path=remote), what)

    def socket_states(self, path: str) -> list[str]:
        """Return the states of the unix sockets there that were bound at a path, as /proc/net/unix has them."""
        what = f"look at {path}"
        found = self._call("socket_states", what, path=path)
        if type(found) is not list or not all(type(one) is str for one in found):
            raise RemoteError(self.host, what, f"the answer is {found!r:.100}")
        return found

    def unguard(self, uuid: str) -> None:
        """Everything is undone."""
        self._call("unguard", f"release domain {uuid}", uuid=uuid)

    @contextmanager
    def guarded(self, uuid: str, *, jobs: str, nodes: str, bitmaps: Sequence[NodeBitmap] = ()) -> Iterator[None]:
        """Guard the domain during the block, as ``guard`` does, and release it.

        If the block fails, what it has not undone stays guarded. Otherwise the helper would keep others from the domain
        until the end of the link, which can be that of many backups.
        """
        self.guard(uuid, jobs=jobs, nodes=nodes, bitmaps=bitmaps)
        try:
            yield
        except BaseException:
            with suppress(LinkLostError, RemoteError):
                self._call("release", f"release domain {uuid}", uuid=uuid)
            raise
        with suppress(LinkLostError, RemoteError):
            self.unguard(uuid)

    @contextmanager
    def marked(self, uuid: str, work: str) -> Iterator[None]:
        """Have libvirt's hook script there, if it is installed, refuse to start a domain that is off, during the block.

        ``work``: see vbackup.hooks.marks. A user who may not set marks goes without. Raises BusyError if another
        vbackup there has the disks.
        """
        is_set = self._mark(uuid, work)
        try:
            yield
        finally:
            if is_set:
                with suppress(LinkLostError, RemoteError):  # it counts as long as the helper lives
                    self._call("unmark", f"mark domain {uuid}", uuid=uuid)

    def mark_session(self, uuid: str, session: str, pid: int) -> None:
        """As ``marked``, for a pull session and as long as the program ``pid`` lives that ``start`` has started."""
        self._mark(uuid, Work.SESSION.value, pid=pid, session=session)

    def _mark(self, uuid: str, work: str, **more: Any) -> bool:
        """Return True if the mark was set. Raises BusyError."""
        what = f"mark domain {uuid}"
        try:
            answer = self._call("mark", what, uuid=uuid, work=work, **more)
        except RemoteError as err:
            log.debug("%s", err)
            return False
        is_set, other, session = self._members(answer, what, "is_set", "other", "session")
        if isinstance(session, str) and names.SESSION_ID.fullmatch(session):
            raise BusyError(marks.open_in_session(uuid, session))
        if other is not None:
            raise BusyError(
                f"Another vbackup on {self.host} (process {other!r:.20}) has the disks of domain {uuid} open, which is"
                " off; wait for it to end."
            )
        return bool(is_set)

    def watch_thaw(self, uuid: str, limit_s: float) -> None:
        """Have the helper thaw the guest when the link is silent, and in any case after ``limit_s`` seconds."""
        self._call("watch_thaw", f"watch over domain {uuid}", uuid=uuid, limit_s=limit_s)

    def unwatch(self, uuid: str) -> bool:
        """The guest is not frozen any longer; returns True if the helper thawed it."""
        thawed: bool = self._call("unwatch", f"end the watch over domain {uuid}", uuid=uuid)
        return thawed

    def has_thawed(self, uuid: str) -> bool:
        """Return True if the helper has thawed the guest."""
        return self._connection is not None and uuid in self._connection.thawed

    # The copy of a boot test

    def claim_copy(self, uuid: str) -> None:
        """Have the helper destroy a transient domain, which is about to be started, when this link ends."""
        self._call("claim_copy", f"watch over domain {uuid}", uuid=uuid)

    def release_copy(self, uuid: str) -> None:
        """The domain was destroyed."""
        self._call("release_copy", f"end the watch over domain {uuid}", uuid=uuid)

    # Files and programs

    def run(self, argv: Sequence[str], stdin: bytes = b"", *, timeout_s: float = RUN_S) -> bytes:
        """Run a program there and return what it prints. Raises RemoteError, with its last words, if it fails."""
        done = self.try_run(argv, stdin, timeout_s=timeout_s)
        if done.status != 0:
            lines = done.stderr.strip().splitlines()
            said = lines[-1] if lines else f"it ended with status {done.status}"
            raise RemoteError(self.host, f"run {argv[0]}", said)
        return done.stdout

    def try_run(self, argv: Sequence[str], stdin: bytes = b"", *, timeout_s: float = RUN_S) -> Result:
        """Run a program there and return how it ended."""
        encoded = base64.b64encode(stdin).decode()
        what = f"run {argv[0]}"
        done = self._call("run", what, timeout_s=timeout_s + 10, argv=list(argv), stdin=encoded, limit_s=timeout_s)
        return self._result(done, what)

    def stat(self, path: str, *, follow: bool = True) -> Mapping[str, int]:
        """Return what the kernel says of a file: mode, size, mtime_ns, ctime_ns, dev, ino, uid, gid and blocks.

        ``follow``: of the file that a symbolic link leads to, and not of the link.
        """
        what = f"look at {path}"
        answer = self._call("stat", what, path=path, follow=follow)
        members = self._members(answer, what, *_STAT)
        # A file can be from before 1970.
        return {name: self._integer(one, what, least=-(2**63)) for name, one in zip(_STAT, members)}

    def free_bytes(self, directory: str) -> int:
        """Return the free space in a directory."""
        what = f"use {directory}"
        return self._integer(self._call("room", what, directory=directory), what)

    def names_in(self, directory: str) -> list[str]:
        """Return the names in a directory. Raises RemoteError also for one that would lead out of it."""
        what = f"read {directory}"
        found = self._call("list", what, directory=directory)
        if type(found) is not list:
            raise RemoteError(self.host, what, f"the answer is {found!r:.100}")
        for name in found:
            if type(name) is not str or name in ("", ".", "..") or "/" in name or "\0" in name:
                raise RemoteError(self.host, what, f"{name!r:.100} is no name of a file")
        return found

    def read_file(self, path: str, *, follow: bool = True) -> Iterator[bytes]:
        """Yield the content of a regular file or a block device, in pieces of at most PIECE_BYTES.

        How many these are is up to the hypervisor: whoever keeps them needs a limit. Without ``follow``, a symbolic
        link is an error.
        """
        what = f"read {path}"
        handle = self._call("open", what, path=path, follow=follow)
        try:
            offset = 0
            while True:
                piece = self._piece(what, handle, offset, PIECE_BYTES)
                if not piece:
                    return
                offset += len(piece)
                yield piece
        finally:
            self.close_handle(handle)

    def _piece(self, what: str, handle: int, offset: int, size_bytes: int) -> bytes:
        """Return a piece of an open file. Raises RemoteError for more than was asked for."""
        found = self._call("read", what, handle=handle, offset=offset, size=size_bytes)
        try:
            data = base64.b64decode(found, validate=True)
        except (ValueError, TypeError) as err:
            raise RemoteError(self.host, what, "what came back is not the content of a file") from err
        if len(data) > size_bytes:
            raise RemoteError(self.host, what, f"{len(data)} bytes came back where {size_bytes} were asked for")
        return data

    def write_file(self, path: str, data: Iterable[bytes], *, mode: int = 0o600) -> None:
        """Make or replace a file; it has its name when it is complete and on the storage."""
        what = f"write {path}"
        handle = self._call("create", what, path=path, mode=mode)
        try:
            for piece in data:
                for begin in range(0, len(piece), PIECE_BYTES):
                    encoded = base64.b64encode(piece[begin : begin + PIECE_BYTES]).decode()
                    self._call("write", what, handle=handle, data=encoded)
            self._call("commit", what, handle=handle)
        except BaseException:
            self.close_handle(handle)
            raise

    def nameless_file(self, directory: str) -> int:
        """Make an empty file without a name in a directory there; returns a handle (vbackup.remote.nameless)."""
        what = f"make a file in {directory}"
        return self._integer(self._call("nameless", what, directory=directory), what)

    def extents(self, handle: int, start: int) -> tuple[int, list[tuple[int, int]]]:
        """Return the size of an open file, and the next (start, end) of its parts that are no holes; [] at its end.

        They are in their order, begin at ``start`` or later, and end where the file does at the latest.
        """
        what = "look for the data of a file"
        size, extents = self._members(self._call("extents", what, handle=handle, start=start), what, "size", "extents")
        size_bytes, found = self._integer(size, what), []
        for one in extents if type(extents) is list else [None]:
            if type(one) is not list or len(one) != len(("begin", "end")):
                raise RemoteError(self.host, what, f"the answer has {one!r:.100} in the place of begin and end")
            begin, end = (self._integer(each, what) for each in one)
            if not start <= begin < end <= size_bytes:
                raise RemoteError(self.host, what, f"it would be from {begin} to {end}, in {size_bytes} bytes")
            found.append((begin, end))
            start = end
        return size_bytes, found

    def get(self, handle: int, offset: int, size_bytes: int) -> bytes:
        """Return a piece of an open file, at most PIECE_BYTES, shorter at its end."""
        return self._piece("read a file", handle, offset, size_bytes)

    def put(self, handle: int, offset: int, data: bytes) -> None:
        """Write a piece of an open file."""
        self._call("put", "write a file", handle=handle, offset=offset, data=base64.b64encode(data).decode())

    def resize(self, handle: int, size_bytes: int) -> None:
        """Set the size of an open file."""
        self._call("resize", "set the size of a file", handle=handle, size=size_bytes)

    def close_handle(self, handle: int) -> None:
        """Close an open file. A link that is lost has closed it."""
        with suppress(LinkLostError, RemoteError):
            self._call("close", "close a file", handle=handle)

    def remove_file(self, path: str) -> None:
        """Remove a file."""
        self._call("unlink", f"remove {path}", path=path)

    def stage(self, directory: str) -> str:
        """Make a directory there, in ``directory``, for what is not complete; it is removed at the end of the link.

        ``directory`` is made if it is missing, and removed with it unless something was published.
        """
        path: str = self._call("stage", f"write to {directory}", directory=directory)
        return path

    def unstage(self, stage: str) -> None:
        """Remove a directory of ``stage`` with its content; what is left of it then goes with the link."""
        self._call("unstage", f"remove {stage}", path=stage)

    def publish(self, moves: Sequence[tuple[str, str]]) -> None:
        """Give files and directories there their names: all or none, and the last one last.

        Raises RemoteError, also if a name is taken.
        """
        self._call("publish", f"write {moves[-1][1]}", moves=[list(move) for move in moves])

    def start(self, argv: Sequence[str], *, directory: str = "/", listen: str = "") -> int:
        """Start a program there that ends when the link does; returns its pid there.

        ``{fd}`` in its arguments becomes a descriptor that listens at the path ``listen``, which ``connect`` reaches.
        """
        what = f"start {argv[0]}"
        return self._integer(self._call("start", what, argv=list(argv), cwd=directory, listen=listen), what)

    def ended(self, pid: int, *, within_s: float) -> Result | None:
        """Return how a started program ended; None if it runs on after that time."""
        what = "wait for a program"
        found = self._call("wait", what, timeout_s=within_s + 10, pid=pid, limit_s=within_s)
        return None if found is None else self._result(found, what)

    def signal(self, pid: int, signum: int) -> None:
        """Send a signal to a started program."""
        self._call("kill", "signal a program", pid=pid, signum=int(signum))

    def process(self, pid: int) -> Process:
        """Return the identity of a started program, by which other links can find it."""
        what = "look at a program"
        found = self._members(self._call("identity", what, pid=pid), what, "pid", "start_ticks", "boot_id")
        return Process(self._integer(found[0], what), self._integer(found[1], what), str(found[2])[:64])

    def outlived(self, process: Process, *, within_s: float) -> bool:
        """Wait for the end of a program that another link may have started; False if it goes on after that time."""
        what, limits = "wait for a program", {"timeout_s": within_s + 10, "limit_s": within_s}
        return bool(self._call("outlived", what, pid=process.pid, start_ticks=process.start_ticks, **limits))

    def signal_process(self, process: Process, signum: int) -> None:
        """Send a signal to a program that another link may have started, if it has not ended."""
        what = "signal a program"
        self._call("kill_process", what, pid=process.pid, start_ticks=process.start_ticks, signum=int(signum))

    def directory(self) -> str:
        """Return a directory there for sockets, which nobody else may enter and which goes with the link.

        Its path becomes part of ssh's arguments. One with "${NAME}" would be replaced by what NAME is in the
        environment here, such as a key, and sent there: a hypervisor must not choose that. Raises RemoteError.
        """
        what = "make a directory for sockets"
        return self._plain(self._call("directory", what), what)

    def _plain(self, path: Any, what: str) -> str:
        """Return a path that means only itself to ssh. Raises RemoteError for any other."""
        if not isinstance(path, str) or not _PLAIN.fullmatch(path):
            reason = f"its path would be {path!r:.200}, and ssh forwards only letters, digits and ._-/ as is"
            raise RemoteError(self.host, what, reason)
        return path


def _private_directory() -> Path:
    """Return a new directory, with a path that leaves room for the names of sockets."""
    base = tempfile.gettempdir()
    is_fit = _PLAIN.fullmatch(base) and len(base) < _MAX_DIRECTORY_BYTES - 20
    return Path(tempfile.mkdtemp(prefix="vbackup-ssh-", dir=base if is_fit else "/tmp"))  # noqa: S108 - it is 0700
