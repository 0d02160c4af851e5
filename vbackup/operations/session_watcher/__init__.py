"""A process that ends a session: when it expires, QEMU ends, its scratch directory gets full, or begin is killed.

    __init__    starts the process
    __main__    the entry point of the process: sets sys.path, then runs process.main
    process     watches, and ends the session
    linked      the SSH connection through which it has the NBD server forwarded from another host

The scratch image of a client that has died would grow for ever. The process needs little: it looks at the session's
record, the socket and the free space each second, and connects to libvirt only to end the session. A watcher that is
killed costs time alone: whoever comes next finds the session expired, and no error of the scratch directory reaches the
guest (vbackup.engine.session_scratch).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vbackup.domain.host import Host
from vbackup.errors import MalformedError, RemoteError
from vbackup.operations.session_watcher import linked
from vbackup.process import Process
from vbackup.report import Reporter
from vbackup.sessions.record import Note, Session
from vbackup.sessions.store import DomainStore

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("__main__.py")
#: How long the process may take to say that it runs; usually a fraction of a second.
READY_S = 10.0
#: The same with an SSH connection to make, and what one that was lost has left there to be cleaned up first.
LINKED_READY_S = 150.0


def start(session: Session, domain: DomainStore, *, host: Host, reserve_bytes: int, reporter: Reporter) -> Session:
    """Start the watcher of a session that has a record; return the session with it.

    That it cannot be started is a warning. Raises StorageError, NoSpaceError if the record cannot be written.

    ``reserve_bytes``: the free space in the scratch directory below which the session has to end. A libvirt driver that
    runs in this process has no watcher: no other process can use it meanwhile.
    """
    if host.is_embedded:
        return _without(session, domain, "libvirt's driver runs in vbackup", reporter)
    try:
        said = _started(_orders(session, domain, host.real_uri, reserve_bytes), limit_s=READY_S)
    except OSError as err:
        return _without(session, domain, f"setsid cannot be started: {err.strerror}", reporter)
    watcher = Process.of(int(said)) if said.strip().isdigit() else None
    if watcher is None:
        return _without(session, domain, f"{sys.executable or 'Python'} did not start it", reporter)
    assert session.internals is not None
    return domain.write(replace(session, internals=replace(session.internals, watcher=watcher)))


def start_linked(
    session: Session, domain: DomainStore, *, host: Host, order: linked.Order, reserve_bytes: int
) -> tuple[Session, linked.Answer]:
    """Start the watcher of a session on another host, which has its NBD server forwarded by SSH (``linked``).

    Returns the session with it, and its answer with the paths of sockets on this host. Without the watcher there is no
    session: raises ForwardingError if sshd there does not allow it, BusyError or UnsuitableError if the domain is off
    and a storage daemon there cannot have its disks, RemoteError, and what ``start`` raises.
    """
    orders = {**_orders(session, domain, host.real_uri, reserve_bytes), "link": order.document()}
    name = host.link().host
    try:
        answer = linked.Answer.read(_started(orders, limit_s=LINKED_READY_S))
    except (OSError, MalformedError) as err:
        reason = err.strerror or str(err) if isinstance(err, OSError) else "it did not start"
        raise RemoteError(name, "have the process that holds the SSH connection", reason) from err
    watcher = answer.watcher(name)
    assert session.internals is not None
    internals = replace(
        session.internals, watcher=watcher, server=answer.server, there=answer.there, daemon=answer.daemon
    )
    return domain.write(replace(session, internals=internals)), answer


def _orders(session: Session, domain: DomainStore, uri: str, reserve_bytes: int) -> dict[str, Any]:
    return {
        "sys_path": [os.fspath(Path(path).absolute()) for path in sys.path],
        "session_id": session.id,
        "directory": os.fspath(domain.store.directory.absolute()),
        "uri": uri,
        "reserve_bytes": reserve_bytes,
    }


def _started(orders: dict[str, Any], *, limit_s: float) -> bytes:
    """Start the process, and return what it says when it is ready; b"" if it says nothing in that time."""
    # setsid --fork: it is not our child, for whose end we would have to wait, nor of our process group.
    process = subprocess.Popen(
        # Run by path and isolated (-I): it imports only from this process's sys.path, which the orders contain.
        ["setsid", "--fork", sys.executable, "-I", os.fspath(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        said, _ = process.communicate(json.dumps(orders).encode(), timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return b""
    return said


def _without(session: Session, domain: DomainStore, why: str, reporter: Reporter) -> Session:
    message = f"Nobody ends session {session.id} when it expires, until the next command of vbackup for it: {why}."
    reporter.warning(message)
    return domain.write(replace(session, warnings=(*session.warnings, Note("NO_WATCHER", message))))
