"""A process that ends a session: when it expires, QEMU ends, its scratch directory gets full, or begin is killed.

    __init__    starts the process
    __main__    the entry point of the process: sets sys.path, then runs process.main
    process     watches, and ends the session

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

from vbackup.domain.host import Host
from vbackup.process import Process
from vbackup.report import Reporter
from vbackup.sessions.record import Note, Session
from vbackup.sessions.store import DomainStore

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("__main__.py")
#: How long the process may take to say that it runs; usually a fraction of a second.
READY_S = 10.0


def start(session: Session, domain: DomainStore, *, host: Host, reserve_bytes: int, reporter: Reporter) -> Session:
    """Start the watcher of a session that has a record; return the session with it.

    That it cannot be started is a warning. Raises StorageError, NoSpaceError if the record cannot be written.

    ``reserve_bytes``: the free space in the scratch directory below which the session has to end. A libvirt driver that
    runs in this process has no watcher: no other process can use it meanwhile.
    """
    if host.is_embedded:
        return _without(session, domain, "libvirt's driver runs in vbackup", reporter)
    orders = {
        "sys_path": [os.fspath(Path(path).absolute()) for path in sys.path],
        "session_id": session.id,
        "directory": os.fspath(domain.store.directory.absolute()),
        "uri": host.real_uri,
        "reserve_bytes": reserve_bytes,
    }
    try:
        # setsid --fork: it is not our child, for whose end we would have to wait, nor of our process group.
        process = subprocess.Popen(
            # Run by path and isolated (-I): it imports only from this process's sys.path, which the orders contain.
            ["setsid", "--fork", sys.executable, "-I", os.fspath(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        said, _ = process.communicate(json.dumps(orders).encode(), timeout=READY_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        said = b""
    except OSError as err:
        return _without(session, domain, f"setsid cannot be started: {err.strerror}", reporter)
    watcher = Process.of(int(said)) if said.strip().isdigit() else None
    if watcher is None:
        return _without(session, domain, f"{sys.executable or 'Python'} did not start it", reporter)
    assert session.internals is not None
    return domain.write(replace(session, internals=replace(session.internals, watcher=watcher)))


def _without(session: Session, domain: DomainStore, why: str, reporter: Reporter) -> Session:
    message = f"Nobody ends session {session.id} when it expires, until the next command of vbackup for it: {why}."
    reporter.warning(message)
    return domain.write(replace(session, warnings=(*session.warnings, Note("NO_WATCHER", message))))
