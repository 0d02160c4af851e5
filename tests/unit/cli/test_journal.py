"""Lines have priorities where standard error is the journal, and only there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vbackup.cli import journal
from vbackup.cli.reporters import choose
from vbackup.report import Phase


def test_lines_have_their_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    with path.open("w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        status = os.fstat(file.fileno())
        patch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        with choose("auto", quiet=False) as reporter:
            reporter.step("Begun.")
            reporter.warning("Slow.")
            reporter.labelled("web").step("Frozen.")
            reporter.progress("vda", Phase.COPY, 1, 2)
        print(f"{journal.prefix(journal.ERROR)}vbackup: It failed.", file=sys.stderr)
    assert path.read_text().splitlines() == [
        "<6>Begun.",
        "<4>Slow.",
        "<6>web: Frozen.",
        "<3>vbackup: It failed.",
    ]


@pytest.mark.parametrize("value", ["", "1", "1:2", "x:y"])
def test_an_inherited_variable_is_not_the_journal(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", value)
    assert journal.prefix(journal.ERROR) == ""


def test_without_standard_error_there_is_no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    monkeypatch.setattr(sys, "stderr", None)
    assert not journal.is_there()
