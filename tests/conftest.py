"""Fixtures that every suite may use: a repository, the command, a libvirt for the tests alone."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

# libvirt reads it when it is first imported, which a test may do before vbackup.domain.host does.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")

from tests import azure, documents, gcs, namespaces, weed
from vbackup.cli import main
from vbackup.repository import place
from vbackup.repository.place import Place
from vbackup.repository.repository import Repository
from vbackup.scripts import runner


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


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """What a run starts and mounts ends with it (tests.namespaces), or with its fixtures without namespaces."""
    if hasattr(config, "workerinput") or namespaces.reason_not_to_enter():
        return
    namespaces.enter()


def pytest_configure() -> None:
    """Each process has a separate libvirt."""
    if namespaces.reason_not_to_enter() is None:
        namespaces.hide_system()
    threading._sys = _PatientSys()  # type: ignore[attr-defined]
    for number in (signal.SIGINT, signal.SIGHUP):
        # A shell or nohup that runs this in the background ignores them, and vbackup leaves ignored signals alone.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


class _PatientSys:
    """The module sys as the module threading has it, with a settrace that waits for its turn.

    A new thread installs the trace function of a coverage measurement. Up to Python 3.11 that fails, and the thread
    ends without doing anything, while another thread is doing the same (_PyEval_SetTrace in Python/ceval.c).
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)

    def settrace(self, function: Any) -> None:
        deadline_s = time.monotonic() + 10
        while True:
            try:
                return sys.settrace(function)
            except RuntimeError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.001)


def needs_libvirtd(nodeid: str) -> bool:
    """True for a test of a file that has tests with the fixture ``daemon``."""
    return "daemon: Daemon" in _source(nodeid.split("::", maxsplit=1)[0])


@functools.cache
def _source(name: str) -> str:
    return (Path(__file__).parents[1] / name).read_text()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``make check-all`` and ``make check-stacks`` give the option; the gate has no time for all."""
    parser.addoption("--long", action="store_true", help="also run the tests with the mark long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files begin, so that the last ones are short and all processes end at about the same time."""
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]

    def order(item: pytest.Item) -> tuple[bool, bool, int]:
        return "end_to_end" not in item.path.parts, not needs_libvirtd(item.nodeid), -item.path.stat().st_size

    items.sort(key=order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file run in one process, so that its fixtures are made once. Without namespaces there can be one
    libvirtd only, and the files that need it are taken for one.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            if needs_libvirtd(nodeid) and namespaces.reason_not_to_enter():
                return "libvirtd"
            return nodeid.split("::", maxsplit=1)[0]

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VBACKUP_REPOSITORY", "VBACKUP_SCRIPTS", "LIBVIRT_DEFAULT_URI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """``vbackup check`` reports a filesystem that is nearly full: here that of the tests has room."""
    look = place.look

    def roomy(repository: Repository) -> Place:
        found = look(repository)
        return replace(found, free_bytes=found.size_bytes)

    if "test_place" not in request.node.nodeid:
        monkeypatch.setattr(place, "look", roomy)


#: The command in an argument list: also as it is installed, or in a process that a test kills at a certain step.
_VBACKUP = re.compile(r"(^|/)vbackup$|^tests\.end_to_end\.killed$")


def _check_documents(
    arguments: Sequence[str | bytes | os.PathLike[Any]], stdout: str, stderr: str, *, is_there: bool = False
) -> None:
    """What vbackup was asked to print as JSON is as its schema describes it, and ``is_there``."""
    words = [os.fsdecode(argument) for argument in arguments]
    if "--json" in words:
        documents.check_output(stdout, is_there=is_there and not {"-h", "--help", "--version"} & {*words})
    if "json" in words and words[words.index("json") - 1] == "--progress":
        documents.check_events(stderr)


@pytest.fixture(autouse=True)
def _checked_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for every vbackup that a test runs in a separate process, and waits for as subprocess.run does.

    And for every document that a test prints in this process, and looks at what was printed; and for the input of the
    user's scripts.
    """
    readouterr, communicate, data = pytest.CaptureFixture.readouterr, subprocess.Popen.communicate, runner._data

    def given(document: Mapping[str, Any]) -> bytes:
        text = data(document)
        if str(document.get("schema")).startswith("vbackup."):  # the runner's own tests give it others
            documents.check(json.loads(text))
        return text

    def looked_at(self: pytest.CaptureFixture[Any]) -> Any:
        captured = readouterr(self)
        for text in captured:
            if isinstance(text, str):
                documents.check_text(text)
        return captured

    def checked(self: subprocess.Popen[Any], *arguments: Any, **more: Any) -> tuple[Any, Any]:
        out, err = communicate(self, *arguments, **more)
        words = self.args if isinstance(self.args, (list, tuple)) else []
        if any(_VBACKUP.search(os.fsdecode(word)) for word in words) and (self.returncode or 0) >= 0:
            texts = (text.decode(errors="replace") if isinstance(text, bytes) else text or "" for text in (out, err))
            _check_documents(words, *texts)
        return out, err

    monkeypatch.setattr(runner, "_data", given)
    monkeypatch.setattr(pytest.CaptureFixture, "readouterr", looked_at)
    monkeypatch.setattr(subprocess.Popen, "communicate", checked)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run ``vbackup`` in this process with the given arguments."""

    def run(*arguments: str | Path, status: int | None = 0) -> Outcome:
        capfd.readouterr()
        got = main([os.fspath(argument) for argument in arguments])
        captured = capfd.readouterr()
        outcome = Outcome(got, captured.out, captured.err)
        assert status is None or got == status, outcome
        _check_documents(arguments, captured.out, captured.err, is_there=got == 0)
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

    libvirt registers the embedded driver again at every open and has room for some dozens
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
    from vbackup.domain import host

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


@pytest.fixture(name="weed", scope="session")
def s3_server() -> Iterator[weed.Weed]:
    """An S3 server with Object Lock."""
    reason = weed.reason_not_to_start()
    if reason is not None:
        pytest.skip(reason)
    with weed.server() as started:
        yield started


@pytest.fixture(name="google")
def google_cloud_storage(weed: weed.Weed) -> Iterator[gcs.Google]:
    """A server of Google Cloud Storage."""
    with gcs.server(weed) as started:
        yield started


@pytest.fixture(name="azure")
def azure_blob_storage(tmp_path: Path) -> Iterator[azure.Azure]:
    """A server of Azure Blob Storage."""
    place = tmp_path / "azurite"
    place.mkdir()
    with azure.server(place) as started:
        yield started
