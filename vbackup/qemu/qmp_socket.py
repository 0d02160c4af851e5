"""QMP over a socket: to a QEMU without libvirt, or to a storage daemon. qemu.qmp implements the protocol.

qemu.qmp is asynchronous; its event loop runs in a separate thread, like libvirt's.
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

#: The connection to a QEMU that does not answer a command within this time counts as lost.
TIMEOUT_S = 60.0


class Socket:
    """The monitor (vbackup.qemu.monitor.Monitor) behind a UNIX socket. A context manager.

    ``address`` is the path of the socket, or one end of a socket pair. The first call after a loss reconnects to a
    path. A pair cannot be reconnected; there a late answer does not count as a loss. ``name`` is used in messages
    instead of the address, ``timeout_s`` limits every command. Entering raises ConnectionLostError if nothing answers.
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
        """Execute a QMP command; ``fd`` is sent by SCM_RIGHTS."""
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
            raise MonitorError(f"Cannot send {command} to {self._path}: {err}.") from err

    def next_event(self, timeout_s: float) -> Event | None:
        """Return the next job event that qemu.qmp has delivered."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    async def _connect(self) -> None:
        self._client.register_listener(EventListener(["JOB_STATUS_CHANGE", "BLOCK_JOB_ERROR"], self._on_event))
        try:
            await self._client.connect(self._address)
        except (ConnectError, EOFError) as err:
            raise ConnectionLostError(f"Cannot connect to the QMP socket {self._path}: {err}.") from err

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
            log.debug("%s: disconnecting: %s", self._path, err)  # the reason why the connection had ended

    async def _execute(self, command: str, arguments: Mapping[str, Any] | None, fd: int | None) -> Any:
        if fd is not None:
            self._client.send_fd_scm(fd)  # sent at once; QEMU keeps it for the next command
        return await self._client.execute(command, arguments)

    def _on_event(self, message: Message) -> bool:
        """Queue the event. False keeps it out of qemu.qmp's own queue, which only coroutines can read."""
        data = message.get("data")
        self._events.put(Event(str(message["event"]), data if isinstance(data, dict) else {}))
        return False

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(self._timeout_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            self._lost = isinstance(self._address, str)  # qemu.qmp drops a late answer
            raise ConnectionLostError(f"QEMU at {self._path} did not answer within {self._timeout_s:.0f} s.") from None

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(_end_tasks())
        self._loop.close()


async def _end_tasks() -> None:
    """End what qemu.qmp does in the background, such as disconnecting when the connection has broken."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
