"""A message goes its way: with the secret that was read, and with attempts until its time is over."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import documents
from tests.smtp import smtp
from tests.unit.notices.runs import PLACE, STARTED, USUAL, domain, overview, run
from tests.web import Answer, Web
from vbackup.config.model import Notifier, Secret
from vbackup.errors import NoticeError, Retry
from vbackup.notices.delivery import Kind, Message, deliver, kind
from vbackup.notices.occasion import decide
from vbackup.notices.ping import Signal
from vbackup.notices.told import Told


def secret(tmp_path: Path, text: str, name: str = "url") -> Secret:
    path = tmp_path / name
    path.write_text(f"{text}\n")
    path.chmod(0o600)
    return Secret(file=path)


def notifier(**more: object) -> Notifier:
    return replace(Notifier("ops", PLACE, USUAL), **more)  # type: ignore[arg-type]


def message(*failed: str, log: str = "", signal: Signal = Signal.FAIL) -> Message:
    late = overview(domain("web", is_overdue=True))
    found = decide(USUAL, Told(), run=run(*failed), overview=late, jobs=None)
    return Message(found, "the title", "hv1", STARTED, signal, log)


LOG = "\n".join(f"line {number}" for number in range(1000))


def test_ping_has_the_whole_log(server: Web, tmp_path: Path) -> None:
    one = notifier(ping=secret(tmp_path, f"{server.url}/ping/id"))
    assert kind(one) is Kind.PING
    deliver(one, message("web", log=LOG), 5)
    (asked,) = server.asked
    assert urlsplit(asked.path).path == "/ping/id/fail"
    assert asked.body.decode().count("line ") == 1000


def test_ping_of_a_start_has_no_text(server: Web, tmp_path: Path) -> None:
    deliver(notifier(ping=secret(tmp_path, server.url)), message(signal=Signal.START), 5)
    assert (urlsplit(server.asked[0].path).path, server.asked[0].body) == ("/start", b"")


def test_webhook_gets_the_report_signed(server: Web, tmp_path: Path) -> None:
    one = notifier(webhook=secret(tmp_path, server.url), secret=secret(tmp_path, "key", "key"))
    assert kind(one) is Kind.WEBHOOK
    deliver(one, message("web", log=LOG), 5)
    (asked,) = server.asked
    document = json.loads(asked.body)
    documents.check(document)
    assert document["title"] == "the title"
    assert document["run"]["job"] == "nightly"
    assert document["text"].count("line ") == 200
    assert asked.headers["webhook-id"] == document["id"]
    assert asked.headers["webhook-signature"].startswith("v1,")


def test_mail_has_the_end_of_the_log(tmp_path: Path) -> None:
    with smtp(tmp_path) as box:
        one = notifier(mail_to=("ops@example.org",), mail_from="backup@example.org", sendmail=box.sendmail)
        assert kind(one) is Kind.MAIL
        deliver(one, message("web", log=LOG), 20)
        ((sender, recipients, content),) = box.mails
    assert (sender, recipients) == ("backup@example.org", ["ops@example.org"])
    assert content.decode().count("line ") == 60


@pytest.mark.parametrize(("failed", "wanted"), [(("web",), "failure"), ((), "warning")])
def test_apprise_has_no_log(server: Web, tmp_path: Path, failed: tuple[str, ...], wanted: str) -> None:
    one = notifier(apprise=secret(tmp_path, server.url.replace("http:", "json:")))
    assert kind(one) is Kind.APPRISE
    deliver(one, message(*failed, log=LOG), 30)
    document = json.loads(server.asked[0].body)
    assert (document["title"], document["type"]) == ("the title", wanted)
    assert "line 999" not in document["message"]


def test_test_of_each_kind_says_what_it_is(server: Web, tmp_path: Path) -> None:
    for name in ("ping", "webhook"):
        test = Message(None, "vbackup on hv1: test", "hv1", STARTED, Signal.LOG)
        deliver(notifier(**{name: secret(tmp_path, server.url)}), test, 5)
    assert urlsplit(server.asked[0].path).path == "/log"
    assert b"vbackup notify test" in server.asked[0].body
    assert json.loads(server.asked[1].body)["reasons"] == ["test"]


def test_attempts_have_one_id_and_one_time(server: Web, tmp_path: Path) -> None:
    server.answers(Answer(503), Answer(is_dropped=True), Answer())
    deliver(notifier(webhook=secret(tmp_path, server.url)), message("web"), 10)
    assert len(server.asked) == 3
    assert len({(one.headers["webhook-id"], one.headers["webhook-timestamp"], one.body) for one in server.asked}) == 1


def test_time_of_all_attempts_together_has_a_limit(server: Web, tmp_path: Path) -> None:
    server.answers(Answer(503))
    begun = time.monotonic()
    with pytest.raises(NoticeError, match="503"):
        deliver(notifier(webhook=secret(tmp_path, server.url)), message("web"), 1.0)
    assert time.monotonic() - begun < 3
    assert len(server.asked) > 1


def test_secret_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    one = notifier(webhook=Secret(file=tmp_path / "none"))
    with pytest.raises(NoticeError, match=r"notifier ops was not sent: .*none") as caught:
        deliver(one, message("web"), 5)
    assert caught.value.retry is Retry.NEVER


def test_secret_of_a_program_is_read(server: Web, tmp_path: Path) -> None:
    deliver(notifier(ping=Secret(command=("echo", f"{server.url}/x"))), message(), 5)
    assert server.asked[0].path.startswith("/x/fail")
