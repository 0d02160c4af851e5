"""Rules that no schema has; tests/contract/test_checker.py checks the same cases with QEMU."""

from __future__ import annotations

from typing import Any

import pytest

from tests import qapi
from tests.transactions import ACCEPTED, EXISTING, MISSING, REFUSED, SNAPSHOTS, Refused, backup, bitmap
from tests.unit.qapi.checking import check, refusal
from vbackup.errors import TransactionError
from vbackup.qapi import checker, rules
from vbackup.qapi.schema import Schema

SCHEMA = Schema(qapi.schema())


@pytest.mark.parametrize("case", [*REFUSED, *SNAPSHOTS], ids=lambda case: case.name)
def test_refused_at_the_member_to_change(case: Refused) -> None:
    with pytest.raises(TransactionError) as caught:
        checker.check(case.arguments(), SCHEMA, existing=EXISTING)
    assert caught.value.path == case.path
    assert str(caught.value).startswith(f"{case.path}: ")
    assert caught.value.action == int(case.path[len("actions[")])
    assert str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    check(*ACCEPTED[name])
    check(*ACCEPTED[name], existing={})


# experimental names


@pytest.mark.parametrize("verb", ["enable", "disable", "merge"])
def test_experimental_name_is_refused_with_the_modern_one(verb: str) -> None:
    error = refusal({"type": f"x-block-dirty-bitmap-{verb}", "data": {}})
    assert error.path == "actions[0].type"
    assert f"use 'block-dirty-bitmap-{verb}', stable since QEMU 4.0" in str(error)


def test_experimental_name_is_refused_by_a_qemu_that_has_it_too() -> None:
    with pytest.raises(TransactionError, match="experimental name; it is not stable"):
        rules.experimental_names({"actions": [{"type": "x-other", "data": {}}]})


@pytest.mark.parametrize("arguments", [{}, {"actions": None}, {"actions": [5, {}, {"type": []}]}])
def test_names_are_looked_for_in_anything(arguments: dict[str, Any]) -> None:
    rules.experimental_names(arguments)
    assert rules.check(arguments, {}) == ()


# without knowing what bitmaps there are


#: The latter because "one" could be a device's name, which means another node once the job is there.
NEEDS_EXISTING = {
    case.name
    for case in MISSING
    if "nothing" in case.name or "not there" in case.name or "in use" in case.name or "two backups" in case.name
}


@pytest.mark.parametrize("case", MISSING, ids=lambda case: case.name)
def test_order_alone_tells_much(case: Refused) -> None:
    if case.name in NEEDS_EXISTING:
        check(*case.actions, existing={})
    else:
        assert refusal(*case.actions, existing={}).path == case.path


def test_nodes_that_are_not_listed_are_not_judged() -> None:
    check(bitmap("clear", "elsewhere", "x"))


def test_missing_bitmap_is_told_with_those_that_are_there() -> None:
    text = str(refusal(bitmap("clear", "one", "odl")))
    assert "the node has 'old', 'other'" in text
    assert "Did you mean 'old'?" in text


# the name of a device means another node once a job or a snapshot stands above it


def test_name_of_a_device_may_mean_another_node_after_a_job() -> None:
    """QEMU 7.2 adds the second bitmap to the filter node of the job."""
    actions = (bitmap("add", "drive0", "x"), backup("drive0"), bitmap("add", "drive0", "x"))
    check(*actions, existing={})
    check(*actions)
    node = [bitmap("add", "one", "x"), backup("one"), bitmap("add", "one", "x")]
    assert refusal(*node).path == "actions[2].data.name"


def test_two_jobs_on_one_device_are_warned_of() -> None:
    actions = (backup("drive0"), backup("drive0", "target-two", job_id="k"))
    assert "crashes when such a transaction fails" in check(*actions)[0]
    told = [said for one in (actions, (backup(), actions[1])) for said in check(*one, existing={})]
    assert not [said for said in told if "such a transaction fails" in said]


def test_two_jobs_on_one_node_that_end_by_themselves_are_warned_of() -> None:
    held = {"auto_finalize": False}
    one, other = backup(), backup(target="target-two", job_id="k")
    (warning,) = check(one, other)
    assert warning.startswith("actions[1].data.auto-finalize: actions[0] also copies 'one', and both jobs finalise")
    assert check(backup(**held), other) == check(one, backup(target="target-two", job_id="k", **held)) == ()
    assert check(one, backup("two", "target-two", job_id="k")) == ()


def test_enabling_what_is_not_known_is_warned_of() -> None:
    """QEMU 7.2 crashes if the bitmap does not exist."""
    enable = bitmap("enable", "one", "old")
    assert check(enable) == ()
    assert check(bitmap("add", "one", "x"), bitmap("enable", "one", "x"), existing={}) == ()
    (warning,) = check(enable, existing={})
    assert warning.startswith("actions[0].data.name: ")


# the checker


@pytest.mark.parametrize("size", [3, 2**63 + 1])
def test_min_cluster_size_is_a_power_of_two(size: int) -> None:
    """QEMU 9.2 introduced it; the captured schema is older."""
    with pytest.raises(TransactionError, match=r"x-perf\.min-cluster-size"):
        rules.check({"actions": [backup(x_perf={"min-cluster-size": size})]}, {})
    rules.check({"actions": [backup(x_perf={"min-cluster-size": 0}), backup("two", "target-two", job_id="k")]}, {})


@pytest.mark.parametrize("chunk", [2**63, -1])
def test_max_chunk_fits_63_bits(chunk: int) -> None:
    assert refusal(backup(x_perf={"max-chunk": chunk})).path == "actions[0].data.x-perf.max-chunk"


@pytest.mark.parametrize(("sync", "warned"), [("full", True), ("none", False)])
def test_snapshot_that_breaks_unnoticed_is_warned_of(sync: str, warned: bool) -> None:
    data = {"device": "one", "target": "two", "sync": sync, "on-cbw-error": "break-snapshot"}
    warnings = rules.check({"actions": [{"type": "blockdev-backup", "data": data}]}, {})
    assert [one.startswith("actions[0].data.on-cbw-error") for one in warnings] == [True] * warned
