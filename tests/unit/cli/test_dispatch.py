"""The handler of a command is imported and run with its options; signals and logging are set up for it only."""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vbackup.cli import dispatch
from vbackup.cli.context import Context
from vbackup.cli.handlers import init
from vbackup.cli.streams import Result
from vbackup.errors import UsageError


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Context], int]], list[argparse.Namespace]]:
    """Replace the work of ``vbackup init``; the list gets the options that it is run with."""

    def replace(work: Callable[[Context], int]) -> list[argparse.Namespace]:
        got: list[argparse.Namespace] = []

        def run(options: argparse.Namespace, context: Context) -> int:
            got.append(options)
            return work(context)

        monkeypatch.setattr(init, "run", run)
        return got

    return replace


Handled = Callable[[Callable[[Context], int]], list[argparse.Namespace]]


def test_status_is_that_of_the_handler(handled: Handled, tmp_path: Path) -> None:
    got = handled(lambda context: 7 if context.repository_path() == tmp_path else 1)
    assert dispatch.run(["init", "-r", str(tmp_path)]) == 7
    assert [options.command for options in got] == ["init"]


def test_wrong_usage_runs_no_handler(handled: Handled) -> None:
    got = handled(lambda _context: 0)
    with pytest.raises(UsageError):
        dispatch.run(["init", "--no-such-option"])
    assert got == []


def test_signal_during_the_work_asks_it_to_stop(handled: Handled) -> None:
    def work(context: Context) -> int:
        signal.raise_signal(signal.SIGTERM)
        return int(context.stop.signum or 0)

    handled(work)
    before = signal.getsignal(signal.SIGTERM)
    assert dispatch.run(["init"]) == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("arguments", "is_shown"), [(["init"], False), (["-v", "init"], True)], ids=["quiet", "-v"])
def test_commands_of_qemu_are_logged_on_request(
    handled: Handled, capsys: pytest.CaptureFixture[str], arguments: list[str], is_shown: bool
) -> None:
    def work(_context: Context) -> int:
        logging.getLogger("vbackup.qemu").debug("query-block")
        logging.getLogger("qemu.qmp.protocol").error("repeated")
        return 0

    handled(work)
    dispatch.run(arguments)
    said = capsys.readouterr().err
    assert ("DEBUG vbackup.qemu: query-block" in said) == is_shown
    assert "repeated" not in said


@pytest.mark.parametrize(
    ("words", "is_the_work"),
    [(("check",), True), (("check", "--repair"), False), (("check", "--repair", "--dry-run"), True)],
)
def test_output_of_a_check_is_its_work_unless_it_repairs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], is_the_work: bool
) -> None:
    monkeypatch.setattr("vbackup.cli.handlers.check.run", lambda *_arguments: 0)
    result = Result()
    assert dispatch.run([*words, "-r", str(tmp_path)], result) == 0
    assert result.is_the_work is is_the_work


@pytest.mark.parametrize(
    ("words", "is_the_work"),
    [(("/a", "-"), True), (("--tar", "/a"), True), (("/a", "place"), False)],
)
def test_output_of_a_copy_is_its_work_if_it_is_an_archive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], is_the_work: bool
) -> None:
    monkeypatch.setattr("vbackup.cli.handlers.cp.run", lambda *_arguments: 0)
    result = Result()
    assert dispatch.run(["cp", "web", *words, "-r", str(tmp_path)], result) == 0
    assert result.is_the_work is is_the_work
