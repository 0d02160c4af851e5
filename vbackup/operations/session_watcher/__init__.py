"""A process that ends a session whose time is up, or whose scratch directory gets full, if nobody else does.

    __init__    starts the process
    __main__    the entry point of the process: sets sys.path, then runs process.main
    process     watches, and ends the session

The scratch image of a client that has died would grow for ever. The process needs little: it looks at the session's
record and at the free space each second, and connects to libvirt only to end the session. A watcher that is killed
costs time alone: whoever comes next finds the session expired, and no error of the scratch directory reaches the guest
(vbackup.engine.session_scratch).
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
from vbackup.sessions.store import DomainStore, Store

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("__main__.py")


def start(
    session: Session, domain: DomainStore, *, host: Host, store: Store, reserve_bytes: int, reporter: Reporter
) -> Session:
    """Start the watcher of a session that is open; return the session with it. Never fails.

    ``reserve_bytes``: the free space in the scratch directory below which the session has to end. A libvirt driver that
    runs in this process has no watcher: no other process can use it meanwhile.
    """
    if host.is_embedded:
        return _without(session, domain, "libvirt's driver runs in vbackup", reporter)
    orders = {
        "sys_path": [os.fspath(Path(path).absolute()) for path in sys.path],
        "session_id": session.id,
        "directory": os.fspath(store.directory.absolute()),
        "uri": host.real_uri,
        "reserve_bytes": reserve_bytes,
    }
    try:
        process = subprocess.Popen(
            # Run by path and isolated (-I): it imports only from this process's sys.path, which the orders contain.
            [sys.executable, "-I", os.fspath(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to vbackup's process group must not end it
            cwd="/",
        )
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(json.dumps(orders).encode())
    except OSError as err:
        return _without(session, domain, f"{sys.executable or 'Python'} cannot be started: {err.strerror}", reporter)
    _LEFT.append(process)
    assert session.internals is not None
    return domain.write(replace(session, internals=replace(session.internals, watcher=Process.of(process.pid))))


def _without(session: Session, domain: DomainStore, why: str, reporter: Reporter) -> Session:
    message = f"Nobody ends session {session.id} when it expires, until the next command of vbackup for it: {why}."
    reporter.warning(message)
    return domain.write(replace(session, warnings=(*session.warnings, Note("NO_WATCHER", message))))


#: Processes that go on alone. A Popen that is garbage-collected while its process runs gives a ResourceWarning.
_LEFT: list[subprocess.Popen[bytes]] = []
