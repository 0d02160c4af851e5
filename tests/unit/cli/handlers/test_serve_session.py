"""``vbackup serve-session``: what it prints, and what is refused before anybody can connect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import pull_session
from vbackup.operations import serve_session
from vbackup.operations.serve_session import ServeSessionRequest, Serving
from vbackup.sessions.record import SessionState
from vbackup.sessions.store import ENVIRONMENT, Store
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command

SESSION = pull_session("vda", "vdb")
WORDS = ("serve-session", SESSION.id, "--http", "--tls-creds", "pki", "--token-file", "token")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ServeSessionRequest]:
    """The requests of sessions that are served, and committed at once."""
    made: list[ServeSessionRequest] = []

    def run(
        request: ServeSessionRequest, *, store: Store, stop: Stop, on_ready: Callable[[Serving], None]
    ) -> SessionState:
        assert store.directory == tmp_path
        assert stop.signum is None
        made.append(request)
        on_ready(Serving(SESSION, "https://localhost:8443"))
        return SessionState.COMMITTED

    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(serve_session, "run", run)
    return made


def test_addresses_are_printed(command: Command, requests: list[ServeSessionRequest]) -> None:
    done = command(*WORDS)
    assert done.stdout.splitlines() == [
        f"Session {SESSION.id} of domain web is served:",
        "  https://localhost:8443/vda/data (16.0 MiB)",
        "  https://localhost:8443/vdb/data (16.0 MiB)",
        "Ctrl-C ends it.",
        f"Session {SESSION.id} is committed.",
    ]
    assert command(*WORDS, "--quiet").stdout == ""
    done = command(*WORDS, "--json")
    assert done.stdout.count("\n") == 1, "it goes on, so a reader needs to know where the document ends"
    document = done.document
    assert (document["schema"], document["url"]) == ("vbackup.http/1", "https://localhost:8443")
    assert document["disks"][1] == {
        "dev": "vdb",
        "size_bytes": SESSION.disks[1].size_bytes,
        "map": "https://localhost:8443/vdb/map",
        "data": "https://localhost:8443/vdb/data",
    }


def test_options_reach_the_request(command: Command, requests: list[ServeSessionRequest]) -> None:
    command(*WORDS)
    command(*WORDS, "--listen", "[::1]:8443", "--verify-peer", "--max-readers", "3")
    first = ServeSessionRequest(SESSION.id, "localhost", 0, Path("pki"), Path("token"))
    assert requests == [
        first,
        ServeSessionRequest(SESSION.id, "::1", 8443, Path("pki"), Path("token"), verify_peer=True, max_readers=3),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("serve-session", SESSION.id),
        WORDS[:3],
        WORDS[:5],
        (*WORDS, "--listen", "8443"),
        (*WORDS, "--listen", "host:99999"),
        (*WORDS, "--max-readers", "0"),
        (*WORDS[:-1], ""),
    ],
    ids=" ".join,
)
def test_what_is_no_request_is_status_two(
    command: Command, requests: list[ServeSessionRequest], words: tuple[str, ...]
) -> None:
    command(*words, status=2)
    assert requests == []


def test_session_that_is_not_there_is_status_six(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import certificates

    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "none"))
    token = tmp_path / "token"
    words = ("serve-session", SESSION.id, "--http", "--tls-creds", certificates.make(tmp_path / "pki"))
    command(*words, "--token-file", token, status=7)
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    assert "No session" in command(*words, "--token-file", token, status=6).stderr
