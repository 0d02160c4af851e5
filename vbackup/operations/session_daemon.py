"""The storage daemon that serves a session of a domain that is off: it lives as long as the session.

It has the images open only for reading, so nothing is to be undone when it ends, however that happens; its locks keep
the domain from starting meanwhile. A QMP socket in the session's directory reaches it, also if it is on another host:
the session's watcher has the socket there forwarded (vbackup.operations.session_watcher.linked).
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup import names
from vbackup.engine import session_close
from vbackup.errors import ConnectionLostError, VbackupError
from vbackup.process import Process
from vbackup.qemu import storage_daemon
from vbackup.qemu.monitor import Monitor
from vbackup.qemu.storage_daemon import PROGRAM, Survival
from vbackup.report import Reporter
from vbackup.sessions.record import Session
from vbackup.sessions.store import DomainStore

if TYPE_CHECKING:
    from vbackup.remote.link import Link

log = logging.getLogger(__name__)

MONITOR = "qmp.sock"
#: How long the daemon may take to end after each request: it has nothing to store.
END_S = 10.0


def survival(domain: DomainStore, session_id: str, directory: Path) -> Survival:
    """Return how the daemon of a session survives vbackup; ``directory`` has the sockets."""
    return Survival(f"{_prefix(domain)}{session_id}", monitor=directory / MONITOR)


def end_orphans(domain: DomainStore, alive: Collection[str]) -> None:
    """End the daemons of a domain that serve none of the sessions with these ids: their vbackup was killed."""
    prefix = _prefix(domain)
    for pid, mark in storage_daemon.marked():
        if mark.startswith(prefix) and mark[len(prefix) :] not in alive:
            log.debug("the daemon %d of a session that was never begun is ended", pid)
            with suppress(OSError):
                fd = os.pidfd_open(pid)
                try:
                    if (pid, mark) in storage_daemon.marked():  # it is still that process
                        _end(fd)
                finally:
                    os.close(fd)


def _prefix(domain: DomainStore) -> str:
    """Return how the marks of the daemons of a domain's sessions begin: other state directories have others."""
    place = names.place_of(os.fspath(domain.store.directory.absolute()))
    return f"session-{place}-{domain.uuid}-"


@contextmanager
def monitor(session: Session) -> Iterator[Monitor | None]:
    """Yield the daemon of a session, None if it does not answer."""
    from vbackup.qemu.qmp_socket import Socket  # a running domain does without

    directory = session_close.session_directory(session)
    assert directory is not None
    connection = Socket(os.fspath(directory / MONITOR))
    try:
        opened = connection.__enter__()
    except ConnectionLostError as err:
        log.debug("the daemon of session %s does not answer: %s", session.id, err)
        yield None
        return
    try:
        yield opened
    finally:
        connection.__exit__(None, None, None)


def end(
    session: Session, daemon: Monitor | None, reporter: Reporter, *, link: Callable[[], Link] | None = None
) -> bool:
    """End the daemon of a session: by QMP quit, SIGTERM, and SIGKILL last. Return True if it is gone.

    ``link`` returns that to its host, if it is another one. None there: the domain is gone, and the watcher sees to it.
    """
    process = session.internals.daemon if session.internals is not None else None
    if process is None:
        return True
    assert session.internals is not None
    has_ended = _end_there(process, daemon, link) if session.internals.is_linked else _end_here(process, daemon)
    if not has_ended:
        reporter.warning(f"{PROGRAM} of session {session.id} (process {process.pid}) does not end.")
    return has_ended


def _end_there(process: Process, daemon: Monitor | None, link: Callable[[], Link] | None) -> bool:
    """End a daemon on another host."""
    from vbackup.remote.daemon import KeptProcess

    if daemon is not None:
        with suppress(VbackupError):
            daemon.execute("quit")
    if link is None:
        return True
    try:
        there = KeptProcess(link(), process)
        for end_ in (None, there.terminate, there.kill):
            if end_ is not None:
                end_()
            with suppress(subprocess.TimeoutExpired):
                there.wait(END_S)
                return True
    except VbackupError as err:  # the helper of the watcher's connection ends it
        log.debug("%s", err)
    return False


def _end_here(process: Process, daemon: Monitor | None) -> bool:
    """End a daemon on this host."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return True
    try:
        if not process.lives:
            return True  # the pid is another process's by now
        if daemon is not None:
            with suppress(VbackupError):
                daemon.execute("quit")
        return bool(select.select([fd], [], [], END_S)[0]) or _end(fd)
    except ProcessLookupError:
        return True
    finally:
        os.close(fd)


def _end(fd: int) -> bool:
    """Let the process of a descriptor (pidfd) end; return True if it has."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        signal.pidfd_send_signal(fd, signum)
        if select.select([fd], [], [], END_S)[0]:
            return True
    return False
