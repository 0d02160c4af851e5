"""Only who has asked all hosts of a job knows which domains do not exist."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.overview.examples import job, live
from vbackup.overview.facts import HostFacts


def test_all_hosts_have_to_answer() -> None:
    answered, silent = HostFacts("a", (live(),)), HostFacts("b", None, "silence")
    assert replace(job(), hosts=(answered,)).is_asked
    both = replace(job(), hosts=(answered, silent))
    assert not both.is_asked
    assert both.live == (live(),)
    assert not replace(job(), hosts=()).is_asked
