"""Started work is undone, the last step first, even if some steps fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.builders import Recorder
from vbackup.errors import ConnectionLostError, DomainGoneError, LinkLostError, QmpError, VbackupError
from vbackup.undo import Undo


@pytest.fixture
def done() -> list[str]:
    return []


def fail_with(error: BaseException) -> Callable[[], object]:
    def step() -> object:
        raise error

    return step


def begin_and_fail(error: BaseException, step: Callable[[], object]) -> None:
    with Undo(Recorder()) as undo:
        undo.push("undo it", step)
        raise error


def test_steps_run_last_first(done: list[str]) -> None:
    with Undo(Recorder()) as undo:
        undo.push("one", lambda: done.append("one"))
        undo.push("two", lambda: done.append("two"))
    assert done == ["two", "one"]


def test_steps_run_when_the_block_fails_and_the_error_goes_on(done: list[str]) -> None:
    with pytest.raises(ValueError, match="cause"):
        begin_and_fail(ValueError("cause"), lambda: done.append("one"))
    assert done == ["one"]


def test_steps_run_on_an_interrupt(done: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        begin_and_fail(KeyboardInterrupt(), lambda: done.append("one"))
    assert done == ["one"]


def test_released_steps_do_not_run(done: list[str]) -> None:
    with Undo(Recorder()) as undo:
        undo.push("one", lambda: done.append("one"))
        undo.release()
        undo.push("two", lambda: done.append("two"))
    assert done == ["two"]


@pytest.mark.parametrize(
    "error",
    [
        QmpError("job-cancel", "GenericError", "no"),
        ConnectionLostError("lost"),
        OSError(28, "No space left on device"),
        ValueError("a fault of ours"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failing_step_is_reported_and_the_others_run(done: list[str], error: Exception) -> None:
    recorder = Recorder()
    with Undo(recorder) as undo:
        undo.push("one", lambda: done.append("one"))
        undo.push("close the door", fail_with(error))
    assert done == ["one"]
    assert len(recorder.warnings) == 1
    assert recorder.warnings[0].startswith("Could not close the door: ")


def test_step_that_finds_qemu_gone_gives_no_warning(done: list[str]) -> None:
    recorder = Recorder()
    with Undo(recorder) as undo:
        undo.push("one", lambda: done.append("one"))
        undo.push("close the door", fail_with(DomainGoneError("web")))
    assert done == ["one"]
    assert recorder.warnings == []


def test_failing_step_does_not_hide_the_cause() -> None:
    with pytest.raises(ValueError, match="cause"):
        begin_and_fail(ValueError("cause"), fail_with(ConnectionLostError("lost")))


def test_each_step_runs_once(done: list[str]) -> None:
    undo = Undo(Recorder())
    with undo:
        undo.push("one", lambda: done.append("one"))
    with undo:
        pass
    assert done == ["one"]


@pytest.mark.parametrize("said", ["QEMU refused it", "QEMU refused it."])
def test_warning_is_two_sentences(said: str) -> None:
    def fail() -> None:
        raise VbackupError(said)

    recorder = Recorder()
    with Undo(recorder) as undo:
        undo.push("close the door", fail)
    assert recorder.warnings == [
        "Could not close the door: QEMU refused it. The next backup of this domain tries again."
    ]


@pytest.mark.parametrize(("error", "warnings"), [(LinkLostError("hv1", "has ended"), 0), (VbackupError("another"), 1)])
def test_link_that_is_lost_is_told_once(error: VbackupError, warnings: int) -> None:
    """The block has said it already; after another fault, it is what was not undone."""
    recorder = Recorder()
    undo = Undo(recorder)
    undo.push("undo it", fail_with(LinkLostError("hv1", "has ended")))
    undo.__exit__(type(error), error, None)
    assert len(recorder.warnings) == warnings
    assert not undo.is_complete
