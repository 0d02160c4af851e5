"""QMP to a domain's QEMU through libvirt: monitor passthrough, guest agent, monitor events.

libvirt goes on using the same monitor; it marks the domain as tainted by custom-monitor, and does not
mind our jobs and nodes. API: https://libvirt.org/html/libvirt-libvirt-qemu.html
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import libvirt_qemu

from vbackup.domain.host import FDS_NOT_PASSED, INTERNAL_ERROR, NO_SUPPORT, SYSTEM_ERROR, DomainHandle, error_code
from vbackup.errors import (
    ConnectionLostError,
    DomainGoneError,
    FdsNotPassedError,
    HostUnreachableError,
    MalformedError,
    MonitorError,
    QmpError,
    UnsuitableError,
)
from vbackup.fields import Fields
from vbackup.qemu.monitor import Event
from vbackup.qemu.reply import parse

log = logging.getLogger(__name__)

#: Job events, as a regular expression for libvirt.
_EVENTS = "^(JOB_STATUS_CHANGE|BLOCK_JOB_ERROR)$"
_REGEX = 1  # VIR_CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX, which the binding does not name
#: QEMU's own refusals come as replies, so an error of the monitor itself is rare and may be looked into this long.
ENDING_S = 2.0
#: Where the socket to QEMU broke there is nothing to doubt: QEMU ends. libvirt knows once the process is gone, which
#: takes as long as the kernel needs to write its core.
BROKEN_OFF_S = 30.0


class Passthrough:
    """A running domain's monitor (see vbackup.qemu.monitor.Monitor). A context manager.

    Connects again by itself at the first call after the connection was lost.
    """

    def __init__(self, handle: DomainHandle) -> None:
        self._handle = handle
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._registered: int | None = None
        self._lost = False
        self._stayed_away = False

    def __enter__(self) -> Passthrough:
        self._register()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._deregister()

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        """See Monitor."""
        request = json.dumps({"execute": command, "arguments": dict(arguments or {})})
        log.debug("%s: %s", self._handle.name, request)
        text = self._call(command, request, fd)
        log.debug("%s: %s", self._handle.name, text)
        return parse(command, text)

    def next_event(self, timeout_s: float) -> Event | None:
        """See Monitor."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def agent(self, command: str, *, timeout_s: int) -> Any:
        """Send a command to the guest agent and return what is behind its "return".

        The library's own virDomainFSFreeze waits for as long as the agent likes; here the wait ends
        after ``timeout_s``. Raises MonitorError where no agent answers, QmpError where it answers with an error.
        """
        self._reconnect_if_lost()
        request = json.dumps({"execute": command})
        try:
            with self._errors(f"guest agent command {command}"):
                text = libvirt_qemu.qemuAgentCommand(self._handle.domain, request, timeout_s, 0)
        except MonitorError as err:
            if error_code(err.__cause__) == INTERNAL_ERROR:
                raise QmpError(command, "GenericError", str(err)) from err
            raise
        return parse(command, text)

    def _call(self, command: str, request: str, fd: int | None) -> str:
        self._reconnect_if_lost()
        if fd is not None and not self._handle.host.passes_fds:
            raise FdsNotPassedError(f"{self._handle.host.real_uri} carries no file descriptors.")
        with self._errors(command, ending_s=ENDING_S):
            if fd is None:
                reply: str = libvirt_qemu.qemuMonitorCommand(self._handle.domain, request, 0)
                return reply
            answer = self._with_fd(request, fd)
            text: str = answer[0] if isinstance(answer, tuple) else answer
            return text

    def _with_fd(self, request: str, fd: int) -> Any:
        try:
            return libvirt_qemu.qemuMonitorCommandWithFiles(self._handle.domain, request, [fd], 0)
        except Exception as err:
            if error_code(err) in FDS_NOT_PASSED:
                raise FdsNotPassedError(str(err)) from err
            raise

    def _reconnect_if_lost(self) -> None:
        if not self._lost:
            return
        log.warning("Domain %s: the connection to libvirt broke; connecting again", self._handle.name)
        try:
            # Once it stayed away for long, what is left to undo tries once each and does not wait as long again.
            self._handle.reconnect(timeout_s=0 if self._stayed_away else None)
        except HostUnreachableError:
            self._stayed_away = True
            raise
        self._lost = self._stayed_away = False
        self._register()

    def _register(self) -> None:
        try:
            with self._errors("the registration for job events"):
                self._registered = libvirt_qemu.qemuMonitorEventRegister(
                    self._handle.host.connection, self._handle.domain, _EVENTS, self._on_event, None, _REGEX
                )
        except MonitorError as err:
            if error_code(err.__cause__) == NO_SUPPORT:
                raise UnsuitableError(
                    f"Domain {self._handle.name} has no QEMU monitor; vbackup backs up domains of QEMU and KVM."
                ) from err
            raise

    def _deregister(self) -> None:
        if self._registered is None or self._lost:
            return
        try:
            with self._errors("the end of job events"):
                libvirt_qemu.qemuMonitorEventDeregister(self._handle.host.connection, self._registered)
        except (ConnectionLostError, DomainGoneError, MonitorError) as err:
            log.debug("deregistering: %s", err)
        self._registered = None

    def _on_event(
        self, _connection: Any, _domain: Any, event: str, _seconds: int, _micros: int, details: str | None, _opaque: Any
    ) -> None:
        """Called in libvirt's event thread: hand the event over and return."""
        try:
            data = json.loads(details or "{}")
            Fields(data, event, MalformedError)
        except (ValueError, MalformedError) as err:
            log.warning("Domain %s: event %s cannot be read: %s", self._handle.name, event, err)
            return
        self._events.put(Event(event, data))

    @contextmanager
    def _errors(self, what: str, *, ending_s: float = 0) -> Iterator[None]:
        """Turn libvirt's errors into ours, telling a lost connection and a stopped domain from the rest."""
        try:
            with self._handle.host.errors(what):
                yield
        except ConnectionLostError:
            self._lost = True
            raise
        except FdsNotPassedError:
            raise
        except MonitorError as err:
            broke_off = ending_s > 0 and error_code(err.__cause__) == SYSTEM_ERROR
            if self._has_ended(within_s=BROKEN_OFF_S if broke_off else ending_s):
                raise DomainGoneError(self._handle.name) from err
            raise

    def _has_ended(self, *, within_s: float) -> bool:
        """A monitor that breaks off is known to libvirt a moment before the domain's end is."""
        deadline = time.monotonic() + within_s
        pause = threading.Event()
        try:
            while self._handle.is_active():
                if time.monotonic() >= deadline:
                    return False
                pause.wait(0.05)
        except (ConnectionLostError, MonitorError) as err:
            log.debug("domain %s: state unknown: %s", self._handle.name, err)
            return False
        return True
