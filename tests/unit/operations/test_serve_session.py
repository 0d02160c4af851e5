"""What keeps a session from being served, how it is served, and how that ends."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests import certificates, documents
from tests.fake_nbd import FakeNbd
from tests.unit.builders import TRACKER, UUID, pull_session, session_checkpoint
from vbackup.errors import BusyError, MissingPackageError, SessionEndedError, StorageError, UsageError, VbackupError
from vbackup.operations import serve_session
from vbackup.operations.serve_session import ServeSessionRequest, Serving
from vbackup.qemu.nbd_client import ALLOCATION, DIRTY
from vbackup.sessions.record import Session, SessionState
from vbackup.sessions.store import Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

SIZE = 1024 * 1024
BASE = session_checkpoint(1, "vda")
CONTEXT = "qemu:dirty-bitmap:base"
TOKEN = "0123456789abcdef-token"
PATIENCE_S = 10.0


@dataclass
class Served:
    store: Store
    nbd: FakeNbd
    session: Session
    request: ServeSessionRequest
    stop: Stop = field(default_factory=Stop)
    outcome: list[Any] = field(default_factory=list)

    def write(self, **changes: Any) -> None:
        self.session = replace(self.session, **changes)
        with self.store.locked(UUID, stop=Stop()) as domain:
            domain.write(self.session)

    def begin(self) -> tuple[Serving, threading.Thread]:
        ready: list[Serving] = []
        is_ready = threading.Event()

        def on_ready(serving: Serving) -> None:
            ready.append(serving)
            is_ready.set()

        def work() -> None:
            try:
                run = serve_session.run(self.request, store=self.store, stop=self.stop, on_ready=on_ready)
                self.outcome.append(run)
            except VbackupError as err:
                self.outcome.append(err)
            is_ready.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert is_ready.wait(PATIENCE_S)
        assert ready, self.outcome
        return ready[0], thread

    def ask(self, url: str) -> Any:
        _, _, host, path = url.split("/", 3)
        context = ssl.create_default_context(cafile=str(self.request.tls_creds / "ca-cert.pem"))
        connection = http.client.HTTPSConnection(host, context=context, timeout=PATIENCE_S)
        connection.request("GET", f"/{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return json.loads(body) if answer.headers["Content-Type"].startswith("application/json") else body


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(serve_session, "LINGER_S", 0.0)
    pki, token = certificates.make(tmp_path / "pki"), tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    session = pull_session("vda")
    contexts = {CONTEXT: [(65536, DIRTY), (SIZE - 65536, 0)], ALLOCATION: [(SIZE, 0)]}
    with FakeNbd(tmp_path / "nbd", bytes(range(256)) * (SIZE // 256), contexts) as nbd:
        [disk] = session.disks
        changes: dict[str, Any] = {"base_checkpoint": BASE.id, "base_context": CONTEXT, "contexts": {BASE.id: CONTEXT}}
        disk = replace(disk, size_bytes=SIZE, uri=nbd.address.uri, **changes)
        request = ServeSessionRequest(session.id, "localhost", 0, pki, token)
        one = Served(Store(tmp_path / "sessions"), nbd, session, request)
        base = replace(BASE, disks={"vda": replace(BASE.disks["vda"], size_bytes=SIZE)})
        with one.store.locked(UUID, stop=Stop()) as domain:
            domain.write_tracker(Tracker(TRACKER, "web", UUID, (base,)))
        one.write(disks=(disk,), expires=datetime.now(timezone.utc) + timedelta(hours=1))
        yield one


def test_session_is_served_until_a_signal(served: Served) -> None:
    serving, thread = served.begin()
    document = serving.document()
    assert document["session"] == served.session.id
    [disk] = document["disks"]
    assert disk["size_bytes"] == SIZE
    changes = served.ask(disk["map"])
    documents.check(changes)
    assert changes["extents"] == [{"start": 0, "length": 65536, "dirty": True, "zero": False}]
    assert changes["next_offset"] is None
    assert served.ask(disk["map"] + "?kind=allocated&page_size=1")["next_offset"] == 65536
    assert served.ask(disk["map"] + "?kind=odd")["error"]["code"] == "BAD_REQUEST"
    assert served.ask(disk["map"] + "?kind=between&checkpoint=x")["error"]["code"] == "CHECKPOINT_UNKNOWN"
    assert served.ask(disk["data"]) == served.nbd.content
    served.stop.request(15)
    thread.join(PATIENCE_S)
    assert served.outcome == [None]


def test_commit_is_a_good_end(served: Served) -> None:
    _, thread = served.begin()
    served.write(state=SessionState.COMMITTED)
    served.nbd.drop()
    thread.join(PATIENCE_S)
    assert served.outcome == [SessionState.COMMITTED]


def test_commit_that_closes_the_disks_first_is_waited_for(served: Served) -> None:
    _, thread = served.begin()
    with served.store.locked(UUID, stop=Stop()) as domain:
        served.nbd.drop()
        thread.join(0.5)
        assert thread.is_alive()
        domain.write(replace(served.session, state=SessionState.COMMITTED))
    thread.join(PATIENCE_S)
    assert served.outcome == [SessionState.COMMITTED]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": SessionState.ABORTED}, "aborted"),
        ({"state": SessionState.FAILED, "end_reason": "The scratch is full."}, "scratch is full"),
        ({}, "QEMU does not serve"),
        ({"expires": datetime(2026, 1, 1, tzinfo=timezone.utc)}, "expired"),
    ],
)
def test_end_without_a_commit_is_an_error(served: Served, changes: dict[str, Any], said: str) -> None:
    _, thread = served.begin()
    served.write(**changes)
    served.nbd.drop()
    thread.join(PATIENCE_S)
    [outcome] = served.outcome
    assert isinstance(outcome, SessionEndedError)
    assert said in str(outcome)


def test_renewed_session_goes_on_and_expires_later(served: Served) -> None:
    served.write(expires=datetime.now(timezone.utc) + timedelta(seconds=1.0))
    serving, thread = served.begin()
    served.write(expires=datetime.now(timezone.utc) + timedelta(seconds=2.0))
    assert served.ask(f"{serving.url}/vda/map")["next_offset"] is None
    thread.join(0.8)
    assert thread.is_alive()
    thread.join(PATIENCE_S)
    [outcome] = served.outcome
    assert isinstance(outcome, SessionEndedError)


def refused(served: Served, **changes: Any) -> VbackupError:
    with pytest.raises(VbackupError) as caught:
        serve_session.run(
            replace(served.request, **changes), store=served.store, stop=served.stop, on_ready=lambda _: None
        )
    assert served.nbd.connections == 0
    return caught.value


def test_what_cannot_be_served_is_refused_before_anybody_can_connect(served: Served, tmp_path: Path) -> None:
    assert isinstance(refused(served, token_file=tmp_path / "none"), StorageError)
    assert isinstance(refused(served, tls_creds=tmp_path), StorageError)
    assert isinstance(refused(served, host="256.0.0.1"), UsageError)
    assert isinstance(refused(served, host="192.0.2.1", port=1), UsageError)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert isinstance(refused(served, host="127.0.0.1", port=port), BusyError)
    assert "No session" in str(refused(served, session="20010101T000000Z-abcdef"))
    served.write(state=SessionState.ABORTED)
    assert isinstance(refused(served), SessionEndedError)


def test_without_aiohttp_the_package_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "aiohttp" or name == "vbackup.http.server"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [_NoAiohttp(), *sys.meta_path])
    import vbackup.http

    monkeypatch.delattr(vbackup.http, "server", raising=False)
    err = refused(served)
    assert isinstance(err, MissingPackageError)
    assert "install the Debian package python3-aiohttp, or run 'pip install aiohttp'" in str(err)


class _NoAiohttp:
    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if name == "aiohttp":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
