"""The process of ssh and its lines: the begin, replies, the end in all ways."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from tests.unit.remote.conftest import begin
from vbackup.errors import HelperError, LinkLostError, RemoteError, SshError, VbackupError
from vbackup.remote import command, connection
from vbackup.remote.connection import Connection


def test_noise_of_a_login_script_is_skipped(helper: Connection) -> None:
    made = begin(["sh", "-c", f"echo Welcome; {command.bootstrap()}"])
    assert made.call("list", what="list", directory="/proc/self/task") != []
    made.close()
    made.close()


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("echo 'ssh: no route to host' >&2; exit 255", SshError, "cannot connect to hv1: ssh: no route to host. 'ssh"),
        ("echo 'python3: not found' >&2; exit 127", HelperError, "status 127: python3: not found"),
        ("echo This account is closed; exit 1", HelperError, "status 1: This account is closed"),
        ("exit 0", HelperError, "status 0. The user"),
        (
            "printf '@@@@\\n@ WARNING @\\n@@@@\\nThe key has changed.\\n' >&2; exit 255",
            SshError,
            ": The key has changed.",
        ),
    ],
)
def test_begin_that_fails(script: str, error: type[VbackupError], words: str) -> None:
    with pytest.raises(error) as raised:
        begin(["sh", "-c", script])
    assert words in str(raised.value)


def test_ssh_that_is_not_there() -> None:
    with pytest.raises(SshError, match="no-such-ssh: No such file"):
        Connection(["no-such-ssh"], host="hv1", try_first="ssh hv1 true")


def test_helper_that_never_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HELLO_S", 0.2)
    with pytest.raises(HelperError, match="did not start within 0 s"):
        begin(["sleep", "600"])


def test_stop_while_it_begins() -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin(["sleep", "600"], check)


def test_end_of_ssh_wakes_whoever_waits(helper: Connection) -> None:
    threading.Timer(0.2, helper._process.kill).start()
    with pytest.raises(LinkLostError, match="The SSH connection to hv1 has ended"):
        helper.call("run", what="run", argv=["sleep", "600"], stdin="", limit_s=600)
    assert helper.is_lost
    with pytest.raises(LinkLostError):
        helper.call("list", what="list", directory="/")


def test_silence_is_a_loss(helper: Connection) -> None:
    helper._process.send_signal(19)  # SIGSTOP: the line is there, and nobody answers
    with pytest.raises(LinkLostError, match="was silent"):
        helper.call("list", what="list", directory="/")


#: A helper that says who it is, and then answers the first request, after the beats before it, with one line.
ANSWER = """\
import json, sys
print(json.dumps({"hello": 1}), flush=True)
for line in sys.stdin.buffer:
    if b'"bye"' in line:
        break
    if b'"do"' in line:
        sys.stdout.write(%s)
        sys.stdout.flush()
"""
GOOD = """'{"id": 1, "return": [7]}\\n'"""


def hostile(answer: str) -> Connection:
    return begin([sys.executable, "-c", ANSWER % answer])


@pytest.mark.parametrize(
    "line", ["5", "null", '["id"]', '{"thawed": []}', '{"id": [1]}', '{"id": {}}', "[" * 100_000, "\x00"]
)
def test_what_is_no_message_is_passed_over(line: str) -> None:
    made = hostile(f"{line + chr(10)!r} + {GOOD}")
    try:
        assert made.call("list", what="list", timeout_s=20) == [7]
    finally:
        made.close()


@pytest.mark.parametrize("error", ["5", '{"text": "no number"}', '{"errno": "x", "text": ""}'])
def test_error_that_is_none_is_one(error: str) -> None:
    made = hostile(repr(f'{{"id": 1, "error": {error}}}\n'))
    try:
        with pytest.raises(RemoteError, match="no answer of vbackup's helper"):
            made.call("list", what="list", timeout_s=20)
    finally:
        made.close()


def test_line_without_an_end_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINE_BYTES", 1 << 20)
    made = hostile("'x' * (1 << 22)")
    try:
        with pytest.raises(LinkLostError, match="has sent a message without an end"):
            made.call("list", what="list", timeout_s=20)
        assert made._process.wait(5) == -9  # and with it all forwarded sockets
    finally:
        made.close()


def test_long_answer_in_many_pieces() -> None:
    made = hostile("""'{"id": 1, "return": "' + 'x' * (1 << 24) + '"}\\n'""")
    try:
        assert len(made.call("list", what="list", timeout_s=20)) == 1 << 24
    finally:
        made.close()


def test_thread_that_fails_ends_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    made = hostile(GOOD)
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)
    monkeypatch.setattr(made, "_take", lambda _line: 1 / 0)
    try:
        with pytest.raises(LinkLostError):
            made.call("list", what="list", timeout_s=20)
        assert made._process.wait(5) == -9
    finally:
        made.close()


def test_closed_connection_writes_to_no_descriptor_that_has_the_number_now(
    helper: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, written = helper._wake_w, []
    helper.close()
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, _data: written.append(fd))
        helper._send({"do": "late"})
    assert number not in written
