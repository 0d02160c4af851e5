"""Mail arrives through a real sendmail at a real SMTP server, whatever the names of guests are."""

from __future__ import annotations

import email
import email.policy
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.smtp import Mailbox, smtp
from vbackup.errors import NoticeError, Retry
from vbackup.notices import mail

TIME = datetime(2026, 11, 30, 1, 12, tzinfo=timezone.utc)
TO = ("ops@example.org", "root")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Mailbox]:
    with smtp(tmp_path) as made:
        yield made


def message(title: str = "title", text: str = "text\n", sender: str | None = None) -> EmailMessage:
    return mail.message("ops", TO, sender, title=title, text=text, host="hv1.example.org", time=TIME)


def parsed(data: bytes) -> EmailMessage:
    found = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_mail_arrives(box: Mailbox) -> None:
    text = "Müller's disk is full.\n.\nA line with a dot, and a long one: " + "x" * 2000 + "\n"
    sent = message("vbackup: FAILED: Müller", text, "backup@example.org")
    mail.send("ops", sent, program=box.sendmail, sender="backup@example.org", timeout_s=20)
    ((sender, recipients, content),) = box.mails
    assert sender == "backup@example.org"
    assert [one.partition("@")[0] for one in recipients] == ["ops", "root"]
    got = parsed(content)
    assert got["Subject"] == "vbackup: FAILED: Müller"
    assert got["From"] == "backup@example.org"
    assert got["To"] == "ops@example.org, root"
    assert got["Auto-Submitted"] == "auto-generated"
    assert got["Date"].datetime == TIME
    assert got["Message-ID"].endswith("@hv1.example.org>")
    assert got.get_content().replace("\r\n", "\n") == text
    assert all(len(line) <= 998 for line in content.splitlines())


def test_without_a_sender_it_is_the_user_of_this_host(box: Mailbox) -> None:
    mail.send("ops", message(), program=box.sendmail, sender=None, timeout_s=20)
    assert parsed(box.mails[0][2])["From"].addresses[0].domain == "hv1.example.org"


def test_server_that_refuses_the_mail_is_an_error_with_its_words(box: Mailbox) -> None:
    box.reply = "554 no mail today"
    with pytest.raises(NoticeError, match="exit status") as caught:
        mail.send("ops", message(), program=box.sendmail, sender=None, timeout_s=20)
    assert caught.value.retry is Retry.NEVER


@given(st.text(), st.text())
def test_no_text_adds_a_header_or_a_recipient(title: str, text: str) -> None:
    sent = message(f"x\r\nBcc: evil@example.org\r\n\r\n{title}", text)
    got = parsed(sent.as_bytes())
    assert sorted(got.keys()) == sorted(
        (
            *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted"),
            *("Content-Type", "Content-Transfer-Encoding", "MIME-Version"),
        )
    )
    assert got["To"] == "ops@example.org, root"
    assert [line for line in sent.as_bytes().splitlines() if line.startswith(b"Bcc")] == []


@pytest.mark.parametrize(
    "address",
    [
        *("", " ", "-oQ/tmp", "a@example.org\nBcc: b@example.org", "a@example.org, b@example.org", "a b@example.org"),
        *("Ops <a@example.org>", "müller@example.org", "a@", "@example.org", "a@exa mple.org", "a;b@example.org"),
        *("a@b@c", "a\x00@example.org", "(a)@example.org"),
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    for to, sender in (((address,), None), (("ops@example.org",), address)):
        if sender == "":
            continue  # none given
        with pytest.raises(NoticeError, match="is not a mail address") as caught:
            mail.message("ops", to, sender, title="", text="", host="h", time=TIME)
        assert caught.value.retry is Retry.NEVER


@pytest.mark.parametrize("host", ["", "...", "Müller", "a b\nc"])
def test_name_of_the_host_may_be_no_domain(host: str) -> None:
    sent = mail.message("ops", TO, None, title="", text="", host=host, time=TIME)
    assert parsed(sent.as_bytes())["From"].addresses[0].domain


def test_temporary_failure_is_tried_again_and_others_are_not(tmp_path: Path) -> None:
    program = script(tmp_path / "sendmail", 'cat > /dev/null; echo "$0: no luck" >&2; exit $(cat "$0.status")')
    for status, retry in ((75, Retry.LATER), (64, Retry.NEVER)):
        (tmp_path / "sendmail.status").write_text(str(status))
        with pytest.raises(NoticeError, match=f"exit status {status}: .*no luck") as caught:
            mail.send("ops", message(), program=program, sender=None, timeout_s=20)
        assert caught.value.retry is retry


def test_program_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = script(tmp_path / "sendmail", f'sleep 1000 & echo $! > "{pids}"; wait')
    begun = time.monotonic()
    with pytest.raises(NoticeError, match=r"did not end within 0\.5 s"):
        mail.send("ops", message(), program=program, sender=None, timeout_s=0.5)
    assert time.monotonic() - begun < 10
    stat = Path(f"/proc/{pids.read_text().strip()}/stat")
    deadline = time.monotonic() + 5
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended, perhaps between open(2) and read(2)
        while stat.read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_program_that_reads_nothing_is_no_failure_of_its_own(tmp_path: Path) -> None:
    program = script(tmp_path / "sendmail", "exit 0")
    mail.send("ops", message(text="x\n" * 200_000), program=program, sender=None, timeout_s=20)


def test_arguments_have_no_recipient(tmp_path: Path) -> None:
    program = script(tmp_path / "sendmail", f'cat > /dev/null; printf "%s\\n" "$@" > "{tmp_path}/argv"')
    mail.send("ops", message(), program=program, sender="backup@example.org", timeout_s=20)
    assert (tmp_path / "argv").read_text().split() == ["-t", "-i", "-f", "backup@example.org"]


def test_program_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoticeError, match="cannot be started: No such file"):
        mail.send("ops", message(), program=tmp_path / "none", sender=None, timeout_s=5)
    monkeypatch.setattr(mail, "USUAL", tmp_path / "none")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(NoticeError, match="no program sendmail"):
        mail.send("ops", message(), program=None, sender=None, timeout_s=5)
    found = script(tmp_path / "sendmail", "exit 0")
    mail.send("ops", message(), program=None, sender=None, timeout_s=20)
    monkeypatch.setattr(mail, "USUAL", found)
    monkeypatch.setenv("PATH", "")
    mail.send("ops", message(), program=None, sender=None, timeout_s=20)
