"""Requests to S3 that obstore cannot make: uploads that create only, versions, Object Lock.

A request is repeated until its deadline, with growing pauses, if it failed on the way or in the server. None is
repeated whose second time could do something else than the first.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import random
import re
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.message import Message
from http import HTTPStatus
from urllib.parse import urlsplit

from vbackup.errors import StorageError, StoreUnreachableError
from vbackup.stores.aws import Endpoint, KeySource
from vbackup.stores.signing import Request, signed_headers

log = logging.getLogger(__name__)

#: How long a request is repeated, how long a server may be silent, and the pauses between.
RETRY_S, SILENCE_S, CONNECT_S = 120.0, 60.0, 10.0
PAUSE_S, MAX_PAUSE_S = 0.1, 8.0
#: More than any answer has that is read here.
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
_BUSY = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
#: Codes with other statuses that say that a request was damaged on the way, or came too late.
_DAMAGED = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InvalidPart",
        "MalformedXML",
        "RequestTimeout",
        "SlowDown",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)


@dataclass(frozen=True)
class Answer:
    """What the server answered."""

    status: int
    headers: Message
    body: bytes

    @property
    def is_done(self) -> bool:
        """True if the request was carried out."""
        return self.status in (HTTPStatus.OK, HTTPStatus.NO_CONTENT)

    @property
    def is_missing(self) -> bool:
        """True if there is nothing of that name."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def is_taken(self) -> bool:
        """True if the key is taken: Amazon's answer, and that of others."""
        return self.status in (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.NOT_MODIFIED)

    @property
    def is_conflict(self) -> bool:
        """True if another request for the same key is being carried out."""
        return self.status == HTTPStatus.CONFLICT

    @property
    def code(self) -> str:
        """S3's word for what is wrong, "" if it has none."""
        return self.element("Code") if self.body else ""

    def element(self, name: str) -> str:
        """Return the text of the first element of this name in the body, "" if there is none."""
        return next(iter(self.elements(name)), "")

    def elements(self, name: str) -> list[str]:
        """Return the texts of all elements of this name in the body, which have no elements in them."""
        text = self.body.decode(errors="replace")
        return [_plain(found) for found in re.findall(rf"<{name}>([^<]*)</{name}>", text)]


def _plain(text: str) -> str:
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#34;", '"'), ("&amp;", "&")):
        text = text.replace(entity, character)
    return text


class S3Requests:
    """Sends signed requests to one bucket; each thread has a connection."""

    def __init__(self, endpoint: Endpoint, bucket: str, keys: KeySource, *, retry_s: float = RETRY_S) -> None:
        parts = urlsplit(endpoint.url)
        self._host = f"{bucket}.{parts.netloc}" if endpoint.is_virtual_hosted else parts.netloc
        self._base = "" if endpoint.is_virtual_hosted else f"/{bucket}"
        self._region = endpoint.region
        self._keys = keys
        self._retry_s = retry_s
        self._tls = ssl.create_default_context(cafile=endpoint.authorities) if endpoint.is_encrypted else None
        self._threads = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._bucket = bucket

    def send(
        self,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | bytearray | memoryview = b"",
        retry_s: float | None = None,
    ) -> Answer:
        """Send a request and return its answer, also one that refuses it. ``key``: "" is the bucket. ``retry_s``: less.

        Raises StoreUnreachableError if there was no answer until the deadline, StorageError if the server only failed.
        """
        retry_s = self._retry_s if retry_s is None else min(retry_s, self._retry_s)
        deadline = time.monotonic() + retry_s
        pause_s = PAUSE_S
        digest = hashlib.sha256(body).hexdigest()
        while True:
            try:
                request = Request(
                    method, f"{self._base}/{key}", query or {}, {"host": self._host, **(headers or {})}, digest
                )
                answer = self._once(request, body)
                why = f"status {answer.status} {answer.code}".rstrip()
                if answer.status not in _BUSY and answer.code not in _DAMAGED:
                    return answer
            except (OSError, http.client.HTTPException) as err:
                self._drop()
                if isinstance(err, ssl.SSLCertVerificationError):
                    raise StoreUnreachableError(
                        self._host, f"its certificate is not valid: {err.verify_message}"
                    ) from err
                answer = None
                why = _words(err)
            wait_s = pause_s * (0.5 + random.random() / 2)  # noqa: S311 - no secret; not all copies at the same time
            if time.monotonic() + wait_s > deadline:
                if answer is None:
                    raise StoreUnreachableError(self._host, why)
                raise StorageError(
                    f"{self._host} failed for {retry_s:.0f} s: {why}. Nothing was stored of it; try again later."
                )
            log.debug("%s %s: %s; again in %.1f s", method, key, why, wait_s)
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def refuse(self, answer: Answer, what: str) -> StorageError:
        """Return the error for an answer that refuses a request. ``what``: what it was to do, after "Cannot"."""
        code = answer.code
        where = answer.headers.get("x-amz-bucket-region")
        if answer.status in (301, 307, 400) and where and where != self._region:
            return StorageError(f"The bucket {self._bucket} is in the region {where}: set AWS_REGION={where}.")
        if code == "NoSuchBucket":
            return StorageError(f"There is no bucket {self._bucket} at {self._host}: create it first.")
        said = answer.element("Message").rstrip(".") or f"status {answer.status}"
        return StorageError(f"Cannot {what}: {self._host} says {f'{code}: ' if code else ''}{said}.")

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._open):
            connection.close()
        self._open.clear()

    def _once(self, request: Request, body: bytes | bytearray | memoryview) -> Answer:
        signed = signed_headers(request, self._keys.current(), self._region, datetime.now(timezone.utc))
        if request.method in ("PUT", "POST"):
            signed["content-length"] = str(len(body))
        target = request.quoted_path + (f"?{request.quoted_query}" if request.query else "")
        connection = self._connection()
        connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in signed.items():
            connection.putheader(name, value)
        connection.endheaders(body or None)
        response = connection.getresponse()
        data = response.read(_MAX_ANSWER_BYTES)
        if response.length:  # of a limited read, http.client does not say that the rest has not come
            raise http.client.IncompleteRead(data, response.length)
        if response.will_close:
            self._drop()
        return Answer(response.status, response.headers, data)

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._threads, "connection", None)
        if connection is None:
            if self._tls is not None:
                connection = http.client.HTTPSConnection(self._host, timeout=CONNECT_S, context=self._tls)
            else:
                connection = http.client.HTTPConnection(self._host, timeout=CONNECT_S)
            connection.connect()
            connection.sock.settimeout(SILENCE_S)
            self._threads.connection = connection
            self._open.add(connection)
        return connection

    def _drop(self) -> None:
        connection = getattr(self._threads, "connection", None)
        if connection is not None:
            connection.close()
            self._open.discard(connection)
            self._threads.connection = None


def _words(err: Exception) -> str:
    if isinstance(err, TimeoutError):
        return "no answer in time"
    if isinstance(err, OSError) and err.strerror:
        return err.strerror
    return str(err) or type(err).__name__
