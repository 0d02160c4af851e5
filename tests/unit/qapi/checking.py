"""Check transactions against the captured schema, for tests."""

from __future__ import annotations

from typing import Any

import pytest

from tests import qapi
from tests.transactions import EXISTING
from vbackup.errors import TransactionError
from vbackup.qapi import checker, rules
from vbackup.qapi.schema import Schema

SCHEMA = Schema(qapi.schema())


def check(*actions: dict[str, Any], existing: rules.Existing = EXISTING) -> tuple[str, ...]:
    return checker.check({"actions": list(actions)}, SCHEMA, existing=existing)


def refusal(*actions: dict[str, Any], existing: rules.Existing = EXISTING) -> TransactionError:
    with pytest.raises(TransactionError) as caught:
        check(*actions, existing=existing)
    return caught.value
