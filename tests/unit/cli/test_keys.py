"""Keys of what is encrypted in a guest: from a file, and from a terminal without echo."""

from __future__ import annotations

import os
import pty
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbackup.cli import keys
from vbackup.errors import InterruptedBySignalError, StorageError, UnsuitableError, UsageError
from vbackup.stop import Stop


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The other end of a terminal that takes the place of /dev/tty."""
    other, fd = pty.openpty()
    monkeypatch.setattr(keys, "_TERMINAL", Path(os.ttyname(fd)))
    yield other
    os.close(fd)
    os.close(other)


def answering(terminal: int, answer: bytes) -> tuple[threading.Thread, list[bytes]]:
    """Answer the next prompt in the background, when it has been printed."""
    seen: list[bytes] = []

    def run() -> None:
        while not b"".join(seen).endswith(b": "):
            seen.append(os.read(terminal, 1000))
        os.write(terminal, answer)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, seen


@pytest.mark.parametrize("content", [b"pass word", b"pass word\n"])
def test_file_has_the_key_in_its_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    key = keys.of(tmp_path / "key", Stop())
    assert [key("vda/1", attempt) for attempt in (0, 1)] == [b"pass word", None]


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb", b"a\0b", b"x" * 8193])
def test_file_that_is_no_passphrase_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match="key file"):
        keys.of(tmp_path / "key", Stop())


def test_missing_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="read the key file"):
        keys.of(tmp_path / "key", Stop())


def test_terminal_is_asked_without_echo_and_once(terminal: int) -> None:
    key = keys.of(None, Stop())
    thread, seen = answering(terminal, b"secret\n")
    assert key("vda/2", 0) == b"secret"
    thread.join()
    assert b"".join(seen) == b"Passphrase of vda/2 in the guest: "
    assert key("vda/2", 0) == b"secret"  # for the next backup
    assert os.read(terminal, 1000) == b"\r\n"  # and nothing of the key
    thread, seen = answering(terminal, b"right\n")
    assert key("vda/2", 1) == b"right"
    thread.join()
    assert b"again" in b"".join(seen)
    assert key("vda/2", 3) is None


def test_no_answer_is_no_key_and_a_signal_ends_the_question(terminal: int) -> None:
    thread, _ = answering(terminal, b"\n")
    with pytest.raises(UnsuitableError, match="No passphrase was given"):
        keys.of(None, Stop())("vda/2", 0)
    thread.join()
    stop = Stop()
    stop.request(2)
    with pytest.raises(InterruptedBySignalError):
        keys.of(None, stop)("vda/2", 0)
    fd = os.open(keys._TERMINAL, os.O_RDWR | os.O_NOCTTY)
    assert termios.tcgetattr(fd)[3] & termios.ECHO
    os.close(fd)


def test_without_a_terminal_the_option_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(keys, "_TERMINAL", tmp_path / "tty")
    with pytest.raises(UnsuitableError, match=r"vda/2 in the guest is encrypted, .* give --key-file"):
        keys.of(None, Stop())("vda/2", 0)
