"""One vbackup on a host freezes a guest at a time, and what it has frozen is remembered until it is thawed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.builders import UUID
from vbackup.domain import freeze_turn
from vbackup.domain.freeze_turn import FreezeTurn, directory
from vbackup.errors import InterruptedBySignalError
from vbackup.stop import Stop

LONG_S = 60.0


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "vbackup" / "freeze"
    monkeypatch.setattr(freeze_turn, "directory", lambda: path)
    return path


@pytest.fixture
def turn() -> Iterator[FreezeTurn]:
    made = FreezeTurn(UUID)
    yield made
    made.close()


def test_turn_is_of_one_at_a_time_and_another_guest_has_another(turn: FreezeTurn) -> None:
    other, elsewhere = FreezeTurn(UUID), FreezeTurn("f0000000-0000-4000-8000-000000000002")
    assert turn.take()
    assert turn.take()
    assert not other.take(0.1)
    assert elsewhere.take(0)
    turn.end()
    assert other.take(0)
    other.close()
    elsewhere.close()


def test_turn_is_waited_for(turn: FreezeTurn) -> None:
    other = FreezeTurn(UUID)
    assert turn.take()
    timer = threading.Timer(0.1, turn.end)
    timer.start()
    assert other.take(LONG_S)
    timer.join()
    other.close()


def test_wait_for_the_turn_ends_when_vbackup_is_asked_to_stop(turn: FreezeTurn) -> None:
    other, stop = FreezeTurn(UUID), Stop()
    assert turn.take()
    timer = threading.Timer(0.1, stop.request, [signal.SIGTERM])
    timer.start()
    with pytest.raises(InterruptedBySignalError):
        other.take(LONG_S, check=stop.check)
    timer.join()
    other.close()


def test_turn_of_a_killed_process_lasts_as_long_as_one_that_shares_it(turn: FreezeTurn) -> None:
    """Its watchdog, which has yet to thaw."""
    script = (
        "import os, signal, subprocess, sys\n"
        "from pathlib import Path\n"
        "from vbackup.domain import freeze_turn\n"
        "freeze_turn.directory = lambda: Path(sys.argv[1])\n"
        f"turn = freeze_turn.FreezeTurn({UUID!r})\n"
        "assert turn.take()\n"
        "turn.frozen()\n"
        "subprocess.Popen([sys.executable, '-c', 'input()'], pass_fds=(turn.fd,), stdout=2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    place = freeze_turn.directory()
    assert place is not None
    with subprocess.Popen([sys.executable, "-c", script, str(place)], stdin=subprocess.PIPE) as process:
        assert process.wait() == -signal.SIGKILL
        assert not turn.take(0)
        assert process.stdin is not None
        process.stdin.close()
        assert turn.take(LONG_S)
    assert turn.may_be_left_frozen()  # it did not say that it had thawed
    turn.thawed()
    assert not turn.may_be_left_frozen()


def test_freeze_is_remembered_until_the_thaw(turn: FreezeTurn) -> None:
    for _ in range(2):
        assert not turn.may_be_left_frozen()
        turn.frozen()
        assert turn.may_be_left_frozen()
        turn.thawed()


def test_freeze_is_remembered_also_on_a_full_file_system(turn: FreezeTurn, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: bytes, _offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    turn.frozen()
    assert turn.may_be_left_frozen()


def test_files_are_for_their_owner_only(turn: FreezeTurn, place: Path) -> None:
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (place.parent, place, place / UUID)]
    assert modes == [0o700, 0o700, 0o600]
    assert turn.marks


def test_without_a_directory_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (None, tmp_path / "file" / "freeze"):
        monkeypatch.setattr(freeze_turn, "directory", lambda path=path: path)
        one, other = FreezeTurn(UUID), FreezeTurn(UUID)
        assert one.take()
        assert other.take()
        one.frozen()
        assert not other.may_be_left_frozen()
        assert not one.marks
        one.thawed()
        one.end()
        one.close()
        other.close()


def test_link_in_place_of_the_file_is_not_followed(place: Path, tmp_path: Path) -> None:
    place.mkdir(parents=True)
    (tmp_path / "theirs").write_text("theirs")
    (place / UUID).symlink_to(tmp_path / "theirs")
    turn = FreezeTurn(UUID)
    turn.frozen()
    assert (turn.marks, (tmp_path / "theirs").read_text()) == (False, "theirs")


@pytest.mark.parametrize(
    ("user", "runtime", "path"),
    [
        (0, "/run/user/0", Path("/run/vbackup/freeze")),
        (1000, "/run/user/1000", Path("/run/user/1000/vbackup/freeze")),
        (1000, "", None),
        (1000, "relative", None),
    ],
)
def test_directory_ends_with_the_boot_or_the_session(
    monkeypatch: pytest.MonkeyPatch, user: int, runtime: str, path: Path | None
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    assert directory() == path
