"""What a word can be: which source is asked, what takes its place, and how long that may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbackup.config import documents
from vbackup.domain import known_names as libvirt_names
from vbackup.operations.completion import ValueKind, ValuesRequest, values
from vbackup.repository import known_names
from vbackup.sessions import store

ASK = ValueKind.DOMAINS


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What a source waits for that does not answer; the end of the test lets it go."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_names, "domains", lambda _repository: ["kept"])
    monkeypatch.setattr(known_names, "backups", lambda _repository, domain: [f"backup of {domain}"])
    monkeypatch.setattr(known_names, "disks", lambda _repository, domain, backup: [f"{domain} {backup}"])
    monkeypatch.setattr(known_names, "hosts", lambda _repository, domain: [f"host of {domain}"])
    monkeypatch.setattr(libvirt_names, "domains", lambda uri: [f"at {uri}"])
    monkeypatch.setattr(libvirt_names, "disks", lambda uri, domain: [f"{domain} at {uri}"])


def request(*kinds: ValueKind, repository: str | None = "/repository", **more: str) -> ValuesRequest:
    return ValuesRequest(kinds, repository, uris=("u",), **more)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ValueKind.DOMAINS, "at u"),
        (ValueKind.RECORDED_DOMAINS, "kept"),
        (ValueKind.BACKUPS, "backup of web"),
        (ValueKind.DISKS, "web at u"),
        (ValueKind.RECORDED_DISKS, "web b"),
        (ValueKind.HOSTS, "host of web"),
    ],
)
def test_each_kind_has_its_source(kind: ValueKind, expected: str) -> None:
    assert values(request(kind, domain="web", backup="b")) == [expected]


def test_several_kinds_are_in_their_order() -> None:
    assert values(request(ValueKind.RECORDED_DOMAINS, ValueKind.BACKUPS)) == ["kept", "backup of None"]


@pytest.mark.parametrize("kind", [one for one in ValueKind if one not in (ValueKind.DOMAINS, ValueKind.DISKS)])
def test_without_a_repository_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: ValueKind
) -> None:
    monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path / "none"))
    monkeypatch.setattr(documents, "SYSTEM", tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert values(request(kind, repository=None, domain="web")) == []


@pytest.mark.parametrize("kind", [ValueKind.DISKS, ValueKind.RECORDED_DISKS])
def test_disks_are_of_a_domain(kind: ValueKind) -> None:
    assert values(request(kind)) == []


def test_repository_says_what_libvirt_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_names, "domains", lambda _uri: None)
    monkeypatch.setattr(libvirt_names, "disks", lambda _uri, _domain: None)
    assert values(request(ValueKind.DOMAINS)) == ["kept"]
    assert values(request(ValueKind.DISKS, domain="web")) == ["web None"]


def test_one_of_several_hosts_that_does_not_say_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_names, "domains", lambda uri: ["here"] if uri == "near" else None)
    assert values(ValuesRequest([ASK], "/repository", uris=("near", "far"))) == ["here", "kept"]
    assert values(ValuesRequest([ASK], "/repository", uris=("near",))) == ["here"]


def test_broken_source_says_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(*_more: object) -> list[str]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(libvirt_names, "domains", broken)
    assert values(request(ASK)) == ["kept"]
    monkeypatch.setattr(known_names, "domains", broken)
    assert values(request(ASK)) == []
    assert capfd.readouterr() == ("", "")


def test_source_that_does_not_answer_holds_up_neither_the_shell_nor_the_other(
    monkeypatch: pytest.MonkeyPatch, never: threading.Event
) -> None:
    monkeypatch.setattr(libvirt_names, "domains", lambda _uri: never.wait())
    began = time.monotonic()
    assert values(request(ASK), limit_s=0.1) == ["kept"]
    monkeypatch.setattr(known_names, "domains", lambda _repository: never.wait())
    assert values(request(ASK), limit_s=0.1) == []
    assert 0.2 <= time.monotonic() - began < 5


def test_name_that_a_line_cannot_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["web", "a\nb", "\x1b[2J", "", "-q", "my machine", "web", "mädchen", "a\tb"]
    monkeypatch.setattr(known_names, "domains", lambda _repository: names)
    assert values(request(ValueKind.RECORDED_DOMAINS)) == ["web", "my machine", "mädchen"]


def test_sessions_and_trackers_are_those_of_the_state_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path))
    directory = tmp_path / "6695eb01-f6a4-8304-79aa-97f2502e1930"
    directory.mkdir()
    for name in ("session-20261101T000000Z-aaaaaa", "session-20261102T000000Z-bbbbbb", "tracker-nightly"):
        (directory / f"{name}.json").touch()
    (directory / "lock").touch()
    assert values(request(ValueKind.SESSIONS)) == ["20261102T000000Z-bbbbbb", "20261101T000000Z-aaaaaa"]
    assert values(request(ValueKind.TRACKERS)) == ["nightly"]


CONFIGURATION = """
[repository.main]
path = "/srv/backup"
[repository.odd]
path = 5
[target.offsite]
url = "s3://bucket/web"
[job.nightly]
[job."my job"]
no-such-key = 3
[notify.ops]
"""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ValueKind.JOBS, ["nightly", "my job"]),
        (ValueKind.NOTIFIERS, ["ops"]),
        (ValueKind.TARGETS, ["offsite"]),
        (ValueKind.TARGET_URLS, ["s3://bucket/web"]),
        (ValueKind.REPOSITORIES, ["/srv/backup"]),
    ],
)
def test_names_of_the_configuration_are_there_whatever_faults_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: ValueKind, expected: list[str]
) -> None:
    file = tmp_path / documents.FILE
    file.write_text(CONFIGURATION)
    assert values(request(kind, config=str(file))) == expected
    monkeypatch.setattr(documents, "directory", lambda: tmp_path)
    assert values(request(kind)) == expected
    file.write_text("job = 3\nnotify = []\ntarget = 'x'\n[repository]\nmain = 1\n")
    assert values(request(kind)) == []
    file.write_text("[job.")
    assert values(request(kind)) == values(request(kind, config="/missing")) == []
