"""The sockets of pull sessions: a directory for each session that nobody but its owner can enter.

    DIR/<session id>/nbd.sock    a unix socket of the NBD server
    DIR/<session id>/qmp.sock    of the storage daemon, while the domain is off

DIR is /run/vbackup/sessions for root and $XDG_RUNTIME_DIR/vbackup/sessions for others; VBACKUP_SOCKETS names another
one. QEMU has one NBD server, so sessions of one domain have one socket with a name in each of their directories.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from vbackup import names
from vbackup.errors import StorageError, UsageError
from vbackup.files import make_private, storage_errors

ENVIRONMENT = "VBACKUP_SOCKETS"
#: sun_path of sockaddr_un(7), without the zero at its end.
MAX_PATH_BYTES = 107
#: The longest name that a socket gets (vbackup.engine.session_server).
_LONGEST = "stopping.sock"
#: What an NBD server says first, whatever it asks for then.
_GREETING = b"NBDMAGIC"
#: How long QEMU may take to greet; its main loop answers within milliseconds.
_GREETING_S = 5.0
#: How many clients may wait to be accepted.
_BACKLOG = 128
_MAX_PORT = 65535
#: States of sockets in /proc/net/unix: one that listens (SS_UNCONNECTED), and a connection of it (SS_CONNECTED).
LISTENING, CONNECTED = "01", "03"
#: The same in /proc/net/tcp (TCP_LISTEN, TCP_ESTABLISHED).
_LISTENING, _ESTABLISHED = "0A", "01"
#: The column of the path in /proc/net/unix.
_PATH = 7


def default_directory() -> Path:
    """Return where the sockets are. Raises StorageError if this user has no directory for them."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/run/vbackup/sessions")
    home = os.environ.get("XDG_RUNTIME_DIR")
    if not home:
        raise StorageError(
            f"There is no directory for the socket of a session: XDG_RUNTIME_DIR is not set. Set it, or {ENVIRONMENT}."
        )
    return Path(home) / "vbackup" / "sessions"


def path_of(directory: Path, session_id: str) -> Path:
    """Return the directory of a session's sockets. Raises UsageError if its path is too long for them."""
    path = directory.absolute() / session_id
    longest = path / _LONGEST
    if len(os.fsencode(longest)) > MAX_PATH_BYTES:
        raise UsageError(
            f"The path {longest} is too long for a socket, which has {MAX_PATH_BYTES} bytes: name a shorter directory"
            f" with {ENVIRONMENT}."
        )
    return path


def make_directory(path: Path) -> None:
    """Make the directory of a session's sockets, and those above it. Raises StorageError."""
    with storage_errors(f"make the directory {path}"):
        make_private(path.parent)
        path.mkdir(mode=0o700)


def remove_directory(directory: Path) -> None:
    """Remove the directory of a session with what is in it. Raises StorageError."""
    if not names.SESSION_ID.fullmatch(directory.name):
        raise StorageError(f"{directory} is not the directory of a session.")
    import shutil  # which looking for sessions does without

    with storage_errors(f"remove {directory}"), suppress(FileNotFoundError):
        shutil.rmtree(directory)


def listen_unix(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``, to which only its owner can connect. Raises StorageError."""
    with storage_errors(f"listen on {path}"):
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.bind(os.fspath(path))
            path.chmod(0o600)
            made.listen(_BACKLOG)
        except BaseException:
            made.close()
            raise
    return made


def listen_tcp(address: str) -> socket.socket:
    """Return a socket that listens at HOST:PORT ([HOST]:PORT for IPv6). Raises UsageError, StorageError."""
    host, port = split_address(address)
    with storage_errors(f"listen on {address}"):
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except socket.gaierror as err:
            raise UsageError(f"{host!r} is no address of this host: {err.strerror}.") from err
        family, kind, protocol, _, where = found[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(where)
            made.listen(_BACKLOG)
        except BaseException:
            made.close()
            raise
    return made


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT. Raises UsageError."""
    host, colon, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isdecimal() or not 0 < int(port) <= _MAX_PORT:
        raise UsageError(f"{address!r} is not HOST:PORT, such as 192.0.2.7:10809 or [2001:db8::7]:10809.")
    return host, int(port)


def is_served(path: Path) -> bool:
    """Return True if an NBD server greets at this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        return _greets(asking, os.fspath(path))


def is_served_at(address: str) -> bool:
    """Return True if an NBD server greets at HOST:PORT. Raises UsageError."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as asking:
        return _greets(asking, (host, port))


def _greets(asking: socket.socket, address: str | tuple[str, int]) -> bool:
    asking.settimeout(_GREETING_S)
    try:
        asking.connect(address)
        return asking.recv(len(_GREETING), socket.MSG_WAITALL) == _GREETING
    except OSError:
        return False


def has_connections(path: Path) -> bool:
    """Return True if a server has accepted connections of a unix socket that it bound at this path.

    The kernel shows them under that path (proc_net_unix), also when the name is gone or was given a second name.
    """
    return _has_unix(path, CONNECTED)


def has_tcp_connections(address: str) -> bool:
    """Return True if somebody on this host has accepted connections at the port of HOST:PORT. Raises UsageError."""
    return _has_tcp(address, _ESTABLISHED)


def is_open(path: Path) -> bool:
    """Return True as long as a process has the unix socket open that was bound at this path; nothing is sent there."""
    return _has_unix(path, LISTENING)


def is_open_at(address: str) -> bool:
    """Return True as long as somebody on this host listens at the port of HOST:PORT; nothing is sent there.

    Raises UsageError.
    """
    return _has_tcp(address, _LISTENING)


def _has_unix(path: Path, state: str) -> bool:
    wanted = os.fsencode(path)
    with Path("/proc/net/unix").open("rb") as lines:
        for line in lines:
            words = line.rstrip(b"\n").split(None, _PATH)  # Num RefCount Protocol Flags Type St Inode Path
            if words[_PATH:] == [wanted] and words[5] == state.encode():
                return True
    return False


def _has_tcp(address: str, state: str) -> bool:
    _, port = split_address(address)
    for name in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", name).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            words = line.split()
            if words[3] == state and int(words[1].rpartition(":")[2], 16) == port:
                return True
    return False
