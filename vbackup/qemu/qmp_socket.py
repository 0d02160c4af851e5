"""QMP over a socket: a QEMU without libvirt, or a storage daemon. The protocol is qemu.qmp's.

qemu.qmp is asynchronous; its event loop runs in a thread of its own here, as libvirt's does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import queue
import socket
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError, StateError
from qemu.qmp.events import EventListener
from qemu.qmp.message import Message

from vbackup.errors import ConnectionLostError, MonitorError, QmpError
from vbackup.qemu.monitor import Event

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A QEMU that answers no command within this time is taken for lost.
TIMEOUT_S = 60.0


class Socket:
    """The monitor behind a UNIX socket (see vbackup.qemu.monitor.Monitor). A context manager.

    ``address`` is the socket's path, or one end of a pair. By its path it is connected again at the first
    call after the connection was lost; the end of a pair has none to go back to, and an answer that came
    too late there does not break it. Raises ConnectionLostError where nobody answers.
    """

    def __init__(self, address: str | socket.socket, *, name: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._address = address
        self._path = name or str(address)
        self._timeout_s = timeout_s
        self._client = QMPClient("vbackup")
        self._lost = False
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp-events", daemon=True)

    def __enter__(self) -> Socket:
        self._thread.start()
        try:
            self._run(self._connect())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        try:
            self._run(self._disconnect())
        finally:
            self._stop()

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        """See Monitor."""
        if self._lost:
            self._run(self._connect_again())
        request = json.dumps({"execute": command, "arguments": dict(arguments or {})})
        log.debug("%s: %s", self._path, request)
        try:
            reply = self._run(self._execute(command, arguments, fd))
            log.debug("%s: %s", self._path, json.dumps({"return": reply}))
            return reply
        except ExecuteError as err:
            log.debug("%s: %s", self._path, json.dumps({"error": {"class": err.error_class, "desc": str(err)}}))
            raise QmpError(command, err.error_class, str(err)) from err
        except (ExecInterruptedError, StateError, EOFError, OSError) as err:
            self._lost = True
            raise ConnectionLostError(f"The QMP connection to {self._path} broke during {command}: {err}.") from err
        except QMPError as err:
            raise MonitorError(f"{command} could not be sent to {self._path}: {err}.") from err

    def next_event(self, timeout_s: float) -> Event | None:
        """See Monitor."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    async def _connect(self) -> None:
        self._client.register_listener(EventListener(["JOB_STATUS_CHANGE", "BLOCK_JOB_ERROR"], self._on_event))
        try:
            await self._client.connect(self._address)
        except (ConnectError, EOFError) as err:
            raise ConnectionLostError(f"No QMP connection to {self._path}: {err}.") from err

    async def _connect_again(self) -> None:
        if not isinstance(self._address, str):
            raise ConnectionLostError(f"The QMP connection to {self._path} is broken.")
        await self._disconnect()
        self._client = QMPClient("vbackup")
        await self._connect()
        self._lost = False

    async def _disconnect(self) -> None:
        try:
            await self._client.disconnect()
        except (QMPError, EOFError, OSError) as err:
            log.debug("%s: disconnecting: %s", self._path, err)  # it tells why the connection had ended

    async def _execute(self, command: str, arguments: Mapping[str, Any] | None, fd: int | None) -> Any:
        if fd is not None:
            self._client.send_fd_scm(fd)  # QEMU takes it with the command that follows
        return await self._client.execute(command, arguments)

    def _on_event(self, message: Message) -> bool:
        """Keep the event; qemu.qmp's own queue is for coroutines, so nothing is left in it."""
        data = message.get("data")
        self._events.put(Event(str(message["event"]), data if isinstance(data, dict) else {}))
        return False

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(self._timeout_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            self._lost = isinstance(self._address, str)  # qemu.qmp drops the answer should it still come
            raise ConnectionLostError(f"QEMU at {self._path} did not answer within {self._timeout_s:.0f} s.") from None

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
