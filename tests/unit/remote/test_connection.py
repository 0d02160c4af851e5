"""The process of ssh and its lines: the begin, replies, the end in all ways."""

from __future__ import annotations

import pytest

from tests.unit.remote.conftest import begin
from vbackup.errors import HelperError, LinkLostError, SshError, VbackupError
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
    import threading

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
