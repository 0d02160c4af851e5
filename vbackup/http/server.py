"""Serve the disks of a session over HTTPS, with aiohttp: maps of their extents, and their data.

One thread runs the event loop: TLS, tokens, sockets. What waits for QEMU runs in other threads, one per request, with a
connection to QEMU that ends with the request. Of a disk only the next piece is read while one is being sent, so a slow
client takes two pieces of memory, and a client that takes none for a while is dropped.

Why aiohttp, and no ASGI server: a handler gets at the connection, and can end it when a client stalls or the disk
cannot be read any further. An ASGI application can only return, and the server then waits for that client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, Union

from aiohttp import web

from vbackup.errors import ChainError, UsageError, VbackupError
from vbackup.http import ranges
from vbackup.http.access import Token
from vbackup.http.ranges import BadRequestError, BeyondEndError, Span
from vbackup.http.served import Reader, ServedDisk, ServedSession, Watch
from vbackup.stop import Stop

LOGGER = logging.getLogger(__name__)
#: The body of an answer that is an error.
ERROR_SCHEMA = "vbackup.httperror/1"
#: How much of a disk is read and sent at a time.
PIECE_BYTES = 1024 * 1024
#: Requests for maps that are answered at once, and connections beside those of the readers.
MAX_MAPS, MAX_IDLE = 4, 32
#: How often a read that waits for QEMU looks whether its client is still there.
_LOOK_S = 1.0
_FEATURES = ("map", "data")
#: Header of answers: without versions of Python and aiohttp.
_NAME = "vbackup"
_ZEROS = bytes(PIECE_BYTES)
_Content = Union[bytes, bytearray, memoryview]
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Limits:
    """What clients may do."""

    max_readers: int = 8  #: requests for data at once
    stall_s: float = 60.0  #: to take a piece
    begin_s: float = 15.0  #: for the TLS handshake, and for the first request after it
    idle_s: float = 30.0  #: between two requests on a connection
    linger_s: float = 0.0  #: how long clients still hear that the session has ended


class _RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, code: str, message: str, *, retry: str, headers: dict[str, str]) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.document = {"schema": ERROR_SCHEMA, "error": {"code": code, "message": message, "retry": retry}}


def _refused(status: int, code: str, message: str, *, retry: str = "never", **headers: str) -> _RefusedError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return _RefusedError(status, code, message, retry=retry, headers=named)


def serve(
    session: ServedSession,
    listening: socket.socket,
    *,
    tls: ssl.SSLContext,
    token: Token,
    limits: Limits,
    stop: Stop,
    on_ready: Callable[[], None],
) -> None:
    """Serve until a stop is requested, or the session has ended. ``on_ready`` is called when clients can connect.

    Raises VbackupError if the session cannot be watched.
    """
    asyncio.run(_Server(session, tls=tls, token=token, limits=limits).run(listening, stop, on_ready))


class _Server:
    def __init__(self, session: ServedSession, *, tls: ssl.SSLContext, token: Token, limits: Limits) -> None:
        self._session, self._tls, self._token, self._limits = session, tls, token, limits
        self._ended: str | None = None  #: what has become of the session
        self._readers: set[Reader] = set()
        self._opening = 0  #: readers that are not connected yet
        self._maps = 0
        self._silent: set[asyncio.BaseProtocol] = set()  #: connections that have sent no request yet

    async def run(self, listening: socket.socket, stop: Stop, on_ready: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_exception)
        protocol_log = LOGGER.getChild("protocol")
        protocol_log.setLevel(logging.CRITICAL)  # or each client that sends nonsense has a traceback on the terminal
        self._web = web.Server(
            self._handle, access_log=None, logger=protocol_log, keepalive_timeout=self._limits.idle_s
        )
        stopped = asyncio.Event()
        with ExitStack() as stack:
            self._pool = stack.enter_context(ThreadPoolExecutor(self._limits.max_readers + MAX_MAPS + 1))
            watch = stack.enter_context(self._session.watch())
            loop.add_reader(stack.enter_context(stop.descriptor()), stopped.set)
            server = await loop.create_server(
                self._connected, sock=listening, ssl=self._tls, ssl_handshake_timeout=self._limits.begin_s
            )
            try:
                on_ready()
                await self._until_the_end(watch, stopped)
            finally:
                server.close()
                self._end_readers()
                await self._web.shutdown(timeout=1.0)

    async def _until_the_end(self, watch: Watch, stopped: asyncio.Event) -> None:
        stopping, ending = asyncio.ensure_future(stopped.wait()), asyncio.ensure_future(self._end_of_session(watch))
        try:
            await asyncio.wait({stopping, ending}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done() and not stopping.done():
                self._ended = ending.result()
                self._end_readers()
                await asyncio.wait({stopping}, timeout=self._limits.linger_s)
        finally:
            for task in (stopping, ending):
                task.cancel()
            await asyncio.gather(stopping, ending, return_exceptions=True)

    async def _end_of_session(self, watch: Watch) -> str:
        """Return what has become of the session, once it has ended."""
        changed, has_closed = asyncio.Event(), False
        loop = asyncio.get_running_loop()
        loop.add_reader(watch.fileno(), changed.set)
        try:
            while True:
                state = await self._in_thread(self._session.state)
                if state.left_s <= 0 or has_closed:
                    return state.reason
                with contextlib.suppress(asyncio.TimeoutError):  # it may have been renewed
                    await asyncio.wait_for(changed.wait(), state.left_s)
                changed.clear()
                has_closed = watch.has_ended()
        finally:
            loop.remove_reader(watch.fileno())
            watch.shut_down()  # QEMU's server may wait for its last client

    # connections

    def _connected(self) -> asyncio.BaseProtocol:
        """Return the protocol of a connection whose TLS handshake is done."""
        if len(self._web.connections) >= self._limits.max_readers + MAX_MAPS + MAX_IDLE:
            return _Refusing()
        protocol = self._web()
        self._silent.add(protocol)
        asyncio.get_running_loop().call_later(self._limits.begin_s, self._end_if_silent, protocol)
        return protocol

    def _end_if_silent(self, protocol: web.RequestHandler) -> None:
        if protocol in self._silent:
            self._silent.discard(protocol)
            if isinstance(protocol.transport, asyncio.Transport):
                protocol.transport.abort()

    def _end_readers(self) -> None:
        for reader in self._readers:
            reader.shut_down()

    async def _in_thread(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    # requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        try:
            response = await self._answered(request)
        except _RefusedError as err:
            response = web.json_response(err.document, status=err.status, headers=err.headers)
            if err.status == web.HTTPUnauthorized.status_code:
                response.force_close()
        if not response.prepared:
            response.headers["Server"] = _NAME
        LOGGER.debug("%s %s from %s: %d", request.method, request.path, request.remote, response.status)
        return response

    async def _answered(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self._token.admits(request.headers):
            raise _refused(401, "UNAUTHORIZED", "The token is missing or wrong.", WWW_Authenticate="Bearer")
        if request.method == "OPTIONS":
            features = {"features": _FEATURES, "max_readers": self._limits.max_readers, "max_writers": 0}
            return web.json_response({**features, "unix_socket": None}, headers={"Allow": "GET, HEAD, OPTIONS"})
        if self._ended is not None:
            raise _refused(410, "SESSION_ENDED", self._ended, retry="begin")
        _, dev, what = [*request.path.split("/", 2), "", ""][:3]
        disk = self._session.disks.get(dev)
        if disk is None or what not in _FEATURES:
            raise _refused(404, "NOT_FOUND", f"There is /DISK/map and /DISK/data of: {', '.join(self._session.disks)}.")
        if request.method not in (("GET",) if what == "map" else ("GET", "HEAD")):
            raise _refused(405, "METHOD_NOT_ALLOWED", "This is read-only.", Allow="GET, HEAD, OPTIONS")
        return await self._of_disk(disk, request, self._map if what == "map" else self._data)

    async def _of_disk(
        self,
        disk: ServedDisk,
        request: web.BaseRequest,
        answer: Callable[[web.BaseRequest, ServedDisk], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        try:
            return await answer(request, disk)
        except (BadRequestError, UsageError) as err:
            raise _refused(400, "BAD_REQUEST", str(err)) from err
        except BeyondEndError as err:
            raise _refused(416, "BEYOND_END", str(err), Content_Range=f"bytes */{disk.size_bytes}") from err
        except ChainError as err:
            raise _refused(404, "CHECKPOINT_UNKNOWN", str(err), retry="full") from err
        except VbackupError as err:
            state = await self._in_thread(self._session.state)
            if state.left_s <= 0:
                raise _refused(410, "SESSION_ENDED", state.reason, retry="begin") from err
            raise _refused(500, "READ_FAILED", str(err), retry="later") from err

    async def _map(self, request: web.BaseRequest, disk: ServedDisk) -> web.StreamResponse:
        query = ranges.map_query(request.query, disk.size_bytes)
        if self._maps >= MAX_MAPS:
            raise _refused(503, "TOO_MANY_MAPS", f"{MAX_MAPS} maps are being made.", retry="later", Retry_After="1")
        self._maps += 1
        try:
            return web.json_response(await self._in_thread(disk.extents, query))
        finally:
            self._maps -= 1

    async def _data(self, request: web.BaseRequest, disk: ServedDisk) -> web.StreamResponse:
        span = ranges.span(request.headers.get("Range"), request.query, disk.size_bytes)
        response = web.StreamResponse(status=206 if span.is_part else 200)
        response.content_type = "application/octet-stream"
        response.content_length = span.length_bytes
        response.headers.update({"Accept-Ranges": "bytes", "Cache-Control": "no-store", "Server": _NAME})
        if span.is_part:
            response.headers["Content-Range"] = f"bytes {span.content_range}/{disk.size_bytes}"
        if request.method == "HEAD" or not span.length_bytes:
            return response
        try:
            async with self._reading(disk) as reader:
                await self._send(request, response, reader, span)
        except (VbackupError, ConnectionError) as err:
            if not response.prepared:
                raise
            # What was promised cannot be kept; the client sees it by the length.
            LOGGER.debug("%s ended early: %s", request.path, err)
            _abort(request)
        return response

    @asynccontextmanager
    async def _reading(self, disk: ServedDisk) -> AsyncIterator[Reader]:
        """Connect a reader, which is one of those that there may be, for the length of the block."""
        limit = self._limits.max_readers
        if len(self._readers) + self._opening >= limit:
            message = f"{limit} readers are connected, and there may be no more."
            raise _refused(503, "TOO_MANY_READERS", message, retry="later", Retry_After="1")
        stack = ExitStack()
        self._opening += 1
        try:
            reader = await self._in_thread(stack.enter_context, disk.reader())
        finally:
            self._opening -= 1
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            await self._in_thread(stack.close)

    async def _send(self, request: web.BaseRequest, response: web.StreamResponse, reader: Reader, span: Span) -> None:
        """Send the range; while a piece is sent, the next one is read. Raises VbackupError, ConnectionError."""
        at, end = span.start_bytes, span.start_bytes + span.length_bytes
        reading: asyncio.Future[_Content] | None = self._next(reader, at, end)
        try:
            while reading is not None:
                content = await _of_client(reading, request)
                at += len(content)
                reading = self._next(reader, at, end)
                if not response.prepared:
                    await response.prepare(request)  # only now: an error before is an answer
                await self._write(request, response, content)
        finally:
            if reading is not None and not reading.done():
                reader.shut_down()
            if reading is not None:
                await asyncio.wait({reading})
                reading.exception()
        await response.write_eof()

    def _next(self, reader: Reader, at: int, end: int) -> asyncio.Future[_Content] | None:
        if at >= end:
            return None
        return asyncio.ensure_future(self._in_thread(_piece, reader, at, min(PIECE_BYTES, end - at)))

    async def _write(self, request: web.BaseRequest, response: web.StreamResponse, content: _Content) -> None:
        try:
            await asyncio.wait_for(response.write(content), self._limits.stall_s)
        except asyncio.TimeoutError:
            _abort(request)
            raise ConnectionResetError(f"it took nothing for {self._limits.stall_s:.0f} s") from None


class _Refusing(asyncio.Protocol):
    """Ends a connection of which there are too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """End it."""
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


async def _of_client(reading: asyncio.Future[_Content], request: web.BaseRequest) -> _Content:
    """Return what is read. Raises what the reading raises, and ConnectionResetError if its client has gone."""
    while True:
        done, _ = await asyncio.wait({reading}, timeout=_LOOK_S)
        if done:
            return reading.result()
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client has gone")


def _piece(reader: Reader, start_bytes: int, length_bytes: int) -> _Content:
    """Return the content of a range of at most PIECE_BYTES."""
    pieces = list(reader.read(start_bytes, length_bytes))
    if len(pieces) == 1:
        [(_, _, data)] = pieces
        return memoryview(_ZEROS)[:length_bytes] if data is None else data
    content = bytearray(length_bytes)
    for offset, piece_bytes, data in pieces:
        if data is not None:
            content[offset - start_bytes : offset - start_bytes + piece_bytes] = data
    return content


def _abort(request: web.BaseRequest) -> None:
    """Close the connection without sending what is still to be sent."""
    if request.transport is not None:
        request.transport.abort()


def _log_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    LOGGER.debug("a connection ended: %s (%s)", context.get("message"), context.get("exception"))
