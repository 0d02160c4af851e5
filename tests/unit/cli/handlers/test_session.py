"""``vbackup session``: the request that the words make, and the session that is printed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit import builders
from tests.unit.builders import NOON, pull_session
from vbackup.errors import SessionEndedError
from vbackup.model import Level, Quiesce
from vbackup.operations import session_begin, session_end, session_status
from vbackup.operations.session_begin import SessionRequest
from vbackup.sessions.record import Session, SessionState
from vbackup.sessions.store import Store
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SessionRequest]:
    """A host on which a session can be begun; the list gets the requests."""
    got: list[SessionRequest] = []

    def begin(request: SessionRequest, **_others: object) -> Session:
        got.append(request)
        return pull_session("vda", "vdb")

    builders.use_libvirt(monkeypatch, None)
    monkeypatch.setattr(session_begin, "begin", begin)
    monkeypatch.setenv("VBACKUP_SOCKETS", str(tmp_path))
    monkeypatch.setenv("VBACKUP_SESSIONS", str(tmp_path / "state"))
    monkeypatch.delenv("TMPDIR", raising=False)
    return got


def test_defaults(command: Command, requests: list[SessionRequest]) -> None:
    command("session", "begin", "web", "--tracker", "acme:web")
    (request,) = requests
    assert (request.domain, request.tracker, request.level) == ("web", "acme:web", Level.AUTO)
    assert (request.ttl_s, request.scratch, request.listen) == (7200.0, None, None)


def test_what_is_asked_for(command: Command, requests: list[SessionRequest], tmp_path: Path) -> None:
    arguments = ["--level", "incremental", "--base", "20261123T120001Z-full", "--disk", "vda,vdb", "--ttl", "30m"]
    more = ["--scratch", tmp_path, "--quiesce", "required", "--listen", "[::1]:10809", "--tls-creds", tmp_path]
    command("session", "begin", "--domain", "web", "--tracker", "acme", *arguments, *more)
    (request,) = requests
    assert (request.level, request.base) == (Level.INCREMENTAL, "20261123T120001Z-full")
    assert (request.disks, request.ttl_s, request.quiesce) == (("vda", "vdb"), 1800.0, Quiesce.REQUIRED)
    assert (request.scratch, request.listen, request.tls) == (tmp_path, "[::1]:10809", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "192.0.2.7:10809"], "give certificates with --tls-creds"),
        (["--tls-creds", "/x"], "only its owner reaches"),
        (["--listen", "here", "--tls-creds", "/x"], "is not HOST:PORT"),
        (["--level", "full", "--base", "x"], "starts from nothing"),
        (["--level", "copy"], "invalid choice"),
        (["--ttl", "0"], "more than 0 seconds"),
        (["--tracker", "../x"], "cannot be the name of a tracker"),
    ],
)
def test_what_makes_no_sense_is_refused(
    command: Command, requests: list[SessionRequest], arguments: list[str], message: str
) -> None:
    done = command("session", "begin", "web", "--tracker", "acme", *arguments, status=2)
    assert message in done.stderr
    assert requests == []


def test_session_is_a_table_for_people_and_a_document_for_programs(
    command: Command, requests: list[SessionRequest]
) -> None:
    session = pull_session("vda", "vdb")
    lines = command("session", "begin", "web", "--tracker", "acme").stdout.splitlines()
    assert lines[0].startswith(f"Session {session.id} of tracker acme:web, domain web: open until ")
    assert lines[1].split() == ["DISK", "LEVEL", "SIZE", "CHANGED", "URI"]
    assert lines[2].split()[0] == "vda"
    document = command("session", "begin", "web", "--tracker", "acme", "--json").document
    assert document == session.document()
    assert command("session", "begin", "web", "--tracker", "acme", "-q").stdout == ""


def record(tmp_path: Path, session: Session) -> None:
    with Store(tmp_path / "state").locked(session.domain_uuid, stop=Stop()) as domain:
        domain.write(session)


@pytest.mark.parametrize("step", ["commit", "abort", "status", "renew"])
def test_step_names_the_session(
    command: Command, requests: list[SessionRequest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    got: list[tuple[object, ...]] = []
    ended = pull_session("vda", state=SessionState.FAILED, ended=NOON, end_reason="QEMU has ended")

    def take(*arguments: object, **_others: object) -> Session:
        got.append(arguments)
        return ended

    record(tmp_path, ended)
    owner = session_end if step in ("commit", "abort") else session_status
    monkeypatch.setattr(owner, step, take)
    more = ["--ttl", "1h"] if step == "renew" else []
    done = command("session", step, ended.id, *more)
    assert got == [(ended.id, 3600.0) if step == "renew" else (ended.id,)]
    assert done.stdout == f"Session {ended.id} of tracker acme:web, domain web: failed: QEMU has ended.\n"


def test_error_says_what_the_client_does_next(
    command: Command, requests: list[SessionRequest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record(tmp_path, pull_session("vda"))

    def expired(session_id: str, **_others: object) -> Session:
        raise SessionEndedError(session_id, "expired")

    monkeypatch.setattr(session_end, "commit", expired)
    error = command("session", "commit", "20261123T120002Z-000002", "--json", status=6).document
    assert (error["code"], error["retry"]) == ("SESSION_ENDED", "begin")
    assert error["details"] == {"session": "20261123T120002Z-000002", "state": "expired"}


def test_list_shows_what_was_written_down(command: Command, requests: list[SessionRequest], tmp_path: Path) -> None:
    assert command("session", "list").stdout == "No sessions.\n"
    store = Store(tmp_path / "state")
    old = pull_session("vda")
    fresh = replace(pull_session("vda", number=3), expires=NOON + timedelta(days=365_00))
    with store.locked(old.domain_uuid, stop=Stop()) as domain:
        domain.write(replace(old, expires=NOON - timedelta(days=3650)))
        domain.write(fresh)
    sessions = command("session", "list", "web", "--json").document["sessions"]
    assert [(one["id"], one["state"]) for one in sessions] == [(old.id, "expired"), (fresh.id, "open")]
    assert command("session", "list", "other", "--json").document["sessions"] == []
    assert fresh.id in command("session", "list").stdout
