"""Store one object in S3 so that it never replaces another: in one request, or in parts that several threads send.

A part's digest is in its signature, so that a damaged part is refused and sent again. What a killed copy has left of
the same object is taken over, part by part, where the content is the same.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from xml.sax.saxutils import escape

from vbackup.errors import StorageError, VbackupError
from vbackup.stores.s3_requests import Answer, S3Requests
from vbackup.stores.store import PIECE_BYTES, Source, wrong_size

log = logging.getLogger(__name__)

#: Objects up to a part go in one request. S3 takes 10,000 parts, so that larger objects need larger ones.
PART_BYTES = 8 * 1024 * 1024
_MAX_PARTS = 10_000
#: Parts of one object under way at a time: fewer of large ones, which all are in memory.
THREADS, _MEMORY_BYTES = 4, 96 * 1024 * 1024
#: Names of the metadata of an object: its SHA-256, which ``S3Store.get`` compares, and what tells one upload's from
#: another's.
SHA256, UPLOAD = "sha256", "vbackup-upload"
#: An upload that got no part for so long is no live copy's: then it can be taken over, and removed.
QUIET, ABANDONED = timedelta(minutes=10), timedelta(days=1)
_CREATE = {"if-none-match": "*"}
#: The digest again, beside the signature: SeaweedFS compares only this one, and a bucket with a default retention takes
#: no object without one.
_CHECKSUM, _ALGORITHM = "x-amz-checksum-sha256", "x-amz-checksum-algorithm"


@dataclass(frozen=True)
class _Part:
    number: int
    etag: str
    size_bytes: int
    sha256: str = ""  #: in base64

    @property
    def element(self) -> str:
        """The part as the end of an upload lists it."""
        return (
            f"<Part><PartNumber>{self.number}</PartNumber><ETag>{escape(self.etag)}</ETag>"
            f"<ChecksumSHA256>{self.sha256}</ChecksumSHA256></Part>"
        )


def put(requests: S3Requests, key: str, source: Source, size_bytes: int, *, part_bytes: int = PART_BYTES) -> bool:
    """Store an object unless the key is taken, as ``Store.put_new``. ``key``: with the prefix of the target."""
    if _head(requests, key) is not None:
        return False
    if size_bytes <= part_bytes:
        return _put_whole(requests, key, _read(source, size_bytes + 1, key, size_bytes))
    part_bytes = max(part_bytes, -(-size_bytes // _MAX_PARTS))
    return _Upload(requests, key, size_bytes, part_bytes).run(source)


def _head(requests: S3Requests, key: str) -> Answer | None:
    answer = requests.send("HEAD", key)
    if answer.is_missing:
        return None
    if not answer.is_done:
        # An answer to HEAD has no body: the same question with GET has S3's words.
        words = requests.send("GET", key, headers={"range": "bytes=0-0"})
        raise requests.refuse(words if not words.is_missing else answer, f"look for {key}")
    return answer


def _read(source: Source, wanted_bytes: int, key: str, size_bytes: int) -> bytearray:
    """Return ``wanted_bytes`` of a source, or what it has until its end, which must be ``size_bytes``."""
    data = bytearray()
    while len(data) < wanted_bytes and (piece := source.read(min(PIECE_BYTES, wanted_bytes - len(data)))):
        data += piece
    if len(data) != min(wanted_bytes, size_bytes):
        raise wrong_size(key, size_bytes, len(data))
    return data


def _put_whole(requests: S3Requests, key: str, data: bytearray) -> bool:
    nonce = uuid.uuid4().hex
    digest = hashlib.sha256(data)
    headers = {
        **_CREATE,
        f"x-amz-meta-{SHA256}": digest.hexdigest(),
        f"x-amz-meta-{UPLOAD}": nonce,
        _CHECKSUM: _base64(digest.digest()),
    }
    answer = requests.send("PUT", key, headers=headers, body=data)
    if answer.is_conflict:  # ConditionalRequestConflict: another put or delete of it is under way
        answer = requests.send("PUT", key, headers=headers, body=data)
    if answer.is_taken or answer.is_conflict:
        # Ours if the request was carried out, and its answer lost, before it was repeated.
        there = _head(requests, key)
        return there is not None and there.headers.get(f"x-amz-meta-{UPLOAD}") == nonce
    if not answer.is_done:
        raise requests.refuse(answer, f"store {key}")
    return True


def remove_left_behind(requests: S3Requests, prefix: str) -> None:
    """Remove the uploads below a prefix that nobody has sent a part of for a day."""
    for left in _left_behind(requests, prefix, quiet=ABANDONED):
        requests.send("DELETE", left.key, query={"uploadId": left.upload})


@dataclass(frozen=True)
class _LeftBehind:
    key: str
    upload: str
    parts: Mapping[int, _Part]


def _left_behind(requests: S3Requests, prefix: str, *, quiet: timedelta) -> Iterator[_LeftBehind]:
    """Yield unfinished uploads of which no part came for some time, by the server's clock: a live copy has others."""
    answer = requests.send("GET", query={"uploads": "", "prefix": prefix})
    if not answer.is_done or "date" not in answer.headers:  # no right to see it, or a server without that request
        return
    now = parsedate_to_datetime(answer.headers["date"])
    for key, upload, begun in zip(*map(answer.elements, ("Key", "UploadId", "Initiated"))):
        listed = requests.send("GET", key, query={"uploadId": upload, "max-parts": str(_MAX_PARTS)})
        if not listed.is_done or now - max(map(_time, [begun, *listed.elements("LastModified")])) < quiet:
            continue
        columns = map(listed.elements, ("PartNumber", "ETag", "Size"))
        parts = {int(number): _Part(int(number), etag, int(size)) for number, etag, size in zip(*columns)}
        yield _LeftBehind(key, upload, parts)


def _time(text: str) -> datetime:
    return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)


class _Upload:
    """One object that is stored in parts."""

    def __init__(self, requests: S3Requests, key: str, size_bytes: int, part_bytes: int) -> None:
        self._requests = requests
        self._key = key
        self._size_bytes = size_bytes
        self._part_bytes = part_bytes
        self._nonce = uuid.uuid4().hex
        self._begun: set[str] = set()

    def run(self, source: Source) -> bool:
        upload, there = self._taken_over() or (self._begin(), {})
        try:
            parts = self._send_all(source, upload, there)
            is_new = self._complete(upload, parts)
        except BaseException:
            self._abort(upload)
            raise
        if not is_new:
            self._abort(upload)
        return is_new

    def _begin(self) -> str:
        headers = {_ALGORITHM: "SHA256", f"x-amz-meta-{UPLOAD}": self._nonce}
        answer = self._requests.send("POST", self._key, query={"uploads": ""}, headers=headers)
        if not answer.is_done or not answer.element("UploadId"):
            raise self._requests.refuse(answer, f"store {self._key}")
        self._begun.add(answer.element("UploadId"))
        return answer.element("UploadId")

    def _taken_over(self) -> tuple[str, Mapping[int, _Part]] | None:
        """Return an upload of this object that a dead copy has left, and its parts."""
        for left in _left_behind(self._requests, self._key, quiet=QUIET):
            if left.key == self._key:
                log.debug("%s: %d parts of an unfinished upload are there", self._key, len(left.parts))
                return left.upload, left.parts
        return None

    def _send_all(self, source: Source, upload: str, there: Mapping[int, _Part]) -> list[_Part]:
        parts: list[_Part] = []
        threads = max(1, min(THREADS, _MEMORY_BYTES // self._part_bytes))
        with ThreadPoolExecutor(threads, thread_name_prefix="s3") as pool:
            running: set[Future[_Part]] = set()
            try:
                for number, data in self._cut(source):
                    while len(running) >= threads:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        parts.extend(future.result() for future in done)
                    running.add(pool.submit(self._send, upload, number, data, there.get(number)))
                parts.extend(future.result() for future in running)
            except BaseException:
                for future in running:
                    future.cancel()
                raise
        return sorted(parts, key=lambda part: part.number)

    def _cut(self, source: Source) -> Iterator[tuple[int, bytearray]]:
        """Yield the numbered parts; the last is not yielded before it is known that the source ends there."""
        left, number = self._size_bytes, 0
        while left:
            number += 1
            data = bytearray()
            wanted = min(left, self._part_bytes)
            while len(data) < wanted and (piece := source.read(min(PIECE_BYTES, wanted - len(data)))):
                data += piece
            left -= len(data)
            if len(data) < wanted:
                raise wrong_size(self._key, self._size_bytes, self._size_bytes - left)
            if not left and source.read(1):
                raise wrong_size(self._key, self._size_bytes, self._size_bytes + 1)
            yield number, data

    def _send(self, upload: str, number: int, data: bytearray, there: _Part | None) -> _Part:
        checksum = _base64(hashlib.sha256(data).digest())
        if there is not None and there.size_bytes == len(data) and there.etag.strip('"') == _md5(data):
            return replace(there, sha256=checksum)
        query = {"partNumber": str(number), "uploadId": upload}
        answer = self._requests.send("PUT", self._key, query=query, headers={_CHECKSUM: checksum}, body=data)
        etag = answer.headers.get("etag", "")
        if not answer.is_done or not etag:
            raise self._requests.refuse(answer, f"store part {number} of {self._key}")
        return _Part(number, etag, len(data), checksum)

    def _complete(self, upload: str, parts: list[_Part]) -> bool:
        listed = "".join(part.element for part in parts)
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        query = {"uploadId": upload}
        answer = self._requests.send("POST", self._key, query=query, headers=_CREATE, body=body)
        if answer.is_conflict:  # another upload of it is being completed
            answer = self._requests.send("POST", self._key, query=query, headers=_CREATE, body=body)
        is_taken = answer.is_taken or answer.is_conflict or answer.code in ("PreconditionFailed", "NoSuchUpload")
        if not is_taken and (not answer.is_done or answer.code):  # an error can come after the status 200
            raise self._requests.refuse(answer, f"store {self._key}")
        return self._is_ours(upload, parts)

    def _is_ours(self, upload: str, parts: list[_Part]) -> bool:
        """Return True if the object is from this upload, whatever was answered.

        The first answer can have been lost. And SeaweedFS 4.48 lets two uploads that end within the same milliseconds
        both succeed: the later one is the object then.
        """
        there = _head(self._requests, self._key)
        if there is None:
            raise StorageError(f"Another copy removed the unfinished upload of {self._key}: run this one again.")
        if upload in self._begun:
            return there.headers.get(f"x-amz-meta-{UPLOAD}") == self._nonce
        return there.headers.get("etag", "").strip('"') == _etag(parts)  # taken over: its nonce is not known

    def _abort(self, upload: str) -> None:
        with suppress(VbackupError):
            self._requests.send("DELETE", self._key, query={"uploadId": upload})


def _etag(parts: list[_Part]) -> str:
    """Return the ETag that S3 gives an object of these parts."""
    digests = b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)
    return f"{_md5(digests)}-{len(parts)}"


def _md5(data: bytes | bytearray) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
