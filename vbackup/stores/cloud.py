"""Objects in a bucket or container of a cloud, by obstore: for S3 it reads and lists, for Azure and GCS it also stores.

obstore repeats requests; here its errors become sentences, and what it has read is compared with the digest that an
object was stored with.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from vbackup.errors import StorageError, StoreUnreachableError
from vbackup.stores.store import (
    PIECE_BYTES,
    Deletion,
    Seen,
    Source,
    StoredObject,
    is_key,
    refuse_key,
    refuse_prefix,
    refuse_replaced,
    refuse_too_many,
    wrong_size,
)

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig, S3Store

#: How long obstore repeats a request, how long a server may be silent.
RETRY_S, SILENCE_S, CONNECT_S = 120, 60, 10
#: A read asks for so much at a time, so that each request has the whole time for its repetitions.
_READ_BYTES = 64 * 1024 * 1024
#: Larger objects are stored in parts, under another name first.
_WHOLE_BYTES = 8 * 1024 * 1024
#: Parts of an object: of Google, and of Azure.
MAX_PARTS, AZURE_MAX_PARTS = 10_000, 50_000
#: Parts of one object under way at a time: fewer of large ones, which all are in memory.
_PARALLEL_PARTS, _MEMORY_BYTES = 12, 96 * 1024 * 1024
#: Parts in memory of all objects that this process sends; a part that is larger is sent alone.
_ALL_MEMORY_BYTES = 256 * 1024 * 1024
_PAUSE_S = 0.2
#: How long a server may take to copy an object within a bucket.
COPY_S = 600.0
_INCOMING = ".incoming"
#: What has been in .incoming for so long was left by a copy that was killed.
ABANDONED = timedelta(days=1)
#: Names of the metadata of an object: its SHA-256, and what tells one upload from another. No hyphens: Azure.
SHA256, _UPLOAD = "sha256", "vbackupupload"
_NONCE = re.compile(r"[0-9a-f]{32}")
#: A signature, which is as good as a key: the query of a URL, of what should have been one, or without either.
_QUERY = re.compile(r"\?[^\s\"')<>]+")
_SIGNATURE = re.compile(r"(?i)\b(sig|signature|x-amz-signature|x-goog-signature)(=|%3d)[^\s\"')&<>]*")
_FAULT = re.compile(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_STATUS = re.compile(r"non-2xx status code: ([0-9]+)")
_UNREACHABLE = ("error sending request", "error trying to connect", "dns error", "Connection refused", "timed out")


def client_options(authorities: Path | None = None) -> ClientConfig:
    """Return what obstore's HTTP client is made with. ``authorities``: file with the certificates to trust, in PEM."""
    trusted: ClientConfig = {"root_certificate": authorities.read_bytes()} if authorities is not None else {}
    return {
        **trusted,
        "allow_http": True,  # an endpoint that the user names can be one
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "read_timeout": timedelta(seconds=SILENCE_S),
        "timeout": timedelta(hours=1),
    }


def retry_options(retry_s: float = RETRY_S) -> RetryConfig:
    """Return how obstore repeats requests."""
    return {
        "max_retries": 60,
        "retry_timeout": timedelta(seconds=retry_s),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=8), "base": 2},
    }


class _Memory:
    """Room in memory that several threads share, in the order in which they ask."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._used_bytes = 0

    @contextmanager
    def parts(self, part_bytes: int) -> Iterator[int]:
        """Yield how many parts of this size may be in memory during the block; wait until it is at least one."""
        with self._turn, self._changed:
            # One that is larger than all there is waits until nothing is used.
            self._changed.wait_for(lambda: self._used_bytes + part_bytes <= _ALL_MEMORY_BYTES or not self._used_bytes)
            room_bytes = min(_MEMORY_BYTES, _ALL_MEMORY_BYTES - self._used_bytes)
            count = max(1, min(_PARALLEL_PARTS, room_bytes // part_bytes))
            self._used_bytes += count * part_bytes
        try:
            yield count
        finally:
            with self._changed:
                self._used_bytes -= count * part_bytes
                self._changed.notify_all()


_memory = _Memory()


class CloudStore:
    """A prefix in a bucket or container. ``max_parts``: how many the server takes of an object."""

    def __init__(
        self,
        name: str,
        objects: AzureStore | GCSStore | S3Store,
        prefix: str,
        *,
        retry_s: float = RETRY_S,
        max_parts: int = MAX_PARTS,
    ) -> None:
        self._name = name
        self._objects = objects
        self._prefix = f"{prefix}/" if prefix else ""
        self._retry_s = retry_s
        self._max_parts = max_parts
        self._is_tidy = False

    @property
    def name(self) -> str:
        """As Store."""
        return self._name

    def refuse_bucket(self) -> None:
        """Raise StorageError if the bucket cannot be used: here, before anything is read or stored."""
        with self._errors("list what is there"), self._no_bucket():
            next(iter(obstore.list(self._objects, self._prefix or None)), None)

    def put_new(self, key: str, source: Source, size_bytes: int) -> bool:
        """As Store. A large object is stored beside and copied there by the server, which does not replace one."""
        path = self._path_of(key)
        if self.size(key) is not None:
            return False
        nonce = uuid.uuid4().hex
        with self._errors(f"store {key}"), self._no_bucket():
            if size_bytes <= _WHOLE_BYTES:
                data = b"".join(_pieces(source, key, size_bytes))
                attributes = {SHA256: hashlib.sha256(data).hexdigest(), _UPLOAD: nonce}
                return self._create(
                    path, nonce, lambda: obstore.put(self._objects, path, data, mode="create", attributes=attributes)
                )
            incoming = f"{self._prefix}{_INCOMING}/{nonce}"
            keeps_incoming = False
            try:
                part_bytes = max(_WHOLE_BYTES, -(-size_bytes // self._max_parts))
                with _memory.parts(part_bytes) as count:
                    obstore.put(
                        self._objects,
                        incoming,
                        _pieces(source, key, size_bytes),
                        use_multipart=True,
                        chunk_size=part_bytes,
                        max_concurrency=count,
                        attributes={_UPLOAD: nonce},
                    )
                self._tidy(incoming)
                if not self._create(path, nonce, lambda: obstore.copy(self._objects, incoming, path, overwrite=False)):
                    return False
                keeps_incoming = True
                self._await_copy(key, size_bytes)
                keeps_incoming = False
                return True
            finally:
                if not keeps_incoming:
                    with contextlib.suppress(BaseError, FileNotFoundError):
                        obstore.delete(self._objects, incoming)

    def _create(self, path: str, nonce: str, send: Callable[[], object]) -> bool:
        """Send a request that creates an object unless there is one; return True if this one created it.

        obstore does not repeat such a request if it cannot know whether it was carried out; by the nonce, we can.
        """
        deadline = time.monotonic() + self._retry_s
        while True:
            try:
                send()
                return True
            except AlreadyExistsError:
                found = obstore.get(self._objects, path, options={"head": True})
                return found.attributes.get(_UPLOAD) == nonce
            except BaseError as err:
                if not _is_unreachable(str(err)) or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)

    def _await_copy(self, key: str, size_bytes: int) -> None:
        """Wait until the server has copied an object.

        Azure may answer before, with an empty blob in its place; the source of the copy has to stay until the end.
        """
        deadline = time.monotonic() + COPY_S
        while (there := self.size(key)) != size_bytes:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{self._name} was asked to copy what became {key}, which has {there} bytes instead of {size_bytes}"
                    f" after {COPY_S:.0f} s. Run the same command again later."
                )
            time.sleep(_PAUSE_S)

    def _tidy(self, own: str) -> None:
        """Once a store, remove what killed copies have left long ago: by the server's clock, which ``own`` shows."""
        if self._is_tidy:
            return
        self._is_tidy = True
        with contextlib.suppress(BaseError, FileNotFoundError):
            chunks = obstore.list(self._objects, f"{self._prefix}{_INCOMING}", chunk_size=1000)
            found = {each["path"]: each["last_modified"] for chunk in chunks for each in chunk}
            for path, modified in found.items():
                is_ours = _NONCE.fullmatch(path.rpartition("/")[2]) is not None
                if is_ours and path != own and own in found and modified < found[own] - ABANDONED:
                    obstore.delete(self._objects, path)

    def get(self, key: str, offset: int = 0, length: int | None = None, *, mark: str | None = None) -> Iterator[bytes]:
        """As Store. A small object that is read as a whole is compared with its digest."""
        path = self._path_of(key)
        with self._errors(f"read {key}"):
            first = self._first(key, offset, length)
            if first is None:
                return
            refuse_replaced(self._name, key, mark, _mark(first.meta))
            size_bytes = first.meta["size"]
            end = size_bytes if length is None else min(size_bytes, offset + length)
            wanted = first.attributes.get(SHA256) if (offset, end) == (0, size_bytes) else None
            digest = hashlib.sha256()
            at = offset
            while at < end:
                until = min(end, at + _READ_BYTES)
                if at > offset:
                    options: GetOptions = {"range": (at, until), "if_match": first.meta["e_tag"]}
                    first = obstore.get(self._objects, path, options=options)
                for piece in _limited(first, until - at):
                    at += len(piece)
                    if wanted is not None:
                        digest.update(piece)
                        if at == end and digest.hexdigest() != wanted:
                            raise StorageError(f"{key} in {self._name} is damaged: it is not what was stored.")
                    yield piece
                if at < until:
                    raise StorageError(f"{self._name} ended {key} after {at} of {size_bytes} bytes.")

    def _first(self, key: str, offset: int, length: int | None) -> GetResult | None:
        """Return the beginning of what is to be read, None if that is nothing. Raises FileNotFoundError."""
        if length is not None and length <= 0:
            if self.size(key) is None:
                raise _missing(self._name, key)
            return None
        # Without a range if the start is wanted: one of an empty object is an error.
        options = _range(offset, offset + min(length or _READ_BYTES, _READ_BYTES)) if offset or length else None
        try:
            return obstore.get(self._objects, self._path_of(key), options=options)
        except FileNotFoundError:
            self.size(key)  # raises an error if it is the bucket that is missing
            raise _missing(self._name, key) from None
        except BaseError:
            size_bytes = self.size(key)
            if size_bytes is not None and offset >= size_bytes:
                return None
            raise

    def size(self, key: str) -> int | None:
        """As Store."""
        found = self.look(key)
        return None if found is None else found.size_bytes

    def look(self, key: str) -> Seen | None:
        """As Store."""
        with self._errors(f"look for {key}"):
            try:
                found = obstore.head(self._objects, self._path_of(key))
                return Seen(found["size"], _mark(found))
            except FileNotFoundError as err:
                if "NoSuchBucket" not in str(err):
                    return None
                with self._no_bucket():
                    raise

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """As Store."""
        refuse_prefix(prefix)
        deadline = time.monotonic() + self._retry_s
        with self._errors("list what is there"), self._no_bucket():
            while True:
                try:
                    found = self._listed(prefix)
                    break
                except BaseError:  # obstore repeats the request, but not if it was the answer that was cut off
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_PAUSE_S)
        yield from sorted(found, key=lambda each: each.key)

    def _listed(self, prefix: str) -> builtins.list[StoredObject]:
        found: builtins.list[StoredObject] = []
        for chunk in obstore.list(self._objects, self._prefix + prefix or None, chunk_size=1000):
            refuse_too_many(len(found) + len(chunk), self._name)
            for each in chunk:
                key = each["path"][len(self._prefix) :]
                if is_key(key):
                    found.append(StoredObject(key, each["size"], each["last_modified"]))
        return found

    def delete(self, key: str) -> Deletion:
        """As Store: a policy of the container that forbids it is the answer of a server that forbids."""
        if self.size(key) is None:
            return Deletion.ABSENT
        try:
            with self._errors(f"remove {key}"):
                obstore.delete(self._objects, self._path_of(key))
        except FileNotFoundError:
            return Deletion.ABSENT
        except StorageError as err:
            if isinstance(err.__cause__, CloudFault) and _forbids(str(err.__cause__)):
                return Deletion.KEPT
            raise
        return Deletion.DELETED

    def lock_days(self) -> int | None:
        """As Store: obstore does not ask for it."""
        return None

    def close(self) -> None:
        """As Store."""

    def _path_of(self, key: str) -> str:
        refuse_key(key)
        return self._prefix + key

    @contextmanager
    def _no_bucket(self) -> Iterator[None]:
        """Where no object needs to be there, what is missing is the bucket."""
        try:
            yield
        except FileNotFoundError:
            raise StorageError(f"There is no bucket or container for {self._name}: create it first.") from None

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, ValueError) as err:
            text = without_secrets(str(err))
            cause = CloudFault(text)
            fault, status = _FAULT.search(text), _STATUS.search(text)
            if fault is not None and fault.group(1) in _NO_BUCKET:
                raise StorageError(f"There is no bucket or container for {self._name}: create it first.") from cause
            if fault is not None:
                said = f"{fault.group(1)}: {fault.group(2).rstrip('.')}"
            elif status is not None:
                said = f"the server answers with status {status.group(1)}"
            elif _is_unreachable(text):
                raise StoreUnreachableError(self._name, _short(text)) from cause
            else:
                said = _short(text)
            raise StorageError(f"Cannot {what} in {self._name}: {said}.") from cause


class CloudFault(Exception):  # noqa: N818 - nobody catches it
    """What obstore says, without what is secret in it: the cause of an error, which a log may show."""


def without_secrets(text: str) -> str:
    """Return what obstore says without signatures, and without queries of URLs, which can have one."""
    return _SIGNATURE.sub(r"\1=...", _QUERY.sub("?...", text))


def _is_unreachable(text: str) -> bool:
    return any(sign in text for sign in _UNREACHABLE)


def _missing(name: str, key: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{name}/{key}")


def _mark(found: ObjectMeta) -> str:
    return f"{found['size']} {found['e_tag'] or found['last_modified'].isoformat()}"


def _range(start: int, end: int) -> GetOptions:
    return {"range": (start, end)}


def _limited(result: GetResult, most_bytes: int) -> Iterator[bytes]:
    """Yield the content of an answer, not more than ``most_bytes``, and end the transfer then."""
    for piece in result.stream(min_chunk_size=PIECE_BYTES):
        data = bytes(piece)[:most_bytes]
        most_bytes -= len(data)
        yield data
        if not most_bytes:
            return


def _pieces(source: Source, key: str, size_bytes: int) -> Iterator[bytes]:
    """Yield the content of a source. The last piece comes only when the source has ended where it should."""
    done = 0
    held = b""
    while piece := source.read(PIECE_BYTES):
        done += len(piece)
        if done > size_bytes:
            break
        if held:
            yield held
        held = piece
    if done != size_bytes:
        raise wrong_size(key, size_bytes, done)
    if held:
        yield held


def _forbids(text: str) -> bool:
    signs = ("retentionPolicyNotMet", "BlobImmutableDueToPolicy", "403", "409", "AccessDenied")
    return any(sign in text for sign in signs)


def _short(text: str) -> str:
    """Return the last of the causes that obstore lists, which is the one that people understand."""
    lines = [line.strip() for line in text.split("Debug source", maxsplit=1)[0].splitlines() if line.strip()]
    return (lines[-1] if lines else text)[:300].rstrip(".")
