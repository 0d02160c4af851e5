"""Fixtures that every suite may use: a repository, the command, a libvirt of the tests' own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# libvirt reads it when it is first imported, which a test may do before vbackup.host does.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")

from vbackup.cli import main


@dataclass(frozen=True)
class Outcome:
    """How a run of the command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        value: dict[str, Any] = json.loads(self.stdout)
        return value


Command = Callable[..., Outcome]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests run in one process where there are several (make check): those of a file, whose fixtures are
    made once; and all that need the one libvirtd that there can be, which take the longest and therefore begin.
    """
    for item in items:
        group = "libvirtd" if "_daemon" in getattr(item, "fixturenames", ()) else item.location[0]
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: "_daemon" not in getattr(item, "fixturenames", ()))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VBACKUP_REPOSITORY", "LIBVIRT_DEFAULT_URI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run ``vbackup`` in this process with the given arguments."""

    def run(*arguments: str | Path, status: int | None = 0) -> Outcome:
        capfd.readouterr()
        try:
            got = main([os.fspath(argument) for argument in arguments])
        except SystemExit as err:  # --help and --version
            got = err.code if isinstance(err.code, int) else 1
        captured = capfd.readouterr()
        outcome = Outcome(got, captured.out, captured.err)
        assert status is None or got == status, outcome
        assert "Traceback" not in captured.err
        return outcome

    return run


@pytest.fixture
def repository(tmp_path: Path, command: Command) -> Path:
    """A new repository."""
    path = tmp_path / "repository"
    command("init", "-r", path)
    return path


class SharedConnection:
    """A connection that the many users of one process close and leave open.

    libvirt registers the embedded driver anew at every open and has room for some dozens
    ("Too many drivers, cannot register QEMU"); a real command opens once.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def close(self) -> int:
        """Leave it open."""
        return 0


@pytest.fixture(scope="session")
def lab() -> Iterator[Any]:
    """The embedded libvirt of this pytest process. Its path is short: QEMU's sockets are below it."""
    from tests.lab import Lab
    from vbackup import host

    root = Path(tempfile.mkdtemp(prefix="vb-", dir="/tmp"))
    made = Lab(root)
    shared = SharedConnection(made.host.connection)
    really_open = host.libvirt.open

    def open_shared(uri: str | None) -> Any:
        if uri == made.uri:
            return shared
        if uri == made.secrets_uri and "secrets" in vars(made):
            return SharedConnection(made.secrets)
        return really_open(uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host.libvirt, "open", open_shared)
        yield made
    made.close()
    shutil.rmtree(root)
