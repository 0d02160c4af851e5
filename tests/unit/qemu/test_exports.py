"""The end of an export: asked for once, and waited for, but not for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from vbackup.errors import StorageError
from vbackup.qemu import exports
from vbackup.qemu.monitor import Monitor


class Exporting:
    """A QEMU whose answers to the question for its exports are given."""

    def __init__(self, answers: Sequence[Sequence[str]]) -> None:
        self.answers = list(answers)
        self.executed: list[tuple[str, Mapping[str, Any] | None]] = []

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        self.executed.append((command, arguments))
        if command != "query-block-exports":
            return {}
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [{"id": one} for one in answer]


def test_returns_when_it_has_gone() -> None:
    monitor = Exporting([["vda", "vdb"], ["vda", "vdb"], ["vdb"], []])
    exports.end(cast(Monitor, monitor), "vda")
    assert monitor.executed[0] == ("block-export-del", {"id": "vda", "mode": "hard"})
    assert [command for command, _ in monitor.executed[1:]] == ["query-block-exports"] * 3


def test_one_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "REMOVAL_S", 0.05)
    with pytest.raises(StorageError, match="did not end the export vda"):
        exports.end(cast(Monitor, Exporting([["vda"]])), "vda")
