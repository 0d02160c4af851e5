"""``vbackup serve-session`` as a process, curl as its clients, QEMU's NBD server behind it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests import exports
from tests.end_to_end import movers
from tests.end_to_end.movers import TOKEN, Served
from tests.exports import exported, image_with_changes, on_socket
from tests.unit.builders import TRACKER, UUID, pull_session, session_checkpoint
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.sessions.record import Session, SessionState
from vbackup.sessions.store import Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

MIB = 1024 * 1024
SIZE = 24 * MIB + 512
BASE = session_checkpoint(1, "vda")
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
        with Store(self.sessions).locked(UUID, stop=Stop()) as domain:
            domain.write(replace(self.session, **changes))

    @property
    def sessions(self) -> Path:
        return self.directory / "sessions"

    def served(self, *options: str) -> Served:
        return movers.served(self.directory, self.session.id, *options, sessions=self.sessions)

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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("serve")
    image = image_with_changes(directory, SIZE, before=BEFORE, changes=CHANGES)
    now = directory / "now.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(now)], check=True)
    movers.prepare(directory)
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


def test_whole_disk_is_that_of_the_moment(place: Place, served: Served) -> None:
    status, body = served.ask(served.url("data"))
    assert (status, body == place.content) == (200, True)


def test_pull_of_the_changed_extents_onto_a_copy_is_the_disk(place: Place, served: Served) -> None:
    copy = bytearray((place.directory / "disk.raw").read_bytes())
    assert copy != place.content
    assert served.pull(copy, page_size=2) == (3, 64 * 1024 * 2 + 3 * MIB + 512)
    assert copy == place.content


def test_ranges_in_the_url_as_kubevirt_has_them(place: Place, served: Served) -> None:
    status, body = served.ask(served.url("data?offset=67000&length=5000000"))
    assert (status, body == place.content[67000:5067000]) == (206, True)


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
    refusal = json.loads(body)
    assert refusal["schema"] == "vbackup.httperror/1"
    assert set(refusal["error"]) == {"code", "message", "retry"}


@pytest.mark.parametrize("what", ["data", "map"])
def test_without_the_token_there_is_not_one_byte(place: Place, served: Served, what: str) -> None:
    for header in ("wrong", "empty"):
        status, body = served.ask(served.url(what), header=header)
        assert (status, json.loads(body)["error"]["code"]) == (401, "UNAUTHORIZED")


def test_without_tls_there_is_not_one_byte(served: Served) -> None:
    argv = served.curl(served.url("data").replace("https:", "http:"))
    done = subprocess.run(argv, capture_output=True, check=False)
    assert (done.returncode != 0, done.stdout) == (True, b"")


def test_several_readers_at_once_get_the_same(place: Place, served: Served) -> None:
    argv = served.curl(served.url("data"))
    readers = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(4)]
    digests = {sha256(reader.communicate(timeout=60)[0]).hexdigest() for reader in readers}
    assert digests == {sha256(place.content).hexdigest()}


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
        assert (status, json.loads(body)["error"]["code"]) == (410, "SESSION_ENDED")
        assert one.end(None) == (0, "", "")
        process = movers.start(place.directory, place.session.id, sessions=place.sessions)
        stdout, stderr = process.communicate(timeout=30)
        assert (process.returncode, stderr.count("\n")) == (6, 1)
        assert "is committed" in json.loads(stdout)["message"]


def test_session_that_is_aborted_is_status_six(place: Place) -> None:
    with place.served() as one, place.ended(SessionState.ABORTED):
        status, _, stderr = one.end(None)
        assert status == 6
        assert "is aborted" in stderr
