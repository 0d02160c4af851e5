"""Azure Blob Storage: as much of its REST API as obstore uses, in memory; or Azurite, Microsoft's own emulator.

Azurite is a program for Node, which neither Debian nor PyPI has. VBACKUP_AZURITE names the program ``azurite-blob``
(``npm install azurite``) that shall take the place of the server here.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import http.client
import os
import re
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from tests.http_server import Answer, Request, served
from vbackup.stores import cloud_kinds
from vbackup.stores.settings import Settings
from vbackup.stores.store import Store

ACCOUNT = "devstoreaccount1"
#: The key that Azurite has for everybody.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
AZURITE = os.environ.get("VBACKUP_AZURITE")
_CONDITIONS = ("if-modified-since", "if-match", "if-none-match", "if-unmodified-since")
_META = "x-ms-meta-"
_START_S = 60


@dataclass
class Azure:
    """A running server."""

    endpoint: str = ""
    container: str = field(default_factory=lambda: f"tests-{uuid.uuid4().hex}")
    seen: list[Request] = field(default_factory=list)
    retains: bool = False  #: a policy of the container forbids every deletion
    #: A copy is done when its blob was asked for so often, and fails if its source is removed before.
    copies_after: int = 0

    def settings(self) -> Mapping[str, str]:
        """Return what the environment has to be for the container."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.endpoint}/{ACCOUNT}",
        }

    def store(self) -> Store:
        """Return a store with a new prefix in the container."""
        return cloud_kinds.opened("az", self.container, f"copies/{uuid.uuid4().hex}", Settings(self.settings(), {}))


@contextlib.contextmanager
def server(directory: Path) -> Iterator[Azure]:
    """Start a server with a container. ``directory``: for Azurite."""
    azure = Azure()
    if AZURITE is None:
        with served(_Blobs(azure).answer) as azure.endpoint:
            yield azure
        return
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port = tried.getsockname()[1]
    azure.endpoint = f"http://127.0.0.1:{port}"
    argv = [AZURITE, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", os.fspath(directory)]
    argv += ["--skipApiVersionCheck", "--silent", "--disableTelemetry"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, cwd=directory) as process:
        try:
            deadline = time.monotonic() + _START_S
            while not _listens(port):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            _make_container(azure)
            yield azure
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _signature(method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """Return what Azure wants as authorization (Shared Key). ``headers``: names in lower case."""
    length = headers.get("content-length", "")
    lines = [method, *(headers.get(name, "") for name in ("content-encoding", "content-language"))]
    lines += ["" if length == "0" else length]
    lines += [headers.get(name, "") for name in ("content-md5", "content-type", "date", *_CONDITIONS, "range")]
    lines += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("x-ms-")]
    lines += [f"/{ACCOUNT}{quote(path)}", *(f"{name}:{query[name]}" for name in sorted(query))]
    digest = hmac.digest(base64.b64decode(KEY), "\n".join(lines).encode(), "sha256")
    return f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"


def _make_container(azure: Azure) -> None:
    """Make the container, for which obstore has no request."""
    path, query = f"/{ACCOUNT}/{azure.container}", {"restype": "container"}
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    headers["authorization"] = _signature("PUT", path, query, headers)
    connection = http.client.HTTPConnection(azure.endpoint.partition("://")[2], timeout=30)
    connection.request("PUT", f"{path}?restype=container", headers=headers)
    answer = connection.getresponse()
    assert answer.status == HTTPStatus.CREATED, answer.read()
    connection.close()


@dataclass
class _Blob:
    content: bytes
    metadata: Mapping[str, str]
    etag: str = field(default_factory=lambda: f'"0x{uuid.uuid4().hex[:15].upper()}"')
    modified: float = field(default_factory=time.time)
    source: str | None = None  #: of a copy that is not done
    asked: int = 0

    @property
    def headers(self) -> dict[str, str]:
        return {"etag": self.etag, "last-modified": formatdate(self.modified, usegmt=True)}


class _Blobs:
    def __init__(self, azure: Azure) -> None:
        self._azure = azure
        self._blobs: dict[str, _Blob] = {}
        self._blocks: dict[str, dict[str, bytes]] = {}
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Answer:
        self._azure.seen.append(request)
        wanted = _signature(request.method, request.path, request.query, request.headers)
        if request.headers.get("authorization") != wanted:
            return _refused(HTTPStatus.FORBIDDEN, "AuthenticationFailed")
        _, account, container, *names = request.path.split("/", 3)
        if (account, container) != (ACCOUNT, self._azure.container):
            return _refused(HTTPStatus.NOT_FOUND, "ContainerNotFound")
        with self._lock:
            if not names:
                return self._batch(request) if request.query.get("comp") == "batch" else self._list(request)
            if request.method == "PUT":
                return self._put(request, names[0])
            if request.method == "DELETE":
                return self._delete(names[0])
            return self._get(request, names[0])

    def _put(self, request: Request, name: str) -> Answer:
        what = request.query.get("comp")
        if what == "block":
            self._blocks.setdefault(name, {})[request.query["blockid"]] = request.body
            return Answer(HTTPStatus.CREATED)
        if request.headers.get("if-none-match") == "*" and name in self._blobs:
            return _refused(HTTPStatus.CONFLICT, "BlobAlreadyExists")
        metadata = {key: value for key, value in request.headers.items() if key.startswith(_META)}
        source = request.headers.get("x-ms-copy-source")
        if source is not None:
            return self._copy(name, source.partition(f"/{self._azure.container}/")[2])
        content = request.body
        if what == "blocklist":
            blocks = self._blocks.pop(name, {})
            content = b"".join(blocks[each] for each in re.findall(r"<Uncommitted>([^<]*)<", request.body.decode()))
        self._blobs[name] = _Blob(content, metadata)
        return Answer(HTTPStatus.CREATED, self._blobs[name].headers)

    def _copy(self, name: str, source: str) -> Answer:
        if source not in self._blobs:
            return _refused(HTTPStatus.NOT_FOUND, "BlobNotFound")
        self._blobs[name] = _Blob(b"", self._blobs[source].metadata, source=source)
        if not self._azure.copies_after:
            self._finish(self._blobs[name])
        status = "pending" if self._azure.copies_after else "success"
        return Answer(HTTPStatus.ACCEPTED, {**self._blobs[name].headers, "x-ms-copy-status": status})

    def _finish(self, blob: _Blob) -> None:
        assert blob.source is not None
        if blob.source in self._blobs:  # else the copy has failed, and stays empty
            blob.content = self._blobs[blob.source].content
            blob.source = None

    def _get(self, request: Request, name: str) -> Answer:
        blob = self._blobs.get(name)
        if blob is None:
            return _refused(HTTPStatus.NOT_FOUND, "BlobNotFound", has_body=request.method != "HEAD")
        if blob.source is not None:
            blob.asked += 1
            if blob.asked >= self._azure.copies_after:
                self._finish(blob)
        headers = {**blob.headers, **blob.metadata}
        if request.headers.get("if-match", blob.etag) != blob.etag:
            return _refused(HTTPStatus.PRECONDITION_FAILED, "ConditionNotMet")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", request.headers.get("x-ms-range", "")))
        if wanted is None:
            return Answer(HTTPStatus.OK, {**headers, "content-length": str(len(blob.content))}, blob.content)
        start, size = int(wanted[1]), len(blob.content)
        if start >= size:
            return _refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "InvalidRange")
        end = min(size, int(wanted[2]) + 1 if wanted[2] else size)
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
        return Answer(
            HTTPStatus.PARTIAL_CONTENT, {**headers, "content-length": str(end - start)}, blob.content[start:end]
        )

    def _delete(self, name: str) -> Answer:
        if name not in self._blobs:
            return _refused(HTTPStatus.NOT_FOUND, "BlobNotFound")
        if self._azure.retains:
            return _refused(HTTPStatus.CONFLICT, "BlobImmutableDueToPolicy")
        del self._blobs[name]
        return Answer(HTTPStatus.ACCEPTED)

    def _batch(self, request: Request) -> Answer:
        """Answer a batch of deletions, each of which is signed by itself, and has a status of its own."""
        parts = []
        for number, url, lines in re.findall(
            r"Content-ID: (\d+)\r\n\r\nDELETE (\S+) HTTP/1.1\r\n(.*?)\r\n\r\n", request.body.decode(), re.DOTALL
        ):
            headers = {name.lower(): value for name, value in re.findall(r"([^:\r\n]+): ([^\r\n]*)", lines)}
            path = unquote(url)
            answer = self._delete(path.split("/", 3)[3])
            if headers.get("authorization") != _signature("DELETE", path, {}, headers):
                answer = _refused(HTTPStatus.FORBIDDEN, "AuthenticationFailed")
            code = answer.headers.get("x-ms-error-code")
            parts += ["--answers", "Content-Type: application/http", f"Content-ID: {number}", ""]
            parts += [f"HTTP/1.1 {answer.status.value} {answer.status.phrase}"]
            parts += [f"x-ms-error-code: {code}"] if code else []
            parts += [f"Content-Length: {len(answer.body)}", "", answer.body.decode()]
        body = "\r\n".join([*parts, "--answers--", ""]).encode()
        return Answer(HTTPStatus.ACCEPTED, {"content-type": "multipart/mixed; boundary=answers"}, body)

    def _list(self, request: Request) -> Answer:
        """A page has two blobs, so that clients have to ask for the next one."""
        names = [name for name in sorted(self._blobs) if name.startswith(request.query.get("prefix", ""))]
        page = [name for name in names if name >= request.query.get("marker", "")]
        found = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties>"
            f"<Last-Modified>{formatdate(self._blobs[name].modified, usegmt=True)}</Last-Modified>"
            f"<Etag>{escape(self._blobs[name].etag)}</Etag>"
            f"<Content-Length>{len(self._blobs[name].content)}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name in page[:2]
        )
        following = f"<NextMarker>{escape(page[2])}</NextMarker>" if page[2:] else "<NextMarker/>"
        body = f"<?xml version='1.0' encoding='utf-8'?><EnumerationResults><Blobs>{found}</Blobs>{following}"
        return Answer(HTTPStatus.OK, {"content-type": "application/xml"}, f"{body}</EnumerationResults>".encode())


def _refused(status: HTTPStatus, code: str, *, has_body: bool = True) -> Answer:
    body = f"<?xml version='1.0' encoding='utf-8'?><Error><Code>{code}</Code><Message>{code} it is.</Message></Error>"
    return Answer(
        status, {"content-type": "application/xml", "x-ms-error-code": code}, body.encode() if has_body else b""
    )
