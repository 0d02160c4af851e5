"""All checks of a transaction: names, the schema, then the rules; nothing unexpected is raised."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests import qapi
from tests.strategies import JSON, Names, Transaction, mutated, transaction
from tests.transactions import backup, bitmap, by_bitmap, merge
from tests.unit.qapi.checking import check, refusal
from vbackup.errors import MalformedError, TransactionError
from vbackup.qapi import checker
from vbackup.qapi.schema import Schema

QEMU = Schema(qapi.schema())


@given(mutated(st.builds(lambda: copy.deepcopy(qapi.schema()))), transaction(max_size=2))
def test_damaged_schema_raises_nothing_unexpected(reply: Any, example: Transaction) -> None:
    try:
        damaged = Schema(reply)
        checker.check(example.document(), damaged, existing={})
    except (MalformedError, TransactionError):
        pass


@given(JSON)
def test_any_arguments_raise_nothing_unexpected(arguments: Any) -> None:
    try:
        checker.check(arguments, QEMU, existing={})
    except TransactionError as err:
        str(err).encode()


NAMES = Names(*[st.sampled_from(["n", "m", ""])] * 9)


@given(mutated(transaction(NAMES, max_size=4).map(lambda example: example.document())))
def test_damaged_arguments_raise_nothing_unexpected(arguments: Any) -> None:
    try:
        checker.check(arguments, QEMU, existing={"n": ("m",)})
    except TransactionError as err:
        str(err).encode()


def test_all_warnings_are_told() -> None:
    warnings = check(
        backup(x_perf={}), {"type": "drive-backup", "data": {"device": "two", "target": "/t", "sync": "full"}}
    )
    assert [warning.split(":")[0] for warning in warnings] == ["actions[0].data.x-perf", "actions[1].type"]


def test_schema_speaks_before_the_rules() -> None:
    error = refusal(bitmap("add", "one", ""), bitmap("add", "one", "x", nope=1))
    assert error.path == "actions[1].data.nope"


def test_plan_of_vbackup_is_accepted() -> None:
    plan = [
        bitmap("add", "one", "next", granularity=65536, persistent=True),
        bitmap("add", "one", "working", granularity=65536, persistent=False),
        bitmap("disable", "one", "working"),
        merge("one", "working", ("one", "old")),
        by_bitmap("working", auto_finalize=False, auto_dismiss=False),
        bitmap("add", "two", "next"),
        backup("two", "target-two", job_id="k"),
        {"type": "abort", "data": {}},
    ]
    assert check(*plan) == ()
