"""``python -m tests.demo``: tell the story in a separate directory, and leave nothing behind, whatever happens."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.demo import domain
from tests.demo.runner import ROOT, DemoError, Relay, Runner
from tests.demo.story import Story, environment, private_places, require_programs
from tests.guest.image import MissingError
from vbackup.errors import InterruptedBySignalError
from vbackup.stop import on_signals

#: The path of a UNIX socket has at most 107 bytes, and the agent's has 67 below the directory.
LONGEST_PATH = 40
#: How long QEMU may take to end.
END_S = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if everything was proved, 1 if not, 128 + n after a signal."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description="Show vbackup on a small real guest.")
    parser.add_argument("--keep", action="store_true", help="leave the directory there, with the repository")
    parser.add_argument(
        "--directory", metavar="DIR", type=Path, help="a new directory (default: /tmp/vbackup-demo-...)"
    )
    options = parser.parse_args(arguments)
    relay = Relay()
    try:
        require_programs()
        with on_signals(relay), _directory(options.directory, keep=options.keep) as directory, _run_as_it_was():
            _tell(directory, relay)
    except InterruptedBySignalError as err:
        print(f"\ndemo: Stopped by {signal.Signals(err.signum).name}; nothing runs any more.", file=sys.stderr)
        return err.status
    except BrokenPipeError:
        # Whoever read this has gone; let the interpreter's last flush find nothing to complain of.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (DemoError, MissingError, OSError) as err:
        print(f"\ndemo: {err}", file=sys.stderr)
        return 1
    return 0


def _tell(directory: Path, relay: Relay) -> None:
    root = directory / "embed"
    domain.prepare(root)
    settings = {**environment(directory), **private_places(directory)}
    with _ended(root, settings):
        try:
            Story(directory, Runner(directory, settings, relay)).tell()
        except subprocess.CalledProcessError as err:
            relay.check()  # a signal to all of the terminal's processes has ended it
            raise DemoError(f"{err}") from err


@contextmanager
def _directory(wanted: Path | None, *, keep: bool) -> Iterator[Path]:
    """A new directory, removed when the block is left."""
    if wanted is None:
        directory = Path(tempfile.mkdtemp(prefix="vbackup-demo-", dir="/tmp"))
    else:
        directory = wanted.absolute()
        if len(os.fsencode(directory)) > LONGEST_PATH:
            raise DemoError(f"{directory} is too long a name: QEMU's sockets are below it; use one in /tmp.")
        try:
            directory.mkdir(mode=0o700)
        except OSError as err:
            raise DemoError(f"{directory} cannot be made: {err.strerror}.") from err
    print(f"Everything is in {directory}" + (", which stays." if keep else ", which goes at the end."), flush=True)
    try:
        yield directory
    finally:
        if not keep:
            shutil.rmtree(directory)


@contextmanager
def _run_as_it_was() -> Iterator[None]:
    """Remove what root's libvirt makes in /run, wherever its driver's root is; not if there was or is more of it."""
    run = Path("/run/libvirt")
    existed = run.exists()
    try:
        yield
    finally:
        found = {os.fspath(path.relative_to(run)) for path in run.rglob("*")}
        if not existed and found and found <= {"common", "common/system.token", "hostdevmgr"}:
            shutil.rmtree(run)


@contextmanager
def _ended(root: Path, settings: Mapping[str, str]) -> Iterator[None]:
    """No domain of that libvirt runs any more when the block is left."""
    try:
        yield
    finally:
        if (root / "run").exists():
            # In a separate session, out of reach of a second Ctrl-C.
            argv = [sys.executable, "-m", "tests.demo.domain", "end", os.fspath(root)]
            environ = {**os.environ, **settings}
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(argv, cwd=ROOT, env=environ, timeout=END_S, start_new_session=True, check=False)
        for pid_file in root.rglob("*.pid"):
            _kill(pid_file, root)


def _kill(pid_file: Path, root: Path) -> None:
    """End a QEMU that libvirt could not end; its pid is what libvirt has written down."""
    with suppress(OSError, ValueError):  # gone in the meantime
        pid = int(pid_file.read_text())
        pidfd = os.pidfd_open(pid)
        try:
            if os.fsencode(root) in Path(f"/proc/{pid}/cmdline").read_bytes():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], END_S)
        finally:
            os.close(pidfd)


if __name__ == "__main__":
    sys.exit(main())
