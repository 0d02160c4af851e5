"""Long work that goes on when the browser is closed: start a vbackup, find it again, stop it.

The page gives this program to ``python3 -I -c`` with a command; it needs only Python. The work is a unit of systemd
where that runs, and otherwise a process in a separate session. Each has a record, STATE/cockpit/ID, with what was
asked (work.json), what vbackup reports (progress) and prints (result), and how it ended (end.json). STATE is that of
vbackup: VBACKUP_STATE, root's /var/lib/vbackup, or ~/.local/state/vbackup.

    start         read what is to be done on standard input, as JSON; print the record
    list          print all records, the newest first
    show ID       print one, with the end of its progress and the document that it printed
    stop ID       let vbackup end as after Ctrl-C
    remove ID     remove the record of work that has ended
    run DIR       do the work (what ``start`` lets systemd or the session do)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Records that are kept, and for how long what was copied out of a backup waits to be fetched.
KEPT = 100
DOWNLOAD_S = 24 * 3600
#: What is read of a document and of the progress.
MOST_BYTES = 4 << 20
TAIL_BYTES = 64 << 10
#: How long it may take until the work begins.
BEGIN_S = 10
_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
#: Variables that say which libvirt, repository and configuration are meant, and what the user has set.
_PASSED_ON = re.compile(r"(VBACKUP_.*|LIBVIRT_.*|LIBGUESTFS_.*|LANG|LC_.*|PATH|HOME|XDG_(STATE|CONFIG|CACHE)_HOME)")


class WorkError(Exception):
    """What was asked cannot be done; the message is for people."""


def main(arguments: list[str]) -> int:
    """Returns the exit status; messages go to standard error."""
    os.umask(0o077)
    commands: dict[str, Callable[[Path], Any]] = {"show": show, "stop": stop, "remove": remove}
    word, *names = arguments or [""]
    try:
        if word == "start" and not names:
            answer: Any = start(json.load(sys.stdin))
        elif word == "list" and not names:
            answer = {"directory": os.fspath(state()), "works": [known for _, known in _known()]}
        elif word in commands and len(names) == 1:
            answer = commands[word](_record(names[0]))
        elif word == "run" and len(names) == 1:
            return run(Path(names[0]))
        else:
            raise WorkError("Commands are start, list, show ID, stop ID, remove ID and run DIR.")
    except WorkError as err:
        sys.stderr.write(f"{err}\n")
        return 2
    except (OSError, ValueError) as err:
        sys.stderr.write(f"The record of the work: {err}\n")
        return 7
    json.dump(answer, sys.stdout)
    return 0


def state() -> Path:
    """The directory with the records; made if it is not there."""
    home = Path(os.environ.get("HOME") or "/")
    users = Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state", "vbackup")
    default = Path("/var/lib/vbackup") if os.geteuid() == 0 else users
    directory = Path(os.environ.get("VBACKUP_STATE") or default, "cockpit")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise WorkError(f"{directory} belongs to somebody else or can be written by others; change that first.")
    return directory


def start(asked: Any) -> dict[str, Any]:
    """Make a record and begin the work. ``asked`` has argv, the arguments of vbackup, and what the page wants back."""
    argv = asked.get("argv") if isinstance(asked, dict) else None
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) and "\0" not in word for word in argv):
        raise WorkError("The arguments of vbackup have to be a list of strings.")
    _tidy()
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.urandom(4).hex()}"
    directory = state() / name
    directory.mkdir(mode=0o700)
    (directory / "progress").touch()
    _write(directory / "work.json", {**asked, "id": name, "started": time.time()})
    (directory / "work.py").write_text(_source())
    _begin(directory, title=str(asked.get("title", "")))
    return _look(directory)


def _source() -> str:
    """The text of this program: a file, or what ``python3 -c`` was given."""
    if "__file__" in globals():
        return Path(__file__).read_text()
    words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    return os.fsdecode(words[words.index(b"-c") + 1])


def _begin(directory: Path, *, title: str) -> None:
    """Let somebody else do the work who lives longer than the browser's session."""
    argv = [sys.executable, "-I", os.fspath(directory / "work.py"), "run", os.fspath(directory)]
    environment = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    if Path("/run/systemd/system").is_dir() and os.geteuid() == 0:
        unit = ["systemd-run", "--quiet", "--collect", f"--unit=vbackup-cockpit-{directory.name}"]
        # A percent sign and a dollar sign mean something to systemd.
        what = f"--description=vbackup: {' '.join(title.split())}".replace("%", "%%")
        given = [f"--setenv={name}={value}" for name, value in environment.items()]
        # vbackup itself ends what it has begun, and gets the time for that.
        settings = ["--property=KillMode=mixed", "--property=TimeoutStopSec=300"]
        done = subprocess.run([*unit, what, *settings, *given, "--", *argv], stdin=subprocess.DEVNULL, check=False)
        if done.returncode == 0:
            return
    subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        start_new_session=True,
    )


def run(directory: Path) -> int:
    """Do the work of a record, and write how it ended. Returns the exit status of vbackup."""
    asked = json.loads((directory / "work.json").read_text())
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, _frame: Any) -> None:
        if children:
            children[0].send_signal(number)
        else:
            early.append(number)

    # Before the lock tells whom to signal: else the signal would end this process, and leave vbackup alone.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    with (
        _locked(directory),
        (directory / "progress").open("ab") as progress,
        (directory / "result").open("wb") as result,
    ):
        # A separate session, so that a signal to the unit reaches vbackup once, through this process.
        try:
            child = subprocess.Popen(
                ["vbackup", *asked["argv"]], stdin=subprocess.DEVNULL, stdout=result, stderr=progress, cwd="/",
                start_new_session=True,
            )  # fmt: skip
        except OSError as err:
            _write(directory / "end.json", {"status": 127, "ended": time.time(), "reason": f"vbackup: {err.strerror}"})
            return 127
        children.append(child)
        for number in early:
            child.send_signal(number)
        status = child.wait()
        _write(directory / "end.json", {"status": status if status >= 0 else 128 - status, "ended": time.time()})
    return max(status, 0)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock that shows that somebody works on the record."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _is_working(directory: Path) -> bool:
    """Whether the work goes on, which the kernel knows by the lock, also after the machine went down."""
    try:
        with (directory / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            has_begun = bool(lock.read())
    except BlockingIOError:
        return True
    except FileNotFoundError:
        has_begun = False
    # systemd or the new process comes to it in a moment.
    return not has_begun and time.time() - directory.stat().st_mtime < BEGIN_S


def _look(directory: Path) -> dict[str, Any]:
    """What is known of the work, without its output."""
    known: dict[str, Any] = json.loads((directory / "work.json").read_text())
    working = _is_working(directory)  # before the end is looked for: it is written before the lock is given up
    end = directory / "end.json"
    if end.exists():
        known.update(json.loads(end.read_text()))
    known["state"] = "ended" if end.exists() else "running" if working else "lost"
    known["path"] = os.fspath(directory)
    known["result_bytes"] = (directory / "result").stat().st_size if (directory / "result").exists() else 0
    return known


def show(directory: Path) -> dict[str, Any]:
    """The same with the last lines of the progress, and what was printed, if it is a JSON document."""
    known = _look(directory)
    with (directory / "progress").open("rb") as progress:
        size = progress.seek(0, os.SEEK_END)
        progress.seek(max(0, size - TAIL_BYTES))
        lines = progress.read().decode(errors="replace").splitlines()
    known["progress"] = lines[1:] if size > TAIL_BYTES else lines
    known["result"] = None
    if known["state"] == "ended" and 0 < known["result_bytes"] <= MOST_BYTES:
        with contextlib.suppress(ValueError):
            known["result"] = json.loads((directory / "result").read_bytes())
    return known


def stop(directory: Path) -> dict[str, Any]:
    """Ask vbackup to end."""
    if _look(directory)["state"] != "running":
        raise WorkError("The work has ended already.")
    lock = directory / "lock"
    text = lock.read_text().strip() if lock.exists() else ""
    if not text:
        raise WorkError("The work has not begun yet; try again in a moment.")
    try:
        descriptor = os.pidfd_open(int(text))
    except ProcessLookupError:
        return _look(directory)
    try:
        if _is_working(directory):  # so the number is still that of whoever holds the lock
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    finally:
        os.close(descriptor)
    return _look(directory)


def remove(directory: Path) -> dict[str, Any]:
    """Remove the record, with what was copied out of a backup."""
    if _look(directory)["state"] == "running":
        raise WorkError("The work goes on; stop it first.")
    shutil.rmtree(directory)
    return {"removed": directory.name}


def _tidy() -> None:
    """Remove old records, and what nobody has fetched."""
    for number, (directory, known) in enumerate(_known()):
        if known["state"] == "running":
            continue
        is_old_download = known.get("kind") == "download" and time.time() - known["started"] > DOWNLOAD_S
        if number >= KEPT or is_old_download:
            shutil.rmtree(directory, ignore_errors=True)


def _records() -> list[Path]:
    """The records, the newest first."""
    found = [path for path in state().iterdir() if _ID.fullmatch(path.name) and (path / "work.json").exists()]
    return sorted(found, reverse=True)


def _known() -> list[tuple[Path, dict[str, Any]]]:
    """What is known of all works, the newest first. A record that is damaged, or goes meanwhile, hides no other."""
    found = []
    for directory in _records():
        with contextlib.suppress(OSError, ValueError):
            found.append((directory, _look(directory)))
    return found


def _record(name: str) -> Path:
    """The record of this id. Raises WorkError."""
    directory = state() / name
    if not _ID.fullmatch(name) or not (directory / "work.json").exists():
        raise WorkError("There is no such work any more.")
    return directory


def _write(path: Path, value: Any) -> None:
    """Write JSON to a file that is there as a whole or not at all."""
    new = path.with_suffix(".new")
    with new.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
