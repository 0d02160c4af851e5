"""``vbackup cat`` and vbackup.operations.cat: the content of a file of a guest, with a fake of guestfish."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vbackup.cli import streams
from vbackup.cli.handlers import cat

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.unit.cli.handlers.conftest import InsideGuest

FILES = {"file": (0o100644, 4, "a\x1b\n\udcff"), "sub": (0o40755, 4096, ""), "pipe": (0o10644, 0, "")}


def test_content_is_printed_as_it_is(filled: Path, guest: InsideGuest, printed: Callable[..., bytes]) -> None:
    guest.tree("/etc", FILES)
    assert printed("cat", "web", "/etc/file", "-r", filled) == b"a\x1b\n\xff"


def test_terminal_is_not_steered(capsys: pytest.CaptureFixture[str]) -> None:
    cat._print_escaped(b"\x1b]0;x\x07\ttab\r\nnext\xff")
    assert capsys.readouterr().out == "\\x1b]0;x\\x07\ttab\nnext\\xff"


def test_what_is_no_file_is_refused(command: Command, filled: Path, guest: InsideGuest) -> None:
    guest.tree("/etc", FILES)
    assert "is a directory; 'vbackup ls'" in command("cat", "web", "/etc/sub", "-r", filled, status=5).stderr
    assert "is a FIFO" in command("cat", "web", "/etc/pipe", "-r", filled, status=5).stderr
    assert "There is no /etc/x" in command("cat", "web", "/etc/x", "-r", filled, status=5).stderr
    assert "No file given" in command("cat", "web", "-r", filled, status=2).stderr
    assert "2 are given" in command("cat", "web", "/a", "/b", "-r", filled, status=2).stderr
    assert "not as JSON" in command("cat", "web", "/a", "-r", filled, "--json", status=2).stderr


def test_output_that_cannot_be_written_ends_it(
    command: Command, filled: Path, guest: InsideGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.tree("/etc", FILES)
    fd = os.open("/dev/full", os.O_WRONLY)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams._stream(fd, None, errors="strict"))
        done = command("cat", "web", "/etc/file", "-q", "-r", filled, status=1)
    os.close(fd)
    assert done.stderr == "vbackup: Cannot write the output: No space left on device.\n"
