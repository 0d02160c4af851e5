"""Cockpit's own web server and bridge with the page vbackup, for the tests alone.

The page is what ``make install-cockpit`` installs, found by XDG_DATA_DIRS; the command is that of these sources. Either
nobody has to log in (the session is the tests' own, root's), or PAM asks, for users that only these tests have.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.daemon import wait_for

TOP = Path(__file__).parents[1]
#: In Debian 13's Cockpit, systemd makes the sessions of those who log in, and the frame needs the system's bus. The
#: tests have neither, so they see only the page itself there.
NEEDS_SYSTEMD = Path("/usr/lib/systemd/system/cockpit-session.socket").exists()
#: Of a user whom no system has.
UID = GID = 42424
WS = next(filter(os.path.exists, ("/usr/lib/cockpit/cockpit-ws", "/usr/libexec/cockpit-ws")), "cockpit-ws")


def reason_not_to_start() -> str | None:
    """Why there is no Cockpit here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in (WS, "cockpit-bridge") if shutil.which(name) is None]
    return f"needs {' and '.join(missing)}" if missing else None


class Cockpit:
    """A cockpit-ws on loopback."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        share = directory / "share"
        argv = ["make", "--silent", "install-cockpit", f"DESTDIR={directory}", "COCKPIT=/share/cockpit"]
        subprocess.run(argv, cwd=TOP, check=True)
        self.programs = directory / "bin"
        self.programs.mkdir()
        command = self.programs / "vbackup"
        # As installed: compiled already, and where every user reaches it.
        shutil.copytree(TOP / "vbackup", directory / "lib" / "vbackup", ignore=shutil.ignore_patterns("__pycache__"))
        path = os.pathsep.join([f"{directory}/lib", *site.getsitepackages()])
        exports = f"export PYTHONPATH='{path}' PYTHONPYCACHEPREFIX='{directory}/compiled' PYTHONDONTWRITEBYTECODE="
        command.write_text(f"#!/bin/sh\n{exports}\nexec '{sys.executable}' -m vbackup \"$@\"\n")
        command.chmod(0o755)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        self.environment = {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "XDG_DATA_DIRS": f"{share}:/usr/share",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def page(self) -> str:
        """Address of the page alone, as Cockpit's frame has it."""
        return f"http://127.0.0.1:{self.port}/cockpit/@localhost/vbackup/index.html"

    @property
    def address(self) -> str:
        """Address of Cockpit with its menus, and the page in a frame."""
        return f"http://127.0.0.1:{self.port}/vbackup"

    def start(self, *, asks: bool = False) -> None:
        """Start it. Nobody has to log in, unless it ``asks``."""
        argv = [WS, "--no-tls", f"--port={self.port}", "--address=127.0.0.1"]
        argv += [] if asks else ["--local-session=/usr/bin/cockpit-bridge"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        wait_for(self._answers, "the start of cockpit-ws")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "log").read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """End it at once with the bridge and all that this has started and that did not leave its session."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def installed(directory: Path, environment: Mapping[str, str]) -> Iterator[Cockpit]:
    """The page and the command; the server is to be started."""
    cockpit = Cockpit(directory, environment)
    try:
        yield cockpit
    finally:
        cockpit.kill()


@contextlib.contextmanager
def user(cockpit: Cockpit, directory: Path, *, name: str, password: str) -> Iterator[None]:
    """Let there be a user without any rights who can log in, for this process and its children only.

    The files of the system are covered, which tests.namespaces has made possible. A session gets its environment by
    PAM, but the PATH of Cockpit.
    """
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=password, capture_output=True, text=True, check=True
    ).stdout.strip()
    home = directory / "home"
    home.mkdir(mode=0o700)
    os.chown(home, UID, GID)
    lines = {
        "/etc/passwd": f"{name}:x:{UID}:{GID}:Somebody:{home}:/bin/sh\n",
        "/etc/shadow": f"{name}:{hashed}:20000:0:99999:7:::\n",
        "/etc/environment": f'XDG_DATA_DIRS="{cockpit.environment["XDG_DATA_DIRS"]}"\n',
    }
    with contextlib.ExitStack() as covered:
        subprocess.run(["mount", "--bind", cockpit.programs, "/usr/local/sbin"], check=True)
        covered.callback(subprocess.run, ["umount", "/usr/local/sbin"], check=True)
        for path, more in lines.items():
            copy = directory / Path(path).name
            shutil.copy2(path, copy)
            with copy.open("a") as file:
                file.write(more)
            subprocess.run(["mount", "--bind", copy, path], check=True)
            covered.callback(subprocess.run, ["umount", path], check=True)
        yield
