"""Standard input and output as pipes: all bytes or an error, and a signal ends every wait."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.streams import descriptor
from vbackup.cli import pipes
from vbackup.errors import ConsumerGoneError, InterruptedBySignalError, StorageError, UsageError
from vbackup.stop import Stop


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            continue


def test_more_than_a_pipe_holds_arrives(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    data = os.urandom(1 << 20)
    got = bytearray()

    def read() -> None:
        while len(got) < len(data):
            got.extend(os.read(reading, 1000))

    thread = threading.Thread(target=read)
    thread.start()
    with descriptor(1, writing), pipes.output(Stop()) as write:
        write(data)
    thread.join()
    assert got == data
    assert os.get_blocking(writing)


def test_messages_do_not_go_into_the_stream(pipe: tuple[int, int], tmp_path: Path) -> None:
    with descriptor(1, pipe[1]), descriptor(2, pipe[1]):
        with pytest.raises(UsageError, match="--log"), pipes.output(Stop()):
            pass
        assert os.get_blocking(pipe[1])
        with pipes.logged_to(tmp_path / "log"), pipes.output(Stop()) as write:
            write(b"x")
    both = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    with descriptor(1, both), descriptor(2, both), pytest.raises(UsageError, match="2>&1"), pipes.output(Stop()):
        pass
    os.close(both)


def test_all_may_go_nowhere() -> None:
    null = Path(os.devnull)
    with descriptor(1, null), descriptor(2, null), pipes.output(Stop()) as write:
        write(b"x")


def test_reader_that_has_gone_is_told(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    with descriptor(1, writing), pytest.raises(ConsumerGoneError) as caught, pipes.output(Stop()) as write:
        write(b"x")
    assert caught.value.status == 128 + signal.SIGPIPE


def test_reader_that_goes_before_anything_is_written_ends_the_work(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    stop = Stop()

    def work() -> None:
        with pipes.output(stop):
            stop.check()
            os.close(reading)
            with stop.descriptor() as stopped:
                assert select.select([stopped], [], [], 10)[0]
            stop.check()

    with descriptor(1, writing), pytest.raises(ConsumerGoneError):
        work()


def test_signal_ends_the_wait_for_a_reader_that_does_not_read(pipe: tuple[int, int]) -> None:
    stop = Stop()
    timer = threading.Timer(0.2, lambda: stop.request(signal.SIGTERM))
    timer.start()
    with descriptor(1, pipe[1]), pipes.output(stop) as write, pytest.raises(InterruptedBySignalError):
        write(bytes(1 << 20))
    timer.join()


def test_full_disk_is_an_error() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    with descriptor(1, fd), pipes.output(Stop()) as write, pytest.raises(StorageError, match="standard output"):
        write(b"x")
    os.close(fd)


@pytest.mark.parametrize(("number", "enter"), [(1, pipes.output), (0, pipes.given)])
def test_stream_is_not_for_a_terminal(number: int, enter: object) -> None:
    main, other = os.openpty()
    with descriptor(number, other), pytest.raises(UsageError, match="terminal"), enter(Stop()):  # type: ignore[operator]
        pass
    os.close(main)
    os.close(other)


def test_input_is_read_to_its_end(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"abcdef")
    os.close(writing)
    with descriptor(0, reading), pipes.given(Stop()) as read:
        assert [read(4), read(4), read(4), read(4)] == [b"abcd", b"ef", b"", b""]


def test_signal_ends_the_wait_for_input(pipe: tuple[int, int]) -> None:
    stop = Stop()
    timer = threading.Timer(0.2, lambda: stop.request(signal.SIGINT))
    timer.start()
    with descriptor(0, pipe[0]), pipes.given(stop) as read, pytest.raises(InterruptedBySignalError):
        read(1)
    timer.join()


def test_messages_go_to_the_log_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    path.write_text("earlier\n")
    with pipes.logged_to(path):
        print("now", file=sys.stderr)
        os.write(2, b"also of a library\n")
    print("later", file=sys.stderr)
    assert path.read_text() == "earlier\nnow\nalso of a library\n"
    assert capfd.readouterr().err == "later\n"


def test_error_is_in_the_log_too(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log"
    with pytest.raises(UsageError), pipes.logged_to(path):
        raise UsageError("No.")
    assert path.read_text() == "vbackup: No.\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "target")
    with pytest.raises(StorageError), pipes.logged_to(tmp_path / "log"):
        pass
    assert not (tmp_path / "target").exists()


def test_without_a_log_standard_error_stays(capfd: pytest.CaptureFixture[str]) -> None:
    with pipes.logged_to(None):
        print("here", file=sys.stderr)
    assert capfd.readouterr().err == "here\n"
