"""The watchdog's process (watchdog/__main__.py) as vbackup starts and ends it.

watchdog/test_process.py tests what it does; tests/end_to_end/test_watchdog.py has a real guest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vbackup
from tests.unit.domain.test_host import DOMAIN, WEB
from vbackup.domain import freeze_turn, watchdog
from vbackup.domain.freeze_turn import FreezeTurn
from vbackup.domain.watchdog import Watchdog
from vbackup.errors import InterruptedBySignalError
from vbackup.stop import Stop

LONG_S = 60


# the process


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Watchdog]]:
    """Start a watchdog for a domain of libvirt's test driver."""
    node = tmp_path / "node.xml"
    node.write_text(f"<node>{DOMAIN.format('web', WEB)}</node>")
    started: list[Watchdog] = []

    def start(**options: Any) -> Watchdog:
        options = {"uri": f"test://{node}", "uuid": WEB, "limit_s": LONG_S, "is_blind": False, **options}
        started.append(Watchdog(**options))
        return started[-1]

    yield start
    for one in started:
        one.close()


def is_there(pid: int) -> bool:
    """Return True if the process exists; a zombie does."""
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("is_blind", [False, True], ids=["connected", "blind"])
def test_process_gets_ready_and_ends_when_it_is_let_go(start: Callable[..., Watchdog], is_blind: bool) -> None:
    one = start(is_blind=is_blind)
    pid = one.pid
    assert pid is not None
    assert one.reason_not_to_freeze() is None
    assert is_there(pid)
    one.close()
    assert not is_there(pid)
    one.close()


def test_process_ends_after_a_freeze_that_was_thawed(start: Callable[..., Watchdog]) -> None:
    one = start()
    pid = one.pid
    assert pid is not None
    assert one.reason_not_to_freeze() is None
    one.freezing()
    one.thawed()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # by itself, before it is let go
    one.close()
    assert not is_there(pid)


def test_signals_to_the_process_group_or_to_itself_do_not_end_it(start: Callable[..., Watchdog]) -> None:
    one = start()
    assert one.pid is not None
    assert one.reason_not_to_freeze() is None
    assert os.getsid(one.pid) == one.pid
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(one.pid, signum)
    assert os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
    one.freezing()
    one.thawed()  # it would be killed by now, were it not for the handlers
    status = os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
    assert status is not None
    assert (status.si_code, status.si_status) == (os.CLD_EXITED, 0)


def test_process_has_nothing_open_but_what_it_needs(start: Callable[..., Watchdog], tmp_path: Path) -> None:
    """Otherwise it would hold locks and pipes of a dead vbackup."""
    with (tmp_path / "lock").open("wb") as lock:
        os.set_inheritable(lock.fileno(), True)
        one = start(is_blind=True)
        assert one.reason_not_to_freeze() is None
        files = [os.fspath(path.readlink()) for path in Path(f"/proc/{one.pid}/fd").iterdir()]
    assert not [path for path in files if path.startswith(os.fspath(tmp_path))]
    assert os.fspath(Path(f"/proc/{one.pid}/cwd").readlink()) == "/"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"uri": "test:///no/such/file"}, "Cannot reach libvirt"),
        ({"uuid": "f0000000-0000-4000-8000-000000000009"}, "No domain"),
    ],
    ids=["libvirt", "domain"],
)
def test_process_that_cannot_guard_tells_why(start: Callable[..., Watchdog], options: Any, said: str) -> None:
    one = start(**options)
    for _ in range(2):
        reason = one.reason_not_to_freeze()
        assert reason is not None
        assert reason.startswith("the watchdog that would thaw them is not ready: ")
        assert said in reason


def test_process_that_was_killed_after_it_got_ready_is_not_relied_on(start: Callable[..., Watchdog]) -> None:
    one = start()
    assert one.pid is not None
    assert one.reason_not_to_freeze() is None
    assert one.reason_not_to_freeze() is None
    os.kill(one.pid, signal.SIGKILL)
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
    assert "it was killed" in str(one.reason_not_to_freeze())
    one.freezing()  # its pipe has no reader any more
    one.thawed()


def test_process_that_is_let_go_ends_by_itself(start: Callable[..., Watchdog]) -> None:
    one = start()
    assert one.pid is not None
    assert one.reason_not_to_freeze() is None
    one.let_go()
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)


def test_process_is_left_to_its_work_where_the_guest_may_be_frozen(start: Callable[..., Watchdog]) -> None:
    """The test driver has no agent, so this one would go on for minutes."""
    one = start()
    pid = one.pid
    assert pid is not None
    assert one.reason_not_to_freeze() is None
    one.freezing()
    one.close()
    left = watchdog._LEFT.pop()
    assert left.pid == pid
    assert left.poll() is None
    left.kill()
    left.wait()


def test_missing_python_is_reported(start: Callable[..., Watchdog], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    one = start()
    assert one.pid is None
    assert "/no/such/python cannot be started: No such file" in str(one.reason_not_to_freeze())


@pytest.mark.parametrize(
    ("program", "said"),
    [("import time; time.sleep(99)", "it did not start within 0"), ("raise SystemExit(1)", "it ended too early")],
    ids=["hangs", "ends"],
)
def test_process_that_does_not_get_ready_is_reported_and_ended(
    start: Callable[..., Watchdog], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, said: str
) -> None:
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(watchdog, "PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(watchdog, "READY_S", 0.2 if "time" in program else LONG_S)
    monkeypatch.setattr(watchdog, "END_S", 0.2)
    one = start()
    pid = one.pid
    assert pid is not None
    assert said in str(one.reason_not_to_freeze())
    one.close()
    assert not is_there(pid)


def test_process_finds_the_package_wherever_vbackup_found_it(tmp_path: Path) -> None:
    """From a directory that is only in sys.path, as in an installation, and in a hostile environment."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "vbackup").symlink_to(Path(vbackup.__file__).parent)
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')")
    paths = [path for path in sys.path if not (Path(path) / "vbackup" / "__init__.py").exists()]
    script = f"""
import sys
sys.path[:] = {[os.fspath(tmp_path / "library"), *paths]!r}
from vbackup.domain import watchdog
one = watchdog.Watchdog(uri="test:///default", uuid="{WEB}", limit_s=10, is_blind=True)
print(one.reason_not_to_freeze())
one.close()
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.fspath(tmp_path)},
    )
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_process_ends_with_a_vbackup_that_was_killed_before_it_froze(tmp_path: Path) -> None:
    script = f"""
import json, os, signal
from vbackup.domain.watchdog import Watchdog
from vbackup.errors import InterruptedBySignalError
from vbackup.stop import Stop
one = Watchdog(uri="test:///default", uuid="{WEB}", limit_s=10, is_blind=True)
one.reason_not_to_freeze()
print(json.dumps(one.pid), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=False, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    wait_until_gone(json.loads(done.stdout))


def wait_until_gone(pid: int) -> None:
    """Wait until the process, which is not a child of this one, has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        import select

        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(LONG_S * 1000), f"process {pid} does not end"
    finally:
        os.close(fd)


# the turn to freeze

#: Gets ready, and ends when somebody opens the FIFO: until then it is thawing.
THAWING = """
import pathlib
input()
print("ready", flush=True)
pathlib.Path({fifo!r}).read_bytes()
"""


@pytest.fixture
def fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    program = tmp_path / "program.py"
    program.write_text(THAWING.format(fifo=os.fspath(path)))
    monkeypatch.setattr(watchdog, "PROGRAM", program)
    monkeypatch.setattr(freeze_turn, "directory", lambda: tmp_path / "run" / "freeze")
    return path


def test_turn_lasts_until_a_process_that_may_be_thawing_has_ended(fifo: Path) -> None:
    """It would thaw what the next vbackup has frozen."""
    guard, other = Watchdog(uri="test:///", uuid=WEB, limit_s=1, is_blind=False), FreezeTurn(WEB)
    assert guard.reason_not_to_freeze() is None
    guard.freezing()
    guard.thawed()
    assert not other.may_be_left_frozen()
    assert not other.take(0.1)
    guard.let_go()
    assert not other.take(0.1)
    fifo.write_bytes(b"")
    assert other.take(LONG_S)
    guard.close()
    other.close()


def test_stop_is_noticed_while_the_turn_is_waited_for(fifo: Path) -> None:
    stop, other = Stop(), FreezeTurn(WEB)
    guard = Watchdog(uri="test:///", uuid=WEB, limit_s=1, is_blind=False, check=stop.check)
    assert other.take()
    stop.request(signal.SIGTERM)
    with pytest.raises(InterruptedBySignalError):
        guard.reason_not_to_freeze()
    other.end()
    guard.let_go()
    fifo.write_bytes(b"")
    guard.close()
    other.close()


def test_stop_is_noticed_while_the_process_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("input()\ninput()\n")
    monkeypatch.setattr(watchdog, "PROGRAM", program)
    stop = Stop()
    guard = Watchdog(uri="test:///", uuid=WEB, limit_s=1, is_blind=False, check=stop.check)
    stop.request(signal.SIGINT)
    with pytest.raises(InterruptedBySignalError):
        guard.reason_not_to_freeze()
    guard.close()


def test_turn_ends_at_once_if_nothing_was_frozen(fifo: Path) -> None:
    guard, other = Watchdog(uri="test:///", uuid=WEB, limit_s=1, is_blind=False), FreezeTurn(WEB)
    assert guard.reason_not_to_freeze() is None
    guard.let_go()
    assert other.take(0)
    fifo.write_bytes(b"")
    guard.close()
    other.close()
