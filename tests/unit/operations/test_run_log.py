"""The end of what was reported is kept, with times and domains, and all of it is passed on."""

from __future__ import annotations

from tests.unit.operations.run_examples import NOW, Labels
from vbackup.operations import run_log
from vbackup.operations.run_log import Log
from vbackup.report import Phase


def test_lines_are_kept_and_passed_on() -> None:
    reporter = Labels()
    log = Log(reporter, lambda: NOW)
    log.step("It began.")
    log.labelled("web").step("Frozen.")
    log.labelled("web").warning("It is slow.")
    log.warning("The end.")
    log.labelled("web").progress("vda", Phase.COPY, 1, 2)
    log.progress("vdb", Phase.COPY, 1, 2)
    at = f"{NOW.astimezone():%H:%M:%S}"
    assert log.tail.splitlines() == [
        f"{at} It began.",
        f"{at} web: Frozen.",
        f"{at} warning: web: It is slow.",
        f"{at} warning: The end.",
    ]
    assert (reporter.steps, reporter.warnings) == (
        ["It began.", "web: Frozen."],
        ["web: It is slow.", "The end."],
    )
    assert reporter.told == {"web/vda": [(1, 2)], "vdb": [(1, 2)]}


def test_only_the_last_lines_are_kept() -> None:
    log = Log(Labels(), lambda: NOW)
    for number in range(run_log.LINES + 5):
        log.step(str(number))
    lines = log.tail.splitlines()
    assert len(lines) == run_log.LINES
    assert lines[0].endswith(" 5")
