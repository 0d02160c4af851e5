"""A QAPI struct is written with the names of QAPI, and knows what is newer than itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import pytest

from vbackup.qapi.actions.members import Structure, optional, required


class Mode(Enum):
    OLD = "old"
    NEW = "new-one"


@dataclass(frozen=True)
class Inner(Structure):
    max_size: int | None = optional(since="6.1")
    plain: str | None = None


@dataclass(frozen=True)
class Outer(Structure):
    node_name: str
    mode: Mode = required(values_since={Mode.NEW: "5.2"})
    inner: Inner | None = optional(since="6.0", structure=Inner)
    names: tuple[Inner | str, ...] | None = None
    compress: bool | None = None


def test_members_have_dashes_and_those_without_a_value_are_left_out() -> None:
    assert Outer("n", Mode.NEW).document() == {"node-name": "n", "mode": "new-one"}


def test_values_are_ready_for_json() -> None:
    """False and an empty struct are values."""
    outer = Outer("n", Mode.OLD, inner=Inner(), names=("bare", Inner(max_size=0)), compress=False)
    assert outer.document() == {
        "node-name": "n",
        "mode": "old",
        "inner": {},
        "names": ["bare", {"max-size": 0}],
        "compress": False,
    }


@pytest.mark.parametrize(
    ("path", "version"),
    [
        (("node-name",), None),
        (("inner",), "6.0"),
        (("inner", "max-size"), "6.1"),
        (("inner", "plain"), None),
        (("inner", "nothing"), None),
        (("mode", "new-one"), "5.2"),
        (("mode", "old"), None),
        (("node_name",), None),
        (("nothing", "below"), None),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_version_is_that_of_the_member_or_value_at_the_path(path: Sequence[str], version: str | None) -> None:
    assert Outer.since(path) == version
