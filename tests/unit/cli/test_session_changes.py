"""``vbackup session changes``: the request that the words make, and the page that is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import pull_session
from vbackup.operations import session_changes
from vbackup.operations.session_changes import MAX_RESULTS, Changes, ChangesRequest, Kind
from vbackup.qemu.nbd_blocks import Extent
from vbackup.sessions.store import ENVIRONMENT, Store

if TYPE_CHECKING:
    from tests.conftest import Command

SESSION = pull_session("vda")
WORDS = ("session", "changes", SESSION.id, "--disk", "vda")
EXTENTS = (Extent(0, 65536, is_dirty=True, is_zero=False), Extent(131072, 65536, is_dirty=True, is_zero=True))


class Asked:
    """What was asked for, and what is answered."""

    def __init__(self) -> None:
        self.requests: list[ChangesRequest] = []
        self.answer = Changes(SESSION, SESSION.disks[0], Kind.DELTA, "base", EXTENTS, None)

    def run(self, request: ChangesRequest, *, store: Store) -> Changes:
        self.requests.append(request)
        return self.answer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    one = Asked()
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(session_changes, "run", one.run)
    return one


def test_page_is_a_table(command: Command, asked: Asked) -> None:
    assert command(*WORDS).stdout.splitlines() == [
        " START  LENGTH  DIRTY  ZERO",
        "     0   65536    yes  no",
        "131072   65536    yes  yes",
    ]
    asked.answer = Changes(SESSION, SESSION.disks[0], Kind.DELTA, "base", EXTENTS[:1], 131072)
    assert command(*WORDS).stdout.splitlines()[-1] == "More follow: --offset 131072"
    asked.answer = Changes(SESSION, SESSION.disks[0], Kind.DELTA, "base", (), None)
    assert command(*WORDS).stdout == "No extents.\n"


def test_page_is_a_document(command: Command, asked: Asked) -> None:
    document = command(*WORDS, "--json").document
    assert document["schema"] == "vbackup.changes/1"
    assert document["extents"] == [
        {"start": 0, "length": 65536, "dirty": True, "zero": False},
        {"start": 131072, "length": 65536, "dirty": True, "zero": True},
    ]
    assert document["next_offset"] is None
    asked.answer = Changes(SESSION, SESSION.disks[0], Kind.DELTA, "base", (), None)
    assert command(*WORDS, "--json").document["extents"] == []


def test_options_reach_the_request(command: Command, asked: Asked) -> None:
    command(*WORDS)
    command(*WORDS, "--offset", "64k", "--length", "1G", "--max-results", "7", "--kind", "allocated")
    command(*WORDS, "--kind", "between", "c", "--tls-creds", "/pki")
    defaults = ChangesRequest(SESSION.id, "vda", max_results=MAX_RESULTS)
    assert asked.requests == [
        defaults,
        ChangesRequest(SESSION.id, "vda", 65536, 1024**3, 7, Kind.ALLOCATED),
        ChangesRequest(SESSION.id, "vda", kind=Kind.BETWEEN, checkpoint="c", tls_creds=Path("/pki")),
    ]


@pytest.mark.parametrize(
    "more",
    [
        ("--kind", "odd"),
        ("--kind", "between"),
        ("--kind", "delta", "c"),
        ("--kind", "between", "c", "d"),
        ("--kind",),
        ("--offset", "-1"),
        ("--length", "x"),
        ("--max-results", "0"),
        ("--max-results", "1000001"),
        ("--disk", "vdb"),
    ],
    ids=" ".join,
)
def test_what_is_no_request_is_status_two(command: Command, asked: Asked, more: tuple[str, ...]) -> None:
    command(*WORDS, *more, status=2)
    assert asked.requests == []


def test_disk_has_to_be_named_and_session_be_there(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert "--disk" in command(*WORDS[:3], status=2).stderr
    assert "No session" in command(*WORDS, status=6).stderr
