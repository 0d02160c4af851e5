"""Standard streams that are closed, full or without a reader, from the start of a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.streams import run_with_broken
from vbackup.cli import streams
from vbackup.errors import Status

OUTPUT = pytest.mark.parametrize("broken", ["full", "closed", "gone"])
UNBUFFERED = pytest.mark.parametrize("unbuffered", [False, True], ids=["buffered", "PYTHONUNBUFFERED"])
#: What is done in place of a command: ``result`` is what its output means, and the status is that of main().
PRINT_AND_OPEN = """
import os, sys
from vbackup import cli
from vbackup.cli import dispatch

def run(arguments, result):
    result.is_the_work = arguments[0] == "work"
    print("vbackup: a warning", file=sys.stderr)
    with open(arguments[1], "w") as image:
        assert image.fileno() > 2, "a file got the number of a closed stream"
        print("a result " * 10000, flush=True)
        print("vbackup: another warning", file=sys.stderr)
        image.write("bytes of the guest")
    return 0

dispatch.run = run
cli.command()
"""


@OUTPUT
@UNBUFFERED
@pytest.mark.parametrize("fds", [(1,), (2,), (1, 2), (0, 1, 2)], ids=str)
def test_work_that_is_done_is_done_whatever_becomes_of_its_words(
    tmp_path: Path, broken: str, fds: tuple[int, ...], unbuffered: bool
) -> None:
    done = run_with_broken(
        ["-c", PRINT_AND_OPEN, "change", os.fspath(tmp_path / "image")],
        dict.fromkeys(fds, broken),
        unbuffered=unbuffered,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "image").read_text() == "bytes of the guest"
    if 2 not in fds:
        assert "vbackup: another warning" in done.stderr
        assert ("Cannot write the output" in done.stderr) == (broken != "gone")
        assert "Traceback" not in done.stderr
    if 1 not in fds:
        assert done.stdout == "a result " * 10000 + "\n"


@OUTPUT
@UNBUFFERED
def test_output_that_is_the_work_is_missed(tmp_path: Path, broken: str, unbuffered: bool) -> None:
    done = run_with_broken(
        ["-c", PRINT_AND_OPEN, "work", os.fspath(tmp_path / "image")], {1: broken}, unbuffered=unbuffered
    )
    assert done.returncode == (Status.SIGNAL + signal.SIGPIPE if broken == "gone" else Status.FAILED)
    assert "bug" not in done.stderr
    assert "Exception ignored" not in done.stderr


@OUTPUT
@UNBUFFERED
@pytest.mark.parametrize("more", [(), ("--json",)], ids=str)
def test_list_that_cannot_be_written_is_told(
    filled: Path, broken: str, more: tuple[str, ...], unbuffered: bool
) -> None:
    argv = ["-m", "vbackup", "list", "-r", os.fspath(filled), *more]
    done = run_with_broken(argv, {1: broken}, unbuffered=unbuffered)
    if broken == "gone":
        assert (done.returncode, done.stderr) == (Status.SIGNAL + signal.SIGPIPE, "")
    else:
        reason = {"full": "No space left on device", "closed": "Bad file descriptor"}[broken]
        assert (done.returncode, done.stderr) == (1, f"vbackup: Cannot write the output: {reason}.\n")


@OUTPUT
def test_repository_is_made_whatever_becomes_of_the_words(tmp_path: Path, broken: str) -> None:
    argv = ["-m", "vbackup", "init", "-r", os.fspath(tmp_path / "new"), "--json"]
    assert run_with_broken(argv, {1: broken, 2: broken}).returncode == 0
    assert (tmp_path / "new" / "vbackup.json").exists()


@pytest.mark.parametrize("broken", ["full", "gone"])
def test_status_of_a_failure_is_its_own_although_it_cannot_be_told(tmp_path: Path, broken: str) -> None:
    argv = ["-m", "vbackup", "backup", "web", "-r", os.fspath(tmp_path), "--json", "-v"]
    assert run_with_broken(argv, {1: broken, 2: broken}).returncode == 7


def test_input_that_is_closed_is_no_empty_input(tmp_path: Path) -> None:
    argv = ["-m", "vbackup", "transaction", "--socket", os.fspath(tmp_path / "socket")]
    done = run_with_broken(argv, {0: "closed"})
    assert (done.returncode, "Cannot read standard input: Bad file descriptor" in done.stderr) == (2, True), done.stderr


def test_stream_that_takes_no_more_now_is_not_waited_for(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    done = subprocess.run(
        [sys.executable, "-c", PRINT_AND_OPEN, "change", os.fspath(tmp_path / "image")],
        stdout=writing,
        stderr=writing,
        check=False,
        timeout=30,
    )
    os.close(reading)
    os.close(writing)
    assert done.returncode == 0
    assert (tmp_path / "image").read_text() == "bytes of the guest"


def test_bytes_end_the_work_as_soon_as_they_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams._stream(full, None, errors="strict"))
        output = streams.Binary()
        with pytest.raises(streams.LostOutput):
            output.write(b"lost")
    os.close(full)
    reading, writing = os.pipe()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams._stream(writing, None, errors="strict"))
        assert output.write(memoryview(b"\0\xff")) == 2
        assert os.read(reading, 10) == b"\0\xff"  # at once
    os.close(reading)
    os.close(writing)
