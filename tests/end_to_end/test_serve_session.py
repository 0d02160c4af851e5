"""``vbackup serve-session`` as a process, curl as its clients, QEMU's NBD server behind it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests import certificates, exports
from tests.exports import exported, image_with_changes, on_socket
from tests.unit.builders import TRACKER, UUID, pull_session, session_checkpoint
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.sessions.record import Session, SessionState
from vbackup.sessions.store import ENVIRONMENT, Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

MIB = 1024 * 1024
SIZE = 24 * MIB + 512
BASE = session_checkpoint(1, "vda")
TOKEN = "0123456789abcdef-token"
BEFORE = ["write -P 1 0 20M", "write -P 2 22M 1M"]
CHANGES = [
    "write -P 3 64k 4k",
    "write -P 4 2M 3M",
    "write -z -u 8M 1M",
    "discard 12M 2M",
    "write -P 5 22M 64k",
    "write -P 6 24M 512",
]


@dataclass
class Place:
    """A session whose disk QEMU serves, and what serving and asking needs."""

    directory: Path
    session: Session
    daemon: StorageDaemon
    content: bytes

    def write(self, **changes: Any) -> None:
        with Store(self.directory / "sessions").locked(UUID, stop=Stop()) as domain:
            domain.write(replace(self.session, **changes))

    def started(self, *options: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "vbackup", "serve-session", self.session.id, "--http", "--json", *options]
        argv += ["--tls-creds", os.fspath(self.directory / "pki"), "--token-file", os.fspath(self.directory / "token")]
        environment = {**os.environ, ENVIRONMENT: os.fspath(self.directory / "sessions")}
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def served(self, *options: str) -> Served:
        process = self.started(*options)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                return Served(self, process, json.loads("".join(lines)))
        raise AssertionError(process.communicate())

    @contextmanager
    def ended(self, state: SessionState) -> Iterator[None]:
        """End the session as another vbackup would; it is as before after the block."""
        self.write(state=state)
        exports.remove(self.daemon)
        try:
            yield
        finally:
            exports.add(self.daemon)
            self.write()


@dataclass
class Served:
    """The process that serves it."""

    place: Place
    process: subprocess.Popen[str]
    document: dict[str, Any]

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self, signum: int | None = signal.SIGTERM) -> tuple[int, str, str]:
        """Its status, and what it has said since its document."""
        if signum is not None:
            self.process.send_signal(signum)
        stdout, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stdout, stderr

    def url(self, what: str) -> str:
        return f"{self.document['url']}/vda/{what}"

    def curl(self, url: str, *options: str, header: str = "header") -> Sequence[str]:
        """The words of a call of curl, with the token in a file."""
        pki = self.place.directory / "pki"
        words = ("curl", "--silent", "--show-error", "--cacert", os.fspath(pki / "ca-cert.pem"))
        return *words, "--header", f"@{self.place.directory / header}", *options, url

    def ask(self, url: str, *options: str, header: str = "header") -> tuple[int, bytes]:
        """Status and body of an answer."""
        argv = self.curl(url, "--write-out", "%{stderr}%{http_code}", *options, header=header)
        done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
        return int(done.stderr[-3:]), done.stdout

    def map(self, **query: object) -> dict[str, Any]:
        words = "&".join(f"{name}={value}" for name, value in query.items())
        status, body = self.ask(self.url(f"map?{words}"))
        assert status == 200, body
        document: dict[str, Any] = json.loads(body)
        return document


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("serve")
    image = image_with_changes(directory, SIZE, before=BEFORE, changes=CHANGES)
    now = directory / "now.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(now)], check=True)
    certificates.make(directory / "pki")
    for name, text in (("token", TOKEN), ("header", f"Authorization: Bearer {TOKEN}"), ("wrong", "Authorization: x")):
        (directory / name).write_text(text + "\n")
        (directory / name).chmod(0o600)
    session = pull_session("vda")
    context = "qemu:dirty-bitmap:b"
    [disk] = session.disks
    uri = NbdAddress("vda", path=directory / "nbd").uri
    contexts: dict[str, Any] = {"base_checkpoint": BASE.id, "base_context": context, "contexts": {BASE.id: context}}
    disk = replace(disk, size_bytes=SIZE, uri=uri, **contexts)
    session = replace(session, disks=(disk,), expires=datetime.now(timezone.utc) + timedelta(hours=1))
    base = replace(BASE, disks={"vda": replace(BASE.disks["vda"], size_bytes=SIZE)})
    with Store(directory / "sessions").locked(UUID, stop=Stop()) as domain:
        domain.write_tracker(Tracker(TRACKER, "web", UUID, (base,)))
    with exported(image, on_socket(directory / "nbd")) as daemon:
        one = Place(directory, session, daemon, now.read_bytes())
        one.write()
        yield one


@pytest.fixture(scope="module")
def served(place: Place) -> Iterator[Served]:
    with place.served("--max-readers", "4") as one:
        yield one


def test_whole_disk_is_that_of_the_moment(served: Served) -> None:
    status, body = served.ask(served.url("data"))
    assert (status, body == served.place.content) == (200, True)


def test_pull_of_the_changed_extents_onto_a_copy_is_the_disk(served: Served, tmp_path: Path) -> None:
    copy = bytearray((served.place.directory / "disk.raw").read_bytes())
    assert copy != served.place.content
    offset: int | None = 0
    pages, read_bytes = 0, 0
    while offset is not None:
        page = served.map(offset=offset, page_size=2)
        offset = page["next_offset"]
        pages += 1
        for extent in page["extents"]:
            start, end = extent["start"], extent["start"] + extent["length"]
            if extent["zero"]:
                copy[start:end] = bytes(end - start)
                continue
            status, body = served.ask(served.url("data"), "--range", f"{start}-{end - 1}")
            assert (status, len(body)) == (206, end - start)
            copy[start:end] = body
            read_bytes += end - start
    assert copy == served.place.content
    assert pages == 3
    assert read_bytes == 64 * 1024 * 2 + 3 * MIB + 512


def test_ranges_in_the_url_as_kubevirt_has_them(served: Served) -> None:
    status, body = served.ask(served.url("data?offset=67000&length=5000000"))
    assert (status, body == served.place.content[67000:5067000]) == (206, True)


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("data", ("--range", f"0-{SIZE}"), 416),
        ("data", ("--range", f"{SIZE}-"), 416),
        (f"data?offset={SIZE - 1}&length=2", (), 416),
        ("data", ("--range", "0-1,5-6"), 400),
        ("data?offset=-1", (), 400),
        (f"map?offset={SIZE + 1}", (), 416),
        ("map?kind=between&checkpoint=other", (), 404),
        ("../vdb/data", ("--path-as-is",), 404),
        ("data", ("--request", "PUT", "--data", "x"), 405),
    ],
)
def test_range_that_lies_gets_no_data(served: Served, path: str, options: Sequence[str], status: int) -> None:
    answered, body = served.ask(served.url(path), *options)
    assert answered == status
    assert set(json.loads(body)["error"]) == {"code", "message", "retry"}


@pytest.mark.parametrize("what", ["data", "map"])
def test_without_the_token_there_is_not_one_byte(served: Served, what: str) -> None:
    for header in ("wrong", "empty"):
        (served.place.directory / "empty").write_text("")
        status, body = served.ask(served.url(what), header=header)
        assert (status, json.loads(body)["error"]["code"]) == (401, "unauthorized")


def test_without_tls_there_is_not_one_byte(served: Served) -> None:
    argv = served.curl(served.url("data").replace("https:", "http:"))
    done = subprocess.run(argv, capture_output=True, check=False)
    assert (done.returncode != 0, done.stdout) == (True, b"")


def test_several_readers_at_once_get_the_same(served: Served) -> None:
    argv = served.curl(served.url("data"))
    readers = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(4)]
    digests = {sha256(reader.communicate(timeout=60)[0]).hexdigest() for reader in readers}
    assert digests == {sha256(served.place.content).hexdigest()}


def test_clients_that_drop_leave_nothing(served: Served) -> None:
    descriptors = Path(f"/proc/{served.process.pid}/fd")
    assert served.ask(served.url("data?length=512"))[0] == 206
    before = len(list(descriptors.iterdir()))
    for _ in range(6):  # more than there may be at once
        with subprocess.Popen(served.curl(served.url("data"), "--limit-rate", "1M"), stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            assert client.stdout.read(1000)
            client.kill()
    for _ in range(200):
        status, body = served.ask(served.url("data?length=512"))
        if len(list(descriptors.iterdir())) <= before:
            break
    assert (status, len(body)) == (206, 512)
    assert len(list(descriptors.iterdir())) <= before


def test_token_is_neither_in_the_arguments_nor_in_the_log(place: Place) -> None:
    with place.served("--verbose") as one:
        assert one.ask(one.url("data?length=512"))[0] == 206
        argv = Path(f"/proc/{one.process.pid}/cmdline").read_bytes()
        status, _, stderr = one.end()
        assert status == 0
        assert "GET /vda/data from" in stderr
        assert TOKEN not in stderr
        assert TOKEN.encode() not in argv


def test_client_certificate_can_be_required(place: Place) -> None:
    pki = place.directory / "pki"
    with place.served("--verify-peer") as one:
        done = subprocess.run(one.curl(one.url("data")), capture_output=True, check=False)
        assert (done.returncode != 0, done.stdout) == (True, b"")
        certificate = ("--cert", os.fspath(pki / "client-cert.pem"), "--key", os.fspath(pki / "client-key.pem"))
        assert one.ask(one.url("data?length=512"), *certificate) == (206, place.content[:512])
        assert one.end(signal.SIGINT)[0] == 0


def test_session_that_is_committed_is_a_good_end_that_clients_hear_of(place: Place) -> None:
    with place.served() as one, place.ended(SessionState.COMMITTED):
        status, body = one.ask(one.url("data"))
        assert (status, json.loads(body)["error"]["code"]) == (410, "session-ended")
        assert one.end(None) == (0, "", "")
        process = place.started()
        stdout, stderr = process.communicate(timeout=30)
        assert (process.returncode, stderr) == (6, "")
        assert "is committed" in json.loads(stdout)["message"]


def test_session_that_is_aborted_is_status_six(place: Place) -> None:
    with place.served() as one, place.ended(SessionState.ABORTED):
        status, _, stderr = one.end(None)
        assert status == 6
        assert "is aborted" in stderr
