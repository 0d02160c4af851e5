"""Google Cloud Storage as obstore speaks to it: its XML API before SeaweedFS, which keeps the objects.

No emulator that can be had speaks it: obstore creates with x-goog-if-generation-match, copies with x-goog-copy-source,
and uploads in parts (fake-gcs-server 1.54 has none of the three, gcp-storage-emulator no conditions at all). Google
made that API like that of S3, so a request becomes one of S3 here by other names of headers and another signature; what
S3 does with it is SeaweedFS's. Only two things are done here: a copy that must not replace is one at a time, and what
the XML API refuses is refused (conditions of uploads in parts).
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from tests.http_server import Answer, Request, served
from tests.weed import Weed
from vbackup.stores import cloud_kinds
from vbackup.stores.s3_requests import S3Requests
from vbackup.stores.settings import Settings
from vbackup.stores.store import Store

TOKEN = "the-token-of-the-tests"
_IF_GENERATION, _COPY_SOURCE = "x-goog-if-generation-match", "x-goog-copy-source"
_GOOGLE, _AMAZON = "x-goog-meta-", "x-amz-meta-"
_SAME = ("range", "if-match", "content-type")
_OF_A_HOP = ("connection", "transfer-encoding", "server", "date")


@dataclass
class Google:
    """A running server."""

    bucket: str
    endpoint: str = ""
    seen: list[Request] = field(default_factory=list)
    retains: bool = False  #: a retention policy forbids every deletion

    def settings(self) -> Mapping[str, str]:
        """Return what the environment has to be for the bucket."""
        return {"GOOGLE_BASE_URL": self.endpoint, "GOOGLE_BEARER_TOKEN": TOKEN}

    def store(self) -> Store:
        """Return a store with a new prefix in the bucket."""
        return cloud_kinds.opened("gs", self.bucket, f"copies/{uuid.uuid4().hex}", Settings(self.settings(), {}))


@contextlib.contextmanager
def server(weed: Weed) -> Iterator[Google]:
    """Start a server that keeps its objects in the shared bucket of SeaweedFS."""
    google = Google(weed.shared)
    with weed.requests(weed.shared) as requests:
        translation = _Translation(google, requests)
        with served(translation.answer) as google.endpoint:
            yield google


class _Translation:
    def __init__(self, google: Google, requests: S3Requests) -> None:
        self._google, self._requests = google, requests
        self._copying = threading.Lock()

    def answer(self, request: Request) -> Answer:
        self._google.seen.append(request)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _refused(HTTPStatus.UNAUTHORIZED, "AuthenticationRequired", "Authentication required.")
        bucket, _, key = request.path[1:].partition("/")
        if bucket != self._google.bucket:
            return _refused(HTTPStatus.NOT_FOUND, "NoSuchBucket", "The specified bucket does not exist.")
        if request.method == "DELETE" and self._google.retains and "uploadId" not in request.query:
            return _refused(HTTPStatus.FORBIDDEN, "AccessDenied", "Object is subject to the bucket's retention policy.")
        return self._translated(request, key)

    def _translated(self, request: Request, key: str) -> Answer:
        creates = request.headers.get(_IF_GENERATION)
        if creates is not None and (creates != "0" or request.query):
            return _refused(HTTPStatus.BAD_REQUEST, "NotImplemented", "Preconditions are not supported here.")
        source = request.headers.get(_COPY_SOURCE)
        if source is not None:
            with self._copying:
                if creates is not None and self._requests.send("HEAD", key).is_done:
                    return _refused(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed", "At least one did not hold.")
                return self._sent(request, key, {"x-amz-copy-source": f"/{source.lstrip('/')}"})
        return self._sent(request, key, {} if creates is None else {"if-none-match": "*"})

    def _sent(self, request: Request, key: str, headers: Mapping[str, str]) -> Answer:
        taken = {name: value for name, value in request.headers.items() if name in _SAME}
        taken |= {
            _AMAZON + name[len(_GOOGLE) :]: value for name, value in request.headers.items() if name.startswith(_GOOGLE)
        }
        answer = self._requests.send(
            request.method, key, query=request.query, headers={**taken, **headers}, body=request.body
        )
        given = {
            _GOOGLE + name[len(_AMAZON) :] if name.lower().startswith(_AMAZON) else name: value
            for name, value in answer.headers.items()
            if name.lower() not in _OF_A_HOP
        }
        return Answer(HTTPStatus(answer.status), {**given, "x-goog-generation": "1"}, answer.body)


def _refused(status: HTTPStatus, code: str, message: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return Answer(status, {"content-type": "application/xml"}, body)
