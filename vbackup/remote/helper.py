"""What runs on a hypervisor: vbackup.remote.link sends this source along and starts it with ``python3 -IS``.

It needs Python 3.6 and the standard library; virsh carries its commands to QEMU. Nothing is installed. It reads
requests from standard input and writes replies to standard output, a JSON object a line:

    {"id": 7, "do": "read", "handle": 3, "size": 4096}      a request; the members after "do" are its parameters
    {"id": 7, "return": {...}}                              its reply
    {"id": 7, "error": {"errno": 2, "text": "..."}}         the same if it failed; errno is 0 if there is none
    {"beat": 12}                                            sent by vbackup every second, and sent back

It is a dead man's switch. When nothing has come for a while, or the line has ended, nobody on the other side can look
after the guest: it thaws a guest that is frozen, ends the SSH session that it belongs to, so that every socket that
QEMU has through it is closed and no write of the guest waits for the network, and then cancels the jobs, closes nodes
and descriptors in QEMU, ends the programs that it started, and removes its files.
"""

import base64
import collections
import contextlib
import errno
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import syslog
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

VERSION = 1
#: How much of a file goes into one line.
PIECE_BYTES = 256 * 1024
#: How many parts of a file are named in one line.
EXTENTS = 4096
#: How much a program may print: what is asked for are lists and headers.
OUTPUT_BYTES = 64 * 1024 * 1024
#: What an NBD server says first.
GREETING = b"NBDMAGIC"
#: How long the other end of a TCP connection may be silent before the kernel ends it, in seconds.
SILENCE_S = 15
#: How long libvirt may take for a command to QEMU; it waits up to 30 s for the domain's lock by itself.
VIRSH_S = 40
#: How long the guest agent may take to answer one thaw, the pause between two, and when it is given up.
AGENT_S, THAW_AGAIN_S, GIVE_UP_S = 5, 0.5, 300.0
#: How long after the loss of the line a freeze can still arrive at libvirt by another connection, which libvirt ends
#: after 30 s of silence (keepalive_interval x (keepalive_count + 1)).
LATE_FREEZE_S = 45.0
#: How long the jobs may take to end.
JOBS_S = 30.0
#: How long to wait for the helper of an earlier backup of the domain, which is still cleaning up.
BUSY_S = 60.0
#: How long to wait for the lock on the marks, which nobody has for long: a guest must not wait for one who is stopped.
MARKS_S = 3.0
#: How long QEMU may take to end its exports, and to drop a client that has connected and not asked for one (it gives
#: that 10 s).
EXPORTS_S, CLIENTS_S = 10.0, 15.0
#: What the kernel calls the states of a unix socket that listens, and of a connection that was accepted.
LISTENING, CONNECTED = "01", "03"
#: Where libvirt's hook script, if it is installed, looks whether a domain has to stay off (vbackup.hooks.marks).
MARKS = "/run/vbackup/offline"
#: What the names of directories for sockets begin with; the pid and the start time of the helper follow, and the boot.
HELPER = "helper"
#: What tempfile.mkdtemp calls a directory for what is not complete, and the file in it that its helper has locked: the
#: same as those of a restore on the host itself (vbackup.images.destination), so that either removes what both left.
STAGE, STAGE_LOCK = re.compile(r"\.vbackup-[a-z0-9_]{8}"), ".vbackup-lock"
#: The member of a mark whose process is being ended.
ENDING = "is_ending"
#: How many clients of an NBD server may wait to be accepted.
BACKLOG = 128
#: The bytes of an image that QEMU locks: for each kind of access that it wants, and that it grants nobody else
#: (vbackup.qemu.image_lock); struct flock with 64 bits, and the numbers of fcntl(2), which Python 3.9 has by name.
WANTED, DENIED, KINDS = 100, 200, 5
FLOCK = struct.Struct("@hhqqi4x")
OFD_GETLK, OFD_SETLK = 36, 37
#: How long a program has to end: a storage daemon stores bitmaps, without which the next backup would be a full.
END_S = 60.0


class RefusedError(Exception):
    """A request cannot be carried out, for this reason."""


class Qemu:
    """The QEMU of one domain, through this host's libvirt."""

    def __init__(self, uri: str, uuid: str) -> None:
        self.uri = uri
        self.uuid = uuid

    def execute(self, command: str, arguments: "dict[str, Any] | None" = None, fd: "int | None" = None) -> Any:
        """Execute a QMP command; a descriptor goes with it. Raises RefusedError."""
        request = json.dumps({"execute": command, "arguments": arguments or {}})
        passing = [] if fd is None else ["--pass-fds", str(fd)]
        text = self._virsh("qemu-monitor-command", *passing, request, fds=() if fd is None else (fd,))
        try:
            reply = json.loads(text)
        except ValueError as err:
            raise RefusedError(f"virsh printed no JSON for {command}: {text[:200]!r}") from err
        if "error" in reply:
            raise RefusedError("{}: {}".format(command, reply["error"].get("desc", reply["error"])))
        return reply.get("return")

    def thaw(self) -> int:
        """Thaw the guest's filesystems once; returns how many were frozen. Raises RefusedError."""
        request = json.dumps({"execute": "guest-fsfreeze-thaw"})
        text = self._virsh("qemu-agent-command", "--timeout", str(AGENT_S), request)
        return int(json.loads(text).get("return", 0))

    def is_active(self) -> bool:
        """Return False if the domain has ended, or is not there."""
        try:
            return self._virsh("domstate").strip() != "shut off"
        except RefusedError as err:
            return "failed to get domain" not in str(err)

    def destroy(self) -> None:
        """End the domain. Raises RefusedError, also if it has ended."""
        self._virsh("destroy")

    def _virsh(self, command: str, *arguments: str, fds: "tuple[int, ...]" = ()) -> str:
        argv = ["virsh", "--quiet", "--connect", self.uri, command, "--domain", self.uuid, *arguments]
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=fds,
                env=dict(os.environ, LC_ALL="C"),
            )
        except OSError as err:
            raise RefusedError(f"virsh cannot be run ({err.strerror}), which carries commands to QEMU") from err
        try:
            out, words = process.communicate(timeout=VIRSH_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise RefusedError(f"libvirt did not answer within {VIRSH_S} s") from None
        if process.returncode != 0:
            text = words.decode(errors="replace").strip()
            raise RefusedError(text[len("error: ") :] if text.startswith("error: ") else text)
        return out.decode(errors="replace")


class Guard:
    """What is undone in one domain's QEMU when the line is lost."""

    def __init__(
        self,
        qemu: Qemu,
        lock: int,
        jobs: str,
        nodes: str,
        bitmaps: "Sequence[Sequence[str]]" = (),
        *,
        server: "str | None" = None,
    ) -> None:
        """``server``: the path at which QEMU's NBD server was bound, if it is one of vbackup's."""
        self.qemu, self.lock, self.jobs, self.nodes, self.bitmaps = qemu, lock, jobs, nodes, bitmaps
        self.server = server

    def clean(self, grace_s: float) -> None:
        """End the exports, cancel the jobs, close nodes and descriptors, remove the bitmaps, stop the NBD server.

        A vbackup that lives, and only lost this line, has ``grace_s`` seconds to do that itself.
        """
        until = time.monotonic() + grace_s
        while time.monotonic() < until and self.is_something_left():
            time.sleep(0.25)
        with contextlib.suppress(RefusedError):
            self._end_exports()
        with contextlib.suppress(RefusedError):
            self._cancel()
        with contextlib.suppress(RefusedError):
            self._close_nodes()
        with contextlib.suppress(RefusedError):
            for fdset in self._fdsets():
                self.qemu.execute("remove-fd", {"fdset-id": fdset})
        for node, name in self.bitmaps:
            with contextlib.suppress(RefusedError):  # vbackup has removed it
                self.qemu.execute("block-dirty-bitmap-remove", {"node": node, "name": name})
        with contextlib.suppress(RefusedError):
            self._remove_objects()
        with contextlib.suppress(RefusedError, OSError):
            self._stop_server()

    def _end_exports(self) -> None:
        """Only a pull session has any, and the NBD server."""
        until = time.monotonic() + EXPORTS_S
        while self.server is not None:
            exports = [one for one in self._exports() if one.startswith(self.nodes)]
            for export in exports:
                with contextlib.suppress(RefusedError):  # it is just ending
                    self.qemu.execute("block-export-del", {"id": export, "mode": "hard"})
            if not exports or time.monotonic() >= until:
                return
            time.sleep(0.1)

    def _stop_server(self) -> None:
        """Stop it, unless it exports something for others.

        QEMU, and with it the guest, would wait for ever for a client that has connected and not asked for an export.
        """
        until = time.monotonic() + CLIENTS_S
        while self.server is not None and LISTENING in socket_states(self.server) and not self._exports():
            if CONNECTED not in socket_states(self.server):
                self.qemu.execute("nbd-server-stop")
                return
            if time.monotonic() >= until:
                return
            time.sleep(0.1)

    def _exports(self) -> "list[str]":
        return [one["id"] for one in self.qemu.execute("query-block-exports") if one.get("type") == "nbd"]

    def close_sockets(self, names: "Sequence[str]") -> None:
        """Close the descriptors of these names that no node has taken: the line was lost between the two commands."""
        for name in names:
            with contextlib.suppress(RefusedError):  # a node has taken it, and has closed it
                self.qemu.execute("closefd", {"fdname": name})

    def _remove_objects(self) -> None:
        """Remove the certificate or key of a connection by TLS, which no node uses any more."""
        for one in self.qemu.execute("qom-list", {"path": "/objects"}):
            if one["name"].startswith(self.nodes):
                with contextlib.suppress(RefusedError):
                    self.qemu.execute("object-del", {"id": one["name"]})

    def is_something_left(self) -> bool:
        """Return False if there is nothing to clean, or no QEMU."""
        try:
            return bool(self._jobs() or self._nodes() or self._fdsets())
        except RefusedError:
            return False

    def _jobs(self) -> "dict[str, str]":
        found = self.qemu.execute("query-jobs")
        return {job["id"]: job["status"] for job in found if job["id"].startswith(self.jobs)}

    def _nodes(self) -> "list[str]":
        found = self.qemu.execute("query-named-block-nodes", {"flat": True})
        return sorted(node["node-name"] for node in found if node.get("node-name", "").startswith(self.nodes))

    def _fdsets(self) -> "list[int]":
        found = self.qemu.execute("query-fdsets")
        return [
            fdset["fdset-id"]
            for fdset in found
            if any(fd.get("opaque", "").startswith(self.nodes) for fd in fdset["fds"])
        ]

    def _cancel(self) -> None:
        until = time.monotonic() + JOBS_S
        while True:
            jobs = self._jobs()
            for job, status in jobs.items():
                command = "job-dismiss" if status == "concluded" else "job-cancel"
                with contextlib.suppress(RefusedError):  # it has just concluded, or vbackup has dismissed it
                    self.qemu.execute(command, {"id": job})
            if not jobs or time.monotonic() >= until:
                return
            time.sleep(0.1)

    def _close_nodes(self) -> None:
        """Which node uses which is not known: those that are in use are tried again after the others."""
        nodes = self._nodes()
        while nodes:
            for node in nodes:
                with contextlib.suppress(RefusedError):
                    self.qemu.execute("blockdev-del", {"node-name": node})
            left = self._nodes()
            if len(left) >= len(nodes):
                return
            nodes = left


class Freeze:
    """A guest that may be frozen, and how long it may be."""

    def __init__(self, qemu: Qemu, limit_s: float) -> None:
        self.qemu = qemu
        self.until = time.monotonic() + limit_s
        self.is_thawing = False
        self.is_patient = False  #: a freeze that was sent before the line was lost can arrive after the thaw
        self.is_over = False


class Helper:
    """Carries out the requests of one vbackup, and cleans up when its line is lost."""

    def __init__(self, uri: str, silence_s: float, thaw_silence_s: float, greeting_s: float, grace_s: float) -> None:
        """After ``silence_s`` seconds the line counts as lost; while a guest is frozen, it is thawed sooner.

        ``greeting_s``: how long an NBD server may take to greet. ``grace_s``: see ``Guard.clean``.
        """
        self.uri = uri
        self.silence_s, self.thaw_silence_s = silence_s, thaw_silence_s
        self.greeting_s, self.grace_s = greeting_s, grace_s
        self._session = _session_process()
        self._heard = time.monotonic()
        self._out = collections.deque()  # type: collections.deque[bytes]
        self._wake_r, self._wake_w = os.pipe()
        for fd in (self._wake_r, self._wake_w, 1):
            os.set_blocking(fd, False)
        self._lock = threading.Lock()
        self._marks_lock = threading.Lock()  #: its owner can wait for other processes; the main thread must not
        self._guards = {}  # type: dict[str, Guard]
        self._passed = {}  # type: dict[str, set[str]]
        self._freezes = {}  # type: dict[str, Freeze]
        self._handles = {}  # type: dict[int, tuple[int, tuple[str, str] | None]]
        self._programs = {}  # type: dict[int, Program]
        self._sockets = set()  # type: set[str]
        self._marks = {}  # type: dict[str, dict[str, Any]]
        self._copies = set()  # type: set[str]
        self._directory = None  # type: str | None
        self._stages = {}  # type: dict[str, int | None]
        self._made = []  # type: list[str]
        self._thaws = []  # type: list[threading.Thread]

    # The line

    def serve(self) -> None:
        """Serve until the line ends or is silent for too long; then clean up, also if this fails."""
        try:
            why = self._serve()
        except Exception as err:  # noqa: BLE001 - such as no memory, or no more threads; the guest must not stay frozen
            why = f"cannot be served any more ({type(err).__name__}: {err})"
        if why:
            _log(f"The connection from vbackup {why}.")
        self._end(is_lost=bool(why))

    def _serve(self) -> str:
        """Return why the line is lost, "" if vbackup has said goodbye."""
        rest, why = b"", ""
        while not why:
            self._thaw_overdue()
            readable, writable, _ = select.select([0, self._wake_r], [1] if self._out else [], [], self._patience_s())
            if self._wake_r in readable:
                os.read(self._wake_r, 65536)
            if writable:
                why = self._write()
            if 0 in readable:
                data = os.read(0, 1 << 16)
                self._heard = time.monotonic()
                if not data:
                    why = "ended"
                lines = (rest + data).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    if self._handle(line):
                        return ""
            elif time.monotonic() - self._heard > self.silence_s:
                why = f"was silent for {self.silence_s:.0f} s"
        return why

    def _patience_s(self) -> float:
        """Return for how long nothing is due."""
        limits = [self._heard + self.silence_s]
        for freeze in self._freezes.values():
            if not freeze.is_thawing:
                limits += [freeze.until, self._heard + self.thaw_silence_s]
        return max(0.01, min(limits) - time.monotonic() + 0.01)

    def _write(self) -> str:
        while self._out:
            try:
                written = os.write(1, self._out[0])
            except BlockingIOError:
                return ""
            except OSError:
                return "broke"
            if written == len(self._out[0]):
                self._out.popleft()
            else:
                self._out[0] = self._out[0][written:]
        return ""

    def send(self, message: "dict[str, Any]") -> None:
        """Queue a message; the main thread writes it. Any thread may call this."""
        self._out.append(json.dumps(message).encode() + b"\n")
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_w, b"x")

    def _handle(self, line: bytes) -> bool:
        """Begin what a line asks for; returns True if it is the farewell."""
        try:
            message = json.loads(line.decode())
        except ValueError:
            return False
        if "beat" in message:
            self.send({"beat": message["beat"]})
            return False
        number, do = message.pop("id", None), message.pop("do", "")
        if do == "bye":
            return True
        action = getattr(self, "do_" + do, None)
        if action is None:
            self.send({"id": number, "error": {"errno": errno.ENOSYS, "text": "unknown request " + do}})
        elif do in _AT_ONCE:
            self._carry_out(number, action, message)
        else:
            arguments = (number, action, message)
            threading.Thread(target=self._carry_out, args=arguments, daemon=True).start()
        return False

    def _carry_out(self, number: int, action: "Callable[..., Any]", arguments: "dict[str, Any]") -> None:
        try:
            reply = {"id": number, "return": action(**arguments)}  # type: dict[str, Any]
        except RefusedError as err:
            reply = {"id": number, "error": {"errno": 0, "text": str(err)}}
        except OSError as err:
            text = f"{err.filename}: {err.strerror}" if err.filename else str(err.strerror or err)
            reply = {"id": number, "error": {"errno": err.errno or 0, "text": text}}
        except Exception as err:  # noqa: BLE001 - whatever it is, the request has failed and vbackup has to hear of it
            reply = {"id": number, "error": {"errno": 0, "text": f"{type(err).__name__}: {err}"}}
        self.send(reply)

    # The guest

    def do_watch_thaw(self, uuid: str, limit_s: float) -> None:
        """Thaw the guest when the line is quiet, and at the latest after ``limit_s`` seconds."""
        self._freezes[uuid] = Freeze(Qemu(self.uri, uuid), limit_s)

    def do_unwatch(self, uuid: str) -> bool:
        """The guest is not frozen any longer; returns True if it was thawed from here."""
        freeze = self._freezes.pop(uuid, None)
        if freeze is None:
            return False
        freeze.is_over = True
        return freeze.is_thawing

    def _thaw_overdue(self) -> None:
        now = time.monotonic()
        for freeze in list(self._freezes.values()):
            is_silent = now - self._heard >= self.thaw_silence_s
            if not freeze.is_thawing and (now >= freeze.until or is_silent):
                self._begin_thaw(freeze, is_patient=is_silent)

    def _begin_thaw(self, freeze: Freeze, *, is_patient: bool) -> None:
        freeze.is_thawing, freeze.is_patient = True, is_patient
        thread = threading.Thread(target=self._thaw, args=(freeze,))
        self._thaws.append(thread)
        thread.start()

    def _thaw(self, freeze: Freeze) -> None:
        """Thaw until the agent says that something was frozen, or no freeze can arrive any more."""
        begun = time.monotonic()
        by_hand = f"virsh --connect {freeze.qemu.uri} domfsthaw {freeze.qemu.uuid}"
        how = f"its agent does not answer; it may be frozen, run '{by_hand}'"
        answered = 0.0
        while time.monotonic() - begun < GIVE_UP_S and not (freeze.is_over and answered):
            try:
                count = freeze.qemu.thaw()
            except (RefusedError, ValueError):
                if not freeze.qemu.is_active():
                    how = "it has ended"
                    break
            else:
                how, answered = f"thawed {count} filesystems", answered or time.monotonic()
                if count or not freeze.is_patient or time.monotonic() - begun > LATE_FREEZE_S:
                    break
            time.sleep(THAW_AGAIN_S if not answered else 1.0)
        _log(f"Domain {freeze.qemu.uuid} was left frozen, or for too long: {how}.")
        self.send({"thawed": freeze.qemu.uuid})

    # QEMU

    def do_guard(
        self,
        uuid: str,
        jobs: str,
        nodes: str,
        bitmaps: "Sequence[Sequence[str]]" = (),
        *,
        session: str = "",
        server: "str | None" = None,
    ) -> None:
        """Undo in the domain's QEMU, when the line is lost, what has names that begin like these, and the bitmaps.

        A bitmap is given by its node and its name. ``session``: it is for a pull session of this tracker, beside which
        there can be others, and a backup; ``server`` is where its NBD server was bound.
        """
        held = self._guards.get(uuid)  # of an operation that failed
        lock = _claim(uuid + session) if held is None else held.lock
        self._guards[uuid] = Guard(Qemu(self.uri, uuid), lock, jobs, nodes, bitmaps, server=server)

    def do_unguard(self, uuid: str) -> None:
        """Everything is undone, or belongs to a backup that is complete."""
        guard = self._guards.pop(uuid, None)
        with self._lock:
            self._passed.pop(uuid, None)
        if guard is not None:
            os.close(guard.lock)

    def do_release(self, uuid: str) -> None:
        """The operation has failed, and vbackup has undone it: as ``unguard``, unless something is left in QEMU."""
        guard = self._guards.get(uuid)
        if guard is not None and not guard.is_something_left():
            self.do_unguard(uuid)

    def do_claim_copy(self, uuid: str) -> None:
        """Destroy a transient domain, which is about to be started, when the line ends, however it does."""
        self._copies.add(uuid)

    def do_release_copy(self, uuid: str) -> None:
        """It has been destroyed."""
        self._copies.discard(uuid)

    def do_pass_nbd(self, uuid: str, name: str, path: str) -> None:
        """Hand QEMU a socket that is connected to the server behind ``path``, after the server has greeted."""
        with _greeted(path, self.greeting_s) as server:
            self._pass_socket(uuid, name, server)

    def do_pass_nbd_by_tcp(self, uuid: str, name: str, host: str, port: int) -> None:
        """Hand QEMU a socket that is connected to the server at a port, after the server has greeted."""
        with _connected(host, port, self.greeting_s) as server:
            _await_greeting(server, self.greeting_s)
            self._pass_socket(uuid, name, server)

    def _pass_socket(self, uuid: str, name: str, server: socket.socket) -> None:
        with self._lock:
            self._passed.setdefault(uuid, set()).add(name)
        Qemu(self.uri, uuid).execute("getfd", {"fdname": name}, fd=server.fileno())

    def do_listen(self, uuid: str, name: str) -> str:
        """Hand QEMU a socket that listens in the directory for sockets, and return its path."""
        path = os.path.join(self.do_directory(), "nbd.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            self._sockets.add(path)
            os.chmod(path, 0o600)
            listener.listen(BACKLOG)
            self._pass_socket(uuid, name, listener)
        return path

    def do_share(self, path: str) -> str:
        """Give a socket that listens at a path another name, in the directory for sockets; return that."""
        name = os.path.join(self.do_directory(), "nbd.sock")
        os.link(path, name)
        self._sockets.add(name)
        return name

    def do_socket_states(self, path: str) -> "list[str]":
        """Return the states of the unix sockets that were bound at a path, also if nothing has that name any more."""
        return socket_states(path)

    def do_pass_file(self, uuid: str, opaque: str, directory: str, size_bytes: int) -> int:
        """Make an empty qcow2 image without a name there, and hand it to QEMU; returns the id of the set."""
        fd = _nameless(directory)
        try:
            path = f"/proc/self/fd/{fd}"
            argv = ["qemu-img", "create", "-q", "-f", "qcow2", path, str(size_bytes)]
            status, _out, words = _run(argv, b"", 60.0, fds=(fd,))
            if status != 0:
                raise RefusedError(f"qemu-img: {words.strip()}")
            reply = Qemu(self.uri, uuid).execute("add-fd", {"opaque": opaque}, fd=fd)
            return int(reply["fdset-id"])
        finally:
            os.close(fd)

    def do_pass_handle(self, uuid: str, opaque: str, handle: int) -> int:
        """Hand QEMU an open file; returns the id of the set."""
        reply = Qemu(self.uri, uuid).execute("add-fd", {"opaque": opaque}, fd=self._handles[handle][0])
        return int(reply["fdset-id"])

    # Files and programs

    def do_stat(self, path: str, *, follow: bool = True) -> "dict[str, Any]":
        """Return what stat(2) says of a file, or of a symbolic link itself if that is not to be followed."""
        found = os.stat(path) if follow else os.lstat(path)
        return {
            "mode": found.st_mode,
            "size": found.st_size,
            "mtime_ns": found.st_mtime_ns,
            "ctime_ns": found.st_ctime_ns,
            "dev": found.st_dev,
            "ino": found.st_ino,
            "uid": found.st_uid,
            "gid": found.st_gid,
            "blocks": found.st_blocks,
        }

    def do_room(self, directory: str) -> int:
        """Return the free bytes there."""
        if not os.path.isdir(directory):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory)
        found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize

    def do_list(self, directory: str) -> "list[str]":
        """Return the names in a directory."""
        return sorted(os.listdir(directory))

    def do_open(self, path: str, *, follow: bool = True) -> int:
        """Open a regular file or block device for reading; returns a handle."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # the end of a pipe must not block
        fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
        kind = os.fstat(fd).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file or a block device", path)
        self._handles[fd] = (fd, None)
        return fd

    def do_read(self, handle: int, offset: int, size: int) -> str:
        """Return a piece of an open file, shorter at its end."""
        return base64.b64encode(os.pread(self._handles[handle][0], min(size, PIECE_BYTES), offset)).decode()

    def do_nameless(self, directory: str) -> int:
        """Make an empty file without a name there; returns a handle."""
        fd = _nameless(directory)
        self._handles[fd] = (fd, None)
        return fd

    def do_put(self, handle: int, offset: int, data: str) -> None:
        """Write a piece of an open file at that place."""
        left = base64.b64decode(data)
        while left:
            written = os.pwrite(self._handles[handle][0], left, offset)
            left, offset = left[written:], offset + written

    def do_resize(self, handle: int, size: int) -> None:
        """Set the size of an open file."""
        os.ftruncate(self._handles[handle][0], size)

    def do_extents(self, handle: int, start: int) -> "dict[str, Any]":
        """Return the size of an open file, and where it has data from ``start`` on, as far as goes into one line."""
        fd, found = self._handles[handle][0], []  # type: int, list[list[int]]
        while len(found) < EXTENTS:
            try:
                begin = os.lseek(fd, start, os.SEEK_DATA)
            except OSError as err:
                if err.errno == errno.ENXIO:  # only a hole is left
                    break
                raise
            start = os.lseek(fd, begin, os.SEEK_HOLE)
            found.append([begin, start])
        return {"size": os.fstat(fd).st_size, "extents": found}

    def do_create(self, path: str, mode: int) -> int:
        """Begin a file that replaces, or becomes, the one of that name when it is committed; returns a handle."""
        directory, name = os.path.split(path)
        fd, made = tempfile.mkstemp(prefix=f".{name}.", dir=directory or ".")
        self._handles[fd] = (fd, (made, path))
        os.fchmod(fd, mode)
        return fd

    def do_write(self, handle: int, data: str) -> None:
        """Append to a file that was begun."""
        left = base64.b64decode(data)
        while left:
            left = left[os.write(self._handles[handle][0], left) :]

    def do_commit(self, handle: int) -> None:
        """Give a file that was begun its name, with its content on the storage."""
        fd, names = self._handles[handle]
        assert names is not None
        os.fsync(fd)
        os.rename(names[0], names[1])
        self._handles[handle] = (fd, None)
        self.do_close(handle)

    def do_close(self, handle: int) -> None:
        """Close a file; one that was begun and not committed is removed."""
        fd, names = self._handles.pop(handle)
        os.close(fd)
        if names is not None:
            os.unlink(names[0])

    def do_unlink(self, path: str) -> None:
        """Remove a file."""
        os.unlink(path)

    def do_stage(self, directory: str) -> str:
        """Return a new directory in ``directory``, which is made if it is missing; it goes with this process.

        What is made can be entered by others, so that QEMU reaches the images in it; nobody can list it. What dead
        helpers have left there is removed.
        """
        missing = [directory]
        while not os.path.lexists(missing[-1]):
            missing.append(os.path.dirname(missing[-1]))
        for path in reversed(missing[:-1]):
            os.mkdir(path, 0o711)
            os.chmod(path, 0o711)  # noqa: S103 - others pass through it, and list nothing
            self._made.append(path)
        _remove_dead_stages(directory)
        stage = tempfile.mkdtemp(prefix=".vbackup-", dir=directory)
        self._stages[stage] = None
        self._stages[stage] = _locked_stage(stage)
        return stage

    def do_unstage(self, path: str) -> None:
        """Remove a directory of ``stage`` with its content; what cannot be removed is tried again at the end."""
        if path not in self._stages:
            raise OSError(errno.EINVAL, "no directory of this helper", path)
        self._remove_stage(path)

    def do_publish(self, moves: "list[list[str]]") -> None:
        """Give files and directories their names: all or none, the last one last; none of the names may be taken."""
        done = []  # type: list[str]
        try:
            for source, target in moves:
                if os.path.isdir(source):
                    os.mkdir(target, 0o700)  # taken for sure; an empty directory is replaced by the next call
                    done.append(target)
                    os.rename(source, target)
                else:
                    os.link(source, target)
                    done.append(target)
                _fsync(os.path.dirname(target))
        except BaseException:
            for target in reversed(done):
                with contextlib.suppress(OSError):
                    shutil.rmtree(target) if os.path.isdir(target) else os.unlink(target)
            raise
        self._made.clear()

    def do_run(self, argv: "list[str]", stdin: str, limit_s: float) -> "dict[str, Any]":
        """Run a program to its end."""
        status, out, words = _run(argv, base64.b64decode(stdin), limit_s)
        return {"status": status, "stdout": base64.b64encode(out).decode(), "stderr": words}

    def do_directory(self) -> str:
        """Return a directory for sockets, which nobody else may enter and which goes with this process."""
        with self._lock:
            if self._directory is None:
                parent = _runtime_directory()
                _remove_dead_directories(parent)
                mine = f"{HELPER}-{os.getpid()}-{_start_time(os.getpid())}-{_short_boot_id()}-"
                self._directory = tempfile.mkdtemp(prefix=mine, dir=parent)
            return self._directory

    def do_shortcut(self, path: str, directory: str, name: str) -> None:
        """Make ``path``, in the directory for sockets, lead to another one, and remove a dead socket of a name there.

        Whoever asks for it has locked what is there, so that nobody uses the socket any more.
        """
        old = os.path.join(directory, name)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(old).st_mode):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), old)
            os.unlink(old)
        os.symlink(directory, path)

    def do_forwarded(self, path: str, uid: "int | None" = None, gid: int = -1) -> None:
        """Take charge of the socket that sshd has made there, and give it to a user; refused if it is another's."""
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise RefusedError(f"{path} is not a socket of this user")
        self._sockets.add(path)
        os.chmod(path, 0o600)
        if uid is not None and uid != os.geteuid():
            os.chown(path, uid, gid, follow_symlinks=False)

    def do_lock(self, path: str) -> int:
        """Lock a regular file for this process alone; returns a handle."""
        handle = self.do_open(path, follow=False)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.do_close(handle)
            raise
        return handle

    def do_lock_image(self, path: str) -> "int | None":
        """Keep every QEMU from opening an image as long as the handle is open; None if one has it open.

        As vbackup.qemu.image_lock: a filesystem on which locks do not work has none for QEMU either.
        """
        handle = self.do_open(path)
        try:
            fcntl.fcntl(handle, OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, DENIED, KINDS, 0))
            reply = fcntl.fcntl(handle, OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, WANTED, KINDS, 0))
        except OSError as err:
            if err.errno in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                return handle
            self.do_close(handle)
            raise
        if FLOCK.unpack(reply)[0] == fcntl.F_UNLCK:
            return handle
        self.do_close(handle)
        return None

    def do_remove_socket(self, path: str) -> None:
        """Remove a forwarded socket, whose forwarding has ended."""
        self._sockets.discard(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def do_start(self, argv: "list[str]", cwd: str, listen: str) -> int:
        """Start a program that ends (SIGTERM) when this process does, however that happens; returns its pid.

        ``{fd}`` in its arguments becomes a descriptor that listens at the path ``listen``, if there is one.
        """
        if shutil.which(argv[0]) is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
        with _listening(listen) as fds:
            program = Program([word.replace("{fd}", str(fds[0])) if fds else word for word in argv], cwd, fds)
        self._programs[program.process.pid] = program
        return program.process.pid

    def do_mark(
        self, uuid: str, work: str, *, pid: "int | None" = None, session: "str | None" = None
    ) -> "dict[str, Any]":
        """Let the hook script refuse to start a domain that is off, as long as this process or program ``pid`` lives.

        ``session``: the pull session that the program serves. Returns whether this was not so already, and the process
        that has marked it, with its session, if it is another one that lives. Waits for one that is being ended.
        """
        path = os.path.join(MARKS, uuid)
        until = time.monotonic() + BUSY_S
        while True:
            with self._holding_marks():
                if uuid in self._marks:
                    return {"is_set": False, "other": None, "session": None}
                other = _living_mark(path)
                if other is None:
                    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                    mark = dict(_identity(os.getpid() if pid is None else pid), since=since, work=work)
                    mark = mark if session is None else dict(mark, session=session)
                    _write_mark(path, mark)
                    self._marks[uuid] = mark
                    return {"is_set": True, "other": None, "session": None}
            if not other.get(ENDING) or time.monotonic() >= until:
                return {"is_set": False, "other": other["pid"], "session": other.get("session")}
            time.sleep(0.1)

    def do_unmark(self, uuid: str) -> None:
        """The domain may be started, unless others have marked it since."""
        path = os.path.join(MARKS, uuid)
        with self._holding_marks():
            if _same(_read_mark(path), self._marks.pop(uuid, None)):
                os.unlink(path)

    def _announce_end(self) -> None:
        """Let others wait for the domains that are marked: what has their disks open is about to end."""
        if not self._marks:
            return
        with self._holding_marks():
            for uuid, mark in self._marks.items():
                path = os.path.join(MARKS, uuid)
                if _same(_read_mark(path), mark):
                    _write_mark(path, dict(mark, **{ENDING: True}))

    @contextlib.contextmanager
    def _holding_marks(self) -> "Iterator[None]":
        """Keep other threads and other processes from the marks. Raises OSError if one has them for too long."""
        until = time.monotonic() + MARKS_S
        if not self._marks_lock.acquire(timeout=MARKS_S):
            raise _kept_locked()
        try:
            with _locked_marks(until):
                yield
        finally:
            self._marks_lock.release()

    def do_identity(self, pid: int) -> "dict[str, Any]":
        """Return what tells a process from others that get its number."""
        return _identity(pid)

    def do_outlived(self, pid: int, start_ticks: int, limit_s: float) -> bool:
        """Wait for the end of a process that another helper may have started; returns False if it goes on."""
        until = time.monotonic() + limit_s
        while _lives(pid, start_ticks):
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        return True

    def do_kill_process(self, pid: int, start_ticks: int, signum: int) -> None:
        """Signal a process that another helper may have started, if it has not ended."""
        if _lives(pid, start_ticks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def do_wait(self, pid: int, limit_s: float) -> "dict[str, Any] | None":
        """Return how a started program has ended, None if it has not within that time."""
        program = self._programs[pid]
        try:
            status = program.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        return {"status": status, "stderr": program.words()}

    def do_kill(self, pid: int, signum: int) -> None:
        """Signal a started program, if it has not ended."""
        if self._programs[pid].process.poll() is None:
            self._programs[pid].process.send_signal(signum)

    # The end

    def _end(self, *, is_lost: bool) -> None:
        """Thaw, close all sockets, and undo the rest. Nobody is there to read what this process prints."""
        for freeze in self._freezes.values():
            if not freeze.is_thawing:
                self._begin_thaw(freeze, is_patient=True)
        if is_lost:
            self._end_session()
        self._destroy_copies()
        with contextlib.suppress(OSError):
            self._announce_end()
        for program in list(self._programs.values()):
            program.terminate()
        self._remove_files()
        for uuid, guard in list(self._guards.items()):
            guard.clean(self.grace_s if is_lost else 0.0)
            guard.close_sockets(sorted(self._passed.get(uuid, ())))
        for program in list(self._programs.values()):
            program.end()
        with contextlib.suppress(OSError):  # they end with this process
            for uuid in list(self._marks):
                self.do_unmark(uuid)
        self._remove_stages()
        if self._directory is not None:
            _remove_directory(self._directory)
        for thread in self._thaws:
            thread.join()

    def _destroy_copies(self) -> None:
        for uuid in list(self._copies):
            with contextlib.suppress(RefusedError):  # libvirt has done so, as with the end of its own connection
                Qemu(self.uri, uuid).destroy()

    def _remove_stages(self) -> None:
        for stage in list(self._stages):
            self._remove_stage(stage)
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                os.rmdir(path)

    def _remove_stage(self, path: str) -> None:
        with self._lock:
            lock, self._stages[path] = self._stages[path], None
        if lock is not None:
            os.close(lock)  # servers of NFS and SMB keep the directory of a file that is open
        shutil.rmtree(path, ignore_errors=True)

    def _remove_files(self) -> None:
        for path in self._sockets:
            with contextlib.suppress(OSError):
                os.unlink(path)
        for handle in list(self._handles):
            with contextlib.suppress(OSError):
                self.do_close(handle)

    def _end_session(self) -> None:
        """Kill the process of sshd that this process belongs to: QEMU's sockets are connected to it."""
        if self._session is None:
            return
        pid, started = self._session
        if _start_time(pid) == started:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


class Program:
    """A program that runs as long as the line does: a storage daemon."""

    def __init__(self, argv: "list[str]", cwd: str, fds: "tuple[int, ...]") -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the program
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._words,
            cwd=cwd,
            pass_fds=fds,
            start_new_session=True,
        )

    def words(self) -> str:
        """Return the last that it has said on standard error."""
        end = self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, end - 4096))
        return self._words.read().decode(errors="replace")

    def terminate(self) -> None:
        """Ask it to end; it then stores the bitmaps of the images that it has open."""
        if self.process.poll() is None:
            self.process.terminate()

    def end(self) -> None:
        """Wait for its end, and kill it if that takes too long."""
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()


#: Requests that the main thread carries out: they are quick and their order counts, or a child has to be the main
#: thread's, since PR_SET_PDEATHSIG is about the thread. None touches a path of the user's: storage that hangs would
#: keep this thread from thawing.
_AT_ONCE = frozenset((
    "watch_thaw", "unwatch", "unguard", "claim_copy", "release_copy", "start", "kill", "forwarded", "remove_socket",
))  # fmt: skip


@contextlib.contextmanager
def _listening(path: str) -> "Iterator[tuple[int, ...]]":
    """Yield the descriptor of a socket that listens at the path, or nothing if there is none."""
    if not path:
        yield ()
        return
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        yield (listener.fileno(),)


@contextlib.contextmanager
def _greeted(path: str, limit_s: float) -> "Iterator[socket.socket]":
    """Yield a socket that is connected to an NBD server whose greeting has arrived, and has not been read."""
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(limit_s)
        try:
            server.connect(path)
        except socket.timeout:
            raise RefusedError(f"the NBD server on the backup host did not answer within {limit_s:.0f} s") from None
        _await_greeting(server, limit_s)
        yield server


def _connected(host: str, port: int, limit_s: float) -> socket.socket:
    """Return a connection that the kernel ends when the other host is silent.

    QEMU would wait for ever, and with it the guest's requests, which no QMP command changes.
    """
    try:
        server = socket.create_connection((host, port), timeout=limit_s)
    except socket.timeout:
        raise RefusedError(f"{host}:{port} does not answer within {limit_s:.0f} s") from None
    except OSError as err:
        raise RefusedError(f"{host}:{port}: {err.strerror or err}") from None
    server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, SILENCE_S // 3),
        (socket.TCP_KEEPINTVL, SILENCE_S // 3),
        (socket.TCP_KEEPCNT, 2),
        (socket.TCP_USER_TIMEOUT, SILENCE_S * 1000),
    ):
        server.setsockopt(socket.IPPROTO_TCP, option, value)
    return server


def _await_greeting(server: socket.socket, limit_s: float) -> None:
    """Wait until the greeting of an NBD server has arrived, which is not read.

    QEMU stands still, with all its virtual processors, while it waits for a server that says nothing.
    """
    until = time.monotonic() + limit_s
    try:
        seen = b""
        while len(seen) < len(GREETING):
            server.settimeout(max(0.001, until - time.monotonic()))
            seen = server.recv(len(GREETING), socket.MSG_PEEK)
            if not seen:
                raise RefusedError("the NBD server on the backup host has closed the connection")
            if len(seen) < len(GREETING):
                time.sleep(0.01)
    except socket.timeout:
        raise RefusedError(f"the NBD server on the backup host did not greet within {limit_s:.0f} s") from None
    if seen != GREETING:
        raise RefusedError("what answers on the backup host is no NBD server")
    server.settimeout(None)


def _nameless(directory: str) -> int:
    """Return a descriptor of a file without a name, which is gone when nobody has it open any more."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as err:
        if err.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    fd, path = tempfile.mkstemp(prefix="vbackup-", dir=directory)
    os.unlink(path)
    return fd


def _run(argv: "list[str]", stdin: bytes, timeout_s: float, fds: "tuple[int, ...]" = ()) -> "tuple[int, bytes, str]":
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=fds,
        cwd="/",
        env=dict(os.environ, LC_ALL="C"),
    )
    try:
        out, words = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RefusedError(f"{argv[0]} did not end within {timeout_s:.0f} s") from None
    if len(out) > OUTPUT_BYTES:
        raise RefusedError(f"{argv[0]} printed more than {OUTPUT_BYTES} bytes")
    return process.returncode, out, words.decode(errors="replace")


@contextlib.contextmanager
def _locked_marks(until: float) -> "Iterator[None]":
    """Make the directory of the marks if it is missing, and lock it. Raises OSError if that is not done in time."""
    for path in (os.path.dirname(MARKS), MARKS):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    fd = os.open(MARKS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while not _try_lock(fd):
            if time.monotonic() >= until:
                raise _kept_locked()
            time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _kept_locked() -> OSError:
    return OSError(errno.ETIMEDOUT, "another process keeps it locked", MARKS)


def _write_mark(path: str, mark: "dict[str, Any]") -> None:
    """Write a mark; the directory is locked."""
    with open(path + ".new", "w") as file:
        json.dump(mark, file)
    os.rename(path + ".new", path)


def _read_mark(path: str) -> "dict[str, Any] | None":
    """Return a mark, None if there is none that can be read."""
    try:
        with open(path) as file:
            mark = json.load(file)
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) else None


def _same(one: "dict[str, Any] | None", other: "dict[str, Any] | None") -> bool:
    """Return True if both are the same mark, whether or not one says that it is about to end."""
    return one is not None and other is not None and dict(one, **{ENDING: True}) == dict(other, **{ENDING: True})


def _living_mark(path: str) -> "dict[str, Any] | None":
    """Return the mark whose process lives, None if there is none."""
    mark = _read_mark(path)
    try:
        lives = mark is not None and _lives(int(mark["pid"]), int(mark["start_ticks"]))
        return mark if lives and mark is not None and mark["boot_id"] == _boot_id() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _identity(pid: int) -> "dict[str, Any]":
    """Return what tells a process from others that get its number (vbackup.process). Raises ValueError if it ended."""
    return {"pid": pid, "start_ticks": int(_start_time(pid)), "boot_id": _boot_id()}


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _short_boot_id() -> str:
    """Return what is enough to tell boots apart: a pid and a start time can come again after one."""
    return _boot_id()[:8]


def socket_states(path: str) -> "list[str]":
    """Return the states of the unix sockets that were bound at this path: of servers, and of their connections."""
    wanted, found = os.fsencode(path), []
    with open("/proc/net/unix", "rb") as lines:
        for line in lines:
            words = line.rstrip(b"\n").split(None, 7)  # Num RefCount Protocol Flags Type St Inode Path
            if words[7:] == [wanted]:
                found.append(words[5].decode())
    return found


def _claim(uuid: str) -> int:
    """Wait until no other helper has the domain, and return a descriptor whose lock says that this one has it.

    The helper of a backup whose line was lost may still be cleaning up, and must not meet what the next one makes.
    """
    path = os.path.join(_runtime_directory(), f"remote-{uuid}.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    until = time.monotonic() + BUSY_S
    while True:
        if _try_lock(fd):
            return fd
        if time.monotonic() >= until:
            os.close(fd)
            raise RefusedError("another backup or session of the domain is being made, or cleaned up")
        time.sleep(0.1)


def _runtime_directory() -> str:
    """Return a directory that only this user may enter: below /run, or in the directory for temporary files."""
    home = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    if home and os.path.isdir(home):
        path = os.path.join(home, "vbackup")
    else:
        path = os.path.join(tempfile.gettempdir(), f"vbackup-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise OSError(errno.EPERM, "others may write to this directory", path)
    return path


def _fsync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_directory(path: str) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        os.rmdir(path)


def _remove_dead_directories(parent: str) -> None:
    """Remove the directories for sockets of helpers that were killed, or ended with the machine."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            found = re.fullmatch(HELPER + r"-([0-9]+)-([0-9]+)-([0-9a-f]{8})-[a-z0-9_]+", name)
            if found and not (found.group(3) == _short_boot_id() and _lives(int(found.group(1)), int(found.group(2)))):
                shutil.rmtree(os.path.join(parent, name), ignore_errors=True)


def _locked_stage(stage: str) -> int:
    """Make the lock of a directory for what is not complete; it counts from the moment that it has content.

    A lock, and not the name of this process: another host may have the directory mounted, which knows only its own.
    """
    fd = os.open(os.path.join(stage, STAGE_LOCK), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # a filesystem without locks, on which no directory counts as dead
        if _try_lock(fd):
            os.write(fd, b"locked\n")
    return fd


def _remove_dead_stages(directory: str) -> None:
    """Remove this user's directories for what is not complete whose helper has died, or the machine with it."""
    try:
        names = os.listdir(directory)
    except OSError:  # this user may write to it, and not list it
        return
    for name in names:
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError):  # another one removes it, or has it locked
            if STAGE.fullmatch(name) and _is_own_directory(path) and _is_dead(os.path.join(path, STAGE_LOCK)):
                shutil.rmtree(path)


def _is_own_directory(path: str) -> bool:
    found = os.lstat(path)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _is_dead(lock: str) -> bool:
    """Return True if nobody has the lock, and somebody had it. Raises OSError if there is none."""
    fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        return stat.S_ISREG(found.st_mode) and _try_lock(fd) and found.st_size > 0
    finally:
        os.close(fd)


def _start_time(pid: int) -> str:
    """Return when a process started, "" if there is none: pids are reused."""
    return "".join(_stat(pid)[19:20])


def _lives(pid: int, start_ticks: int) -> bool:
    """Return True if the process that started then has not ended; a zombie has."""
    fields = _stat(pid)
    return fields[19:20] == [str(start_ticks)] and fields[0] not in ("Z", "X")


def _stat(pid: int) -> "list[str]":
    """Return the fields of /proc/PID/stat that follow the command's name, from the state on; [] if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def _session_process() -> "tuple[int, str] | None":
    """Return the process of sshd that serves this session, with its start time; None if there is none."""
    pid = os.getppid()
    while pid > 1:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                head, _, tail = file.read().rpartition(b")")
        except OSError:
            return None
        if head.partition(b"(")[2].startswith(b"sshd"):  # sshd, from OpenSSH 9.8 on sshd-session
            return pid, _start_time(pid)
        pid = int(tail.split()[1])
    return None


def _log(text: str) -> None:
    syslog.openlog("vbackup", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_WARNING, text)


def _first_line() -> bytes:
    """Read it without a buffer: what follows it stays for select(2)."""
    with open(0, "rb", buffering=0, closefd=False) as lines:
        return lines.readline()


def _disregard(_signum: int, _frame: Any) -> None:
    pass


def main() -> None:
    """Say who this is, read the orders (the first line), and serve."""
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        # The end of standard input ends it, after it has cleaned up. A program that it runs gets signals as usual.
        signal.signal(signum, _disregard)
    os.umask(0o077)
    hello = {"hello": VERSION, "host": socket.gethostname(), "pid": os.getpid(), "uid": os.geteuid()}
    os.write(1, json.dumps(hello).encode() + b"\n")
    orders = json.loads(_first_line().decode() or "null")
    if orders is not None:
        Helper(**orders).serve()


if __name__ == "__main__":
    main()
