"""A bucket of S3: read and listed by obstore, written by requests that create only, with its versions and its lock.

In a bucket with Object Lock each object has versions, and a plain delete only hides it. So a delete here names the
version: it removes the object for good, or the lock forbids it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from obstore.store import S3Store as Bucket

from vbackup.errors import StorageError
from vbackup.stores import aws, cloud, s3_upload
from vbackup.stores.s3_requests import RETRY_S, S3Requests
from vbackup.stores.store import Deletion, Seen, Source, StoredObject, refuse_key

if TYPE_CHECKING:
    from obstore.store import S3Credential

_NO_LOCK = ("ObjectLockConfigurationNotFoundError", "NotImplemented", "MethodNotAllowed", "InvalidRequest")
_DAYS_A_YEAR = 365
#: vbackup stores one version of an object; a few others can be there after an accident.
_MAX_VERSIONS = 100
#: A wrong endpoint should be reported soon.
_OPEN_S = 15.0


class S3Store:
    """A prefix in a bucket."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        settings: Mapping[str, str],
        *,
        retry_s: float | None = None,
        part_bytes: int | None = None,
    ) -> None:
        """Open the bucket. Raises StorageError, StoreUnreachableError and UsageError (an endpoint that is none)."""
        retry_s = RETRY_S if retry_s is None else retry_s
        endpoint = aws.endpoint(settings)
        self._keys = aws.KeySource(settings)
        self._keys.current()
        self._prefix = f"{prefix}/" if prefix else ""
        self._part_bytes = part_bytes or s3_upload.PART_BYTES
        self._is_tidy = False
        self._requests = S3Requests(endpoint, bucket, self._keys, retry_s=retry_s)
        name = f"s3://{bucket}/{prefix}".rstrip("/")
        objects = Bucket(
            bucket,
            config={
                "endpoint": _with_bucket(endpoint, bucket),
                "region": endpoint.region,
                "virtual_hosted_style_request": endpoint.is_virtual_hosted,
            },
            client_options=cloud.client_options(endpoint.authorities),
            retry_config=cloud.retry_options(retry_s),
            credential_provider=self._for_obstore,
        )
        self._read = cloud.CloudStore(name, objects, prefix, retry_s=retry_s)
        self._refuse_bucket()

    @property
    def name(self) -> str:
        """As Store."""
        return self._read.name

    def put_new(self, key: str, source: Source, size_bytes: int) -> bool:
        """As Store."""
        refuse_key(key)
        if size_bytes > self._part_bytes and not self._is_tidy:
            self._is_tidy = True
            s3_upload.remove_left_behind(self._requests, self._prefix)
        return s3_upload.put(self._requests, self._prefix + key, source, size_bytes, part_bytes=self._part_bytes)

    def get(self, key: str, offset: int = 0, length: int | None = None, *, mark: str | None = None) -> Iterator[bytes]:
        """As Store."""
        return self._read.get(key, offset, length, mark=mark)

    def look(self, key: str) -> Seen | None:
        """As Store."""
        return self._read.look(key)

    def size(self, key: str) -> int | None:
        """As Store."""
        return self._read.size(key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """As Store."""
        return self._read.list(prefix)

    def delete(self, key: str) -> Deletion:
        """As Store. An object under a lock stays as it is, and visible."""
        refuse_key(key)
        path = self._prefix + key
        deleted = Deletion.ABSENT
        for _ in range(_MAX_VERSIONS):
            head = self._requests.send("HEAD", path)
            if head.is_missing:
                return deleted
            version = head.headers.get("x-amz-version-id")
            query = {"versionId": version} if version and version != "null" else {}
            outcome = self._delete(key, query)
            if outcome is Deletion.KEPT or not query:
                return outcome
            deleted = Deletion.DELETED  # what it had replaced would be there again
        raise StorageError(f"{key} in {self.name} has more than {_MAX_VERSIONS} versions: remove them first.")

    def _delete(self, key: str, query: Mapping[str, str]) -> Deletion:
        """Remove an object, or a version of it."""
        answer = self._requests.send("DELETE", self._prefix + key, query=query)
        if answer.is_done:
            return Deletion.DELETED
        if answer.is_missing:
            return Deletion.ABSENT
        if answer.code in ("AccessDenied", "ObjectLocked", "InvalidRequest", "Forbidden"):
            return Deletion.KEPT
        raise self._requests.refuse(answer, f"remove {key} from {self.name}")

    def lock_days(self) -> int | None:
        """As Store: the default retention of the bucket."""
        answer = self._requests.send("GET", query={"object-lock": ""})
        if not answer.is_done:
            if answer.code in _NO_LOCK or answer.is_missing:
                return None
            raise self._requests.refuse(answer, f"ask for the Object Lock of {self.name}")
        days, years = answer.element("Days"), answer.element("Years")
        if days.isdigit():
            return int(days)
        return int(years) * _DAYS_A_YEAR if years.isdigit() else None

    def close(self) -> None:
        """As Store."""
        self._requests.close()

    def _refuse_bucket(self) -> None:
        """Raise StorageError if the bucket cannot be used: here, before anything is read or stored."""
        query = {"list-type": "2", "max-keys": "1", "prefix": self._prefix}
        answer = self._requests.send("GET", query=query, retry_s=_OPEN_S)
        if not answer.is_done:
            raise self._requests.refuse(answer, f"use {self.name}")
        if "ListBucketResult" not in answer.body.decode(errors="replace"):
            raise StorageError(f"What answers for {self.name} is not S3: is the endpoint right?")

    def _for_obstore(self) -> S3Credential:
        keys = self._keys.current()
        found: dict[str, Any] = {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": keys.expires,
        }
        return found  # type: ignore[return-value]


def _with_bucket(endpoint: aws.Endpoint, bucket: str) -> str:
    """Return the endpoint as obstore wants it: with the bucket, if that is a part of the host's name."""
    if not endpoint.is_virtual_hosted:
        return endpoint.url
    scheme, _, host = endpoint.url.partition("://")
    return f"{scheme}://{bucket}.{host}"
