"""Several domains: one that fails is a warning, and does not keep the others from being done."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.unit.builders import Recorder
from vbackup.cli import one_by_one
from vbackup.errors import BusyError, InterruptedBySignalError
from vbackup.report import Reporter
from vbackup.repository.repository import Repository


class Labels(Recorder):
    """Remembers the domains whose name the lines have."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[str] = []

    def labelled(self, label: str) -> Reporter:
        self.labels.append(label)
        return self


class Names:
    """In place of a repository."""

    def name_of(self, uuid: str) -> str:
        return f"name of {uuid}"


def outcome(
    reporter: Labels, *uuids: str, is_one: bool = False, error: Exception | None = None
) -> tuple[list[str], dict[str, Any]]:
    def work(uuid: str, _reporter: Reporter) -> str:
        if uuid == "bad":
            raise error or BusyError("It is busy.")
        return uuid.upper()

    repository = cast("Repository", Names())
    done, failed = one_by_one.run(uuids, work, repository=repository, reporter=cast("Any", reporter), is_one=is_one)
    return done, dict(failed)


def test_others_go_on_after_one_that_fails() -> None:
    reporter = Labels()
    done, failed = outcome(reporter, "a", "bad", "b")
    assert (done, [*failed]) == (["A", "B"], ["bad"])
    assert reporter.warnings == ["It is busy."]
    assert reporter.labels == ["name of a", "name of bad", "name of b"]


def test_error_of_the_only_domain_is_for_the_caller() -> None:
    reporter = Labels()
    done, failed = outcome(reporter, "bad", is_one=True)
    assert (done, [str(one) for one in failed.values()]) == ([], ["It is busy."])
    assert (reporter.warnings, reporter.labels) == ([], [])


def test_single_domain_of_all_has_its_name_in_the_warning() -> None:
    reporter = Labels()
    outcome(reporter, "bad")
    assert (reporter.warnings, reporter.labels) == (["It is busy."], ["name of bad"])


def test_signal_ends_it() -> None:
    with pytest.raises(InterruptedBySignalError):
        outcome(Labels(), "bad", "b", error=InterruptedBySignalError(15))
