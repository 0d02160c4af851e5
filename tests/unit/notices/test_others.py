"""apprise delivers for real, and what it logs is not seen."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.web import Answer, Web
from vbackup.errors import NoticeError, Retry
from vbackup.notices import others

SECRET = "s3cr3t-T0ken"


def url(server: Web) -> str:
    return server.url.replace("http://", "json://") + f"/{SECRET}"


def send(to: str, timeout_s: float = 30.0) -> None:
    others.send(
        "ops", to, title="web not backed up", text="Müller's disk\nis <full>", kind="failure", timeout_s=timeout_s
    )


def test_message_arrives(server: Web, capfd: pytest.CaptureFixture[str]) -> None:
    send(url(server))
    (asked,) = server.asked
    assert asked.path.endswith(f"/{SECRET}")
    document = json.loads(asked.body)
    assert (document["title"], document["message"], document["type"]) == (
        "web not backed up",
        "Müller's disk\nis <full>",
        "failure",
    )
    assert capfd.readouterr() == ("", "")


def test_server_that_refuses_is_an_error_without_the_url(server: Web, capfd: pytest.CaptureFixture[str]) -> None:
    server.answers(Answer(500))
    with pytest.raises(NoticeError, match="did not accept it") as caught:
        send(url(server))
    assert caught.value.retry is Retry.LATER
    assert SECRET not in repr(vars(caught.value))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("to", [f"nothing://{SECRET}", SECRET, "", f"mailto://{SECRET}"])
def test_url_that_apprise_does_not_know(to: str) -> None:
    with pytest.raises(NoticeError, match="apprise does not know") as caught:
        send(to)
    assert caught.value.retry is Retry.NEVER
    assert SECRET not in str(caught.value)


def test_url_is_looked_at_and_nothing_is_sent(server: Web, capfd: pytest.CaptureFixture[str]) -> None:
    others.check_url("ops", url(server), 30.0)
    with pytest.raises(NoticeError, match="apprise does not know") as caught:
        others.check_url("ops", f"mailto://{SECRET}", 30.0)
    assert SECRET not in repr(vars(caught.value))
    assert server.asked == []
    assert capfd.readouterr() == ("", "")


def test_service_that_hangs_is_ended(server: Web) -> None:
    server.answers(Answer(drip_s=0.2))
    begun = time.monotonic()
    with pytest.raises(NoticeError, match="did not end within 2 s"):
        send(url(server), 2.0)
    assert time.monotonic() - begun < 15


def test_without_apprise_the_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apprise.py").write_text("raise ModuleNotFoundError('no')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NoticeError, match="Debian's package apprise") as caught:
        send("json://localhost")
    assert caught.value.retry is Retry.NEVER


def test_program_that_breaks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apprise.py").write_text("raise SystemExit(7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NoticeError, match="exit status 7"):
        send("json://localhost")
