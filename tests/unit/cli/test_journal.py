"""What goes to systemd's journal has its priority and fields; only there, and also if its socket is gone."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbackup.cli import journal, main, reporters
from vbackup.report import Phase

ID = "20261130T010000Z-incremental"
JOURNALD = "/lib/systemd/systemd-journald"


class FakeJournal:
    """The journal's socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(10)

    def entry(self) -> dict[str, str]:
        """The next message, as journald reads it."""
        data, fields = self._socket.recv(65536), {}
        while data:
            line, _, rest = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                (length,) = struct.unpack_from("<Q", rest)
                value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
            fields[name.decode()] = value.decode()
            data = rest
        return fields

    def is_empty(self) -> bool:
        """True if nothing has come."""
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Standard error leads to the journal.

    Said without JOURNAL_STREAM: pytest opens another file for capfd when the test itself begins, which is the same
    inode only if no other process has got that meanwhile.
    """
    capfd.readouterr()
    monkeypatch.setattr(journal, "is_there", lambda: True)


@pytest.fixture
def fake(stream: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJournal]:
    # Not below tmp_path: the address of a socket has 108 bytes.
    directory = Path(tempfile.mkdtemp(prefix="vbackup-"))
    monkeypatch.setattr(journal, "SOCKET", str(directory / "socket"))
    made = FakeJournal(directory / "socket")
    yield made
    made.close()
    shutil.rmtree(directory)


def test_a_message_has_its_priority_and_fields(fake: FakeJournal) -> None:
    assert journal.log(journal.WARNING, f"web: Backup {ID} is late.", domain="web", job=None)
    assert fake.entry() == {
        "MESSAGE": f"web: Backup {ID} is late.",
        "MESSAGE_ID": journal.WARNED,
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "vbackup",
        "VBACKUP_DOMAIN": "web",
        "VBACKUP_BACKUP": ID,
    }


def test_text_of_several_lines_stays_one_message(fake: FakeJournal) -> None:
    assert journal.log(journal.INFO, "one\nMESSAGE=two\ud800", domain="a=b")
    entry = fake.entry()
    assert entry["MESSAGE"] == "one\nMESSAGE=two\\ud800"
    assert entry["VBACKUP_DOMAIN"] == "a=b"
    assert "MESSAGE_ID" not in entry


def test_steps_and_warnings_of_a_run_name_job_and_domain(fake: FakeJournal, capfd: pytest.CaptureFixture[str]) -> None:
    with reporters.choose("auto", quiet=False) as reporter:
        reporter.step("Job nightly: backup.")
        reporter.labelled("web").step(f"Backup {ID} is complete.")
        reporter.labelled("web").warning("It changed much.")
        reporter.labelled("web").progress("vda", Phase.COPY, 1, 2)
    first, second, third = fake.entry(), fake.entry(), fake.entry()
    assert (first["MESSAGE"], first["PRIORITY"], first["VBACKUP_JOB"]) == ("Job nightly: backup.", "6", "nightly")
    assert (second["MESSAGE"], second["VBACKUP_BACKUP"]) == (f"web: Backup {ID} is complete.", ID)
    assert (third["PRIORITY"], third["VBACKUP_DOMAIN"], third["VBACKUP_JOB"]) == ("4", "web", "nightly")
    assert fake.is_empty()
    assert capfd.readouterr().err == ""


def test_warnings_of_a_quiet_command_have_their_priority_too(fake: FakeJournal) -> None:
    with reporters.choose("auto", quiet=True) as reporter:
        reporter.step("Nothing.")
        reporter.warning("Something.")
    assert fake.entry()["PRIORITY"] == "4"
    assert fake.is_empty()


def test_an_error_has_its_code(fake: FakeJournal, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "-r", str(tmp_path)]) == 7
    entry = fake.entry()
    assert (entry["PRIORITY"], entry["VBACKUP_CODE"], entry["VBACKUP_STATUS"]) == ("3", "STORAGE_UNUSABLE", "7")
    assert entry["MESSAGE_ID"] == journal.FAILED
    assert entry["MESSAGE"].startswith(f"{tmp_path} is not a vbackup repository")
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("stream")
def test_without_the_socket_lines_have_their_priority(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "gone"))
    assert journal.log(journal.ERROR, "one\ntwo")
    assert capfd.readouterr().err == "<3>one two\n"


@pytest.mark.parametrize("value", [None, "", "1:2", "nonsense", "1"])
def test_what_does_not_lead_to_the_journal_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    else:
        monkeypatch.setenv("JOURNAL_STREAM", value)
    assert not journal.log(journal.ERROR, "An error.")
    journal.failed("Another.")
    reporters.Warnings().warning("A warning.")
    assert capfd.readouterr().err == "vbackup: Another.\nvbackup: warning: A warning.\n"


#: In a mount namespace: nothing of it reaches the journal of this machine.
SCRIPT = """
set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/systemd/journal /run/log/journal
{journald} > /dev/null 2>&1 &
journald=$!
trap 'kill $journald' EXIT
for attempt in $(seq 100); do [ -S /run/systemd/journal/socket ] && break; sleep 0.05; done
exec 2> {log}
export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)
{python} -m vbackup list -r {missing} || true
journalctl --sync || true
journalctl -D /run/log/journal -o json VBACKUP_CODE=STORAGE_UNUSABLE
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a journald is started in a namespace")
def test_a_real_journald_takes_it(tmp_path: Path) -> None:
    if not Path(JOURNALD).exists() or shutil.which("journalctl") is None:
        pytest.skip("systemd is not installed")
    (tmp_path / "log").touch()
    script = SCRIPT.format(journald=JOURNALD, log=tmp_path / "log", python=sys.executable, missing=tmp_path / "missing")
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done
    entry = json.loads(done.stdout)
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"], entry["VBACKUP_STATUS"]) == ("3", "vbackup", "7")
    assert "is not a vbackup repository" in entry["MESSAGE"]
    assert (tmp_path / "log").read_text() == ""
