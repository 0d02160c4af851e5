"""Only who has asked all hosts of a job knows which domains do not exist; the job is judged by its whole runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.overview.examples import DAY, NIGHT, NOW, job, live, run
from vbackup.overview.facts import HostFacts
from vbackup.runs.record import Outcome


def test_all_hosts_have_to_answer() -> None:
    answered, silent = HostFacts("a", (live(),)), HostFacts("b", None, "silence")
    assert replace(job(), hosts=(answered,)).is_asked
    both = replace(job(), hosts=(answered, silent))
    assert not both.is_asked
    assert both.live == (live(),)
    assert not replace(job(), hosts=()).is_asked


def test_a_run_of_other_domains_is_no_run_of_the_job() -> None:
    some, working = run(is_partial=True), run(started=NOW, ended=None, outcome=Outcome.RUNNING)
    whole, older = run(), run(started=NIGHT - DAY)
    known = job(runs=(working, some, whole, older))
    assert known.whole_runs == (working, whole, older)
    assert known.latest_runs == (working, some, whole)
    assert job(runs=(some,)).latest_runs == (some,)


@pytest.mark.parametrize(
    ("domains", "error", "may"),
    [
        ((), "silence", True),
        (("web", "db*"), "silence", True),
        (("web",), "silence", False),
        ((), None, False),
    ],
)
def test_who_names_no_domain_may_miss_one(domains: tuple[str, ...], error: str | None, *, may: bool) -> None:
    assert job(domains=domains, error=error).may_miss_domains is may


def test_who_asks_nobody_misses_nothing() -> None:
    assert not replace(job(), hosts=(HostFacts(None, None),)).may_miss_domains
