"""What a notifier was told is read as it was kept; what is not well kept counts as not told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.notices.told import Failure, Told, read

FULL = Told(
    failures={"nightly": Failure(("backup//web/NO_SPACE",), "2026-11-30T01:00:00+00:00", is_told=True)},
    overdue=frozenset(("nightly/main/web",)),
    unsent=("The clock jumped.",),
    last="2026-11-30T01:12:00+00:00",
    title="vbackup nightly on hv1: FAILED: web not backed up",
    problem="The server does not answer.",
)


@pytest.mark.parametrize("content", [Told(), FULL], ids=["empty", "full"])
def test_what_is_read_is_what_was_kept(content: Told) -> None:
    assert read(json.loads(json.dumps(content.document()))) == content


def test_time_of_the_last_message() -> None:
    assert FULL.last_time is not None
    assert FULL.last_time.isoformat() == "2026-11-30T01:12:00+00:00"
    assert Told().last_time is None
    assert Told(last="yesterday").last_time is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from((*FULL.document(), "faults", "since")), inner),
        max_leaves=20,
    )
)
def test_any_json_is_read(document: Any) -> None:
    found = read(document)
    assert read(found.document()) == found
